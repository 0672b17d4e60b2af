"""Names of fields: pairs of a question and its answer, of two answers, and the rest of a row."""

from collections.abc import Sequence
from typing import Any

from sft.data.fields import Fields
from sft.data.question_text import COMPANIONS

# Pairs of fields that hold a question and its answer, in the order in which they are tried.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("problem", "answer"),
    ("prompt", "answer"),
    ("prompt", "solution"),
    ("question", "solution"),
    ("instruction", "answer"),
    ("instruction", "completion"),
    ("inputs", "targets"),
    ("input", "target"),
    ("input", "output"),
    ("user", "assistant"),
    ("human", "assistant"),
)
CONTENT = frozenset(
    {"messages", "conversations", "conversation", "instances", "input", "history", "text"}
    | {"chosen", "rejected"}
    | {name for pair in PAIRS for name in pair}
)
ANSWERS = (
    *dict.fromkeys(answer for _, answer in PAIRS),
    *("outputs", "responses", "answers", "completions", "generations", "candidates"),
)
ANSWER_NAMES = frozenset(ANSWERS)
TURNS = "data"  # UltraChat's name for texts in turn
TEXTS_IN_TURN = (TURNS, "conversations")  # the other is LIMA's
META = ("language", "reference", "id")
OTHER_NAMES = frozenset({"system", "system_prompt", "tools", "kind", *META}) | COMPANIONS
WHOLE = tuple(frozenset(pair) for pair in PAIRS) + tuple(
    frozenset({name}) for name in ("messages", "conversations", "conversation", "text")
)
# Fields of a better and a worse answer, and of two answers of which another field tells the better.
SIDES = (("chosen", "rejected"), ("accepted", "rejected"), ("response_j", "response_k"))
OUTPUT_PAIRS = (
    *(("output_1", "output_2"), ("response1", "response2"), ("response_a", "response_b")),
    *(("response_0", "response_1"), ("response_1", "response_2")),
    *(("human_ref_A", "human_ref_B"), ("conversation_a", "conversation_b")),
)


PAIRED = frozenset(name for pair in (*PAIRS, *SIDES, *OUTPUT_PAIRS) for name in pair)
COMPARISON = frozenset(
    {name for pair in (*SIDES, *OUTPUT_PAIRS) for name in pair}
    | {"label", "labels", "preference", "winner", "better_response_id", "preference_strength"}
)


KNOWN = CONTENT | OTHER_NAMES | COMPARISON  # what `columns` may map


def held(pairs: Sequence[tuple[str, str]], fields: Fields) -> list[tuple[str, str]]:
    """The pairs of names of which a row has both, in their order."""
    names = fields.of(PAIRED)
    return [(a, b) for a, b in pairs if a in names and b in names] if len(names) > 1 else []


def several_answers(fields: Fields) -> str | None:
    """The field that holds a list of texts where one answer is expected; None where none does."""
    present = fields.of(ANSWER_NAMES)
    for name in filter(present.__contains__, ANSWERS):
        value = fields.peek(name)
        if isinstance(value, list) and len(value) > 1 and are_texts(value):
            return name
    return None


def are_texts(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(v, str) for v in value)
