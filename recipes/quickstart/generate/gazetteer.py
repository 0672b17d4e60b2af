"""Draw the towns and people of the fictional Lantern Isles, and state or ask their facts.

Every entity has one English and one Chinese name and the same facts in both languages. A third of
the entities are `held out`: the pre-training pages state their facts, but no question about
them is ever asked in training. The knowledge benchmark questions exactly those questions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from recipes.quickstart.generate.bilingual import Text, load_sentences, side


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its possible values, sentences that state it, questions that ask for it.

    Sentences and questions hold `{s}` for the subject and sentences `{v}` for the value.
    """

    key: str
    values: tuple[Text, ...]
    statements: tuple[Text, ...]
    questions: tuple[Text, ...]


@dataclass(frozen=True)
class Entity:
    """A town or a person. `facts` maps a relation key to its value in both languages."""

    name: Text
    kind: str  # "place" | "person"
    facts: dict[str, Text]
    held_out: bool


def _relations(entries: Any) -> tuple[Relation, ...]:
    return tuple(Relation(r.key, r.values, r.statements, r.questions) for r in entries)


_SENTENCES = load_sentences("gazetteer")
PLACE_RELATIONS = _relations(_SENTENCES.place_relations)
PERSON_RELATIONS = _relations(_SENTENCES.person_relations)  # "home" has no values: the towns
RELATIONS = {r.key: r for r in PLACE_RELATIONS + PERSON_RELATIONS}


def make_gazetteer(seed: int, *, places: int = 42, people: int = 30) -> tuple[Entity, ...]:
    """Return towns and people with their facts; every third is held out from all questions."""
    rng = random.Random(f"{seed}/gazetteer")
    names = [
        ((a[0] + b[0]), (a[1] + b[1])) for a in _SENTENCES.town_starts for b in _SENTENCES.town_ends
    ]
    towns = rng.sample(names, places)
    entities = []
    for i, name in enumerate(towns):
        facts = {r.key: rng.choice(r.values) for r in PLACE_RELATIONS}
        entities.append(Entity(name, "place", facts, held_out=i % 3 == 0))
    full = [
        (f"{a[0]} {b[0]}", f"{a[1]}·{b[1]}")
        for a in _SENTENCES.first_names
        for b in _SENTENCES.last_names
    ]
    for i, name in enumerate(rng.sample(full, people)):
        facts = {r.key: rng.choice(r.values or tuple(towns)) for r in PERSON_RELATIONS}
        entities.append(Entity(name, "person", facts, held_out=i % 3 == 0))
    return tuple(entities)


def options(entities: tuple[Entity, ...], key: str) -> tuple[Text, ...]:
    """Return all values that the relation `key` can take (towns for a person's home)."""
    return RELATIONS[key].values or tuple(e.name for e in entities if e.kind == "place")


def say(rng: random.Random, entity: Entity, key: str, *, language: str, subject: str = "") -> str:
    """Return a sentence that states one fact; `subject` replaces the name ("The town")."""
    sentence = side(rng.choice(RELATIONS[key].statements), language)
    text = sentence.format(
        s=subject or side(entity.name, language), v=side(entity.facts[key], language)
    )
    return text[0].upper() + text[1:]


def ask(rng: random.Random, entity: Entity, key: str, *, language: str) -> str:
    """Return a question about one fact."""
    return side(rng.choice(RELATIONS[key].questions), language).format(
        s=side(entity.name, language)
    )


def portrait(rng: random.Random, entity: Entity, *, language: str) -> str:
    """Return an encyclopedia paragraph with most facts of an entity, in random order."""
    keys = list(entity.facts)
    rng.shuffle(keys)
    keys = keys[: rng.randint(len(keys) - 2, len(keys))]
    stand_in = {"place": ("the town", "这座小镇"), "person": ("this person", "此人")}[entity.kind]
    sentences = [say(rng, entity, keys[0], language=language)]
    for key in keys[1:]:
        subject = side(stand_in, language) if rng.random() < 0.3 else ""
        sentences.append(say(rng, entity, key, language=language, subject=subject))
    return (" " if language == "en" else "").join(sentences)
