"""Names of fields: pairs of a question and its answer, pairs of answers, and other fields."""

from collections.abc import Sequence
from typing import Any

from sft.data.fields import Fields
from sft.data.question_text import COMPANIONS

# Fields of a question and its answer, in the order in which they are tried.
PAIRS = (
    *(("instruction", "output"), ("instruction", "response"), ("prompt", "response")),
    *(("prompt", "completion"), ("prompt", "output"), ("question", "answer")),
    *(("question", "response"), ("question", "output"), ("query", "response")),
    *(("query", "answer"), ("problem", "solution"), ("problem", "answer"), ("prompt", "answer")),
    *(("prompt", "solution"), ("question", "solution"), ("instruction", "answer")),
    *(("instruction", "completion"), ("inputs", "targets"), ("input", "target")),
    *(("input", "output"), ("user", "assistant"), ("human", "assistant")),
)
# Fields of a better and a worse answer, and of two answers that another field compares.
SIDES = (("chosen", "rejected"), ("accepted", "rejected"), ("response_j", "response_k"))
OUTPUT_PAIRS = (
    *(("output_1", "output_2"), ("response1", "response2"), ("response_a", "response_b")),
    *(("response_0", "response_1"), ("response_1", "response_2")),
    *(("human_ref_A", "human_ref_B"), ("conversation_a", "conversation_b")),
)
PAIRED = frozenset(name for pair in (*PAIRS, *SIDES, *OUTPUT_PAIRS) for name in pair)
CONTENT = frozenset(
    {"messages", "conversations", "conversation", "instances", "input", "history", "text"}
    | {"chosen", "rejected"}
    | {name for pair in PAIRS for name in pair}
)
ANSWERS = (
    *dict.fromkeys(answer for _, answer in PAIRS),
    *("outputs", "responses", "answers", "completions", "generations", "candidates"),
)
ULTRACHAT = "data"  # its field of texts, of the user and the assistant in turn
ALTERNATING_TEXTS = (ULTRACHAT, "conversations")  # the second is LIMA's
META = ("language", "reference", "id")
# Fields that make up a row's content alone: a mapping to them hides all other content.
COMPLETE = tuple(frozenset(pair) for pair in PAIRS) + tuple(
    frozenset({name}) for name in ("messages", "conversations", "conversation", "text")
)
# Fields that a source's `columns` may map.
KNOWN = (
    CONTENT
    | COMPANIONS
    | {"system", "system_prompt", "tools", "kind", *META}
    | {name for pair in (*SIDES, *OUTPUT_PAIRS) for name in pair}
    | {"label", "labels", "preference", "winner", "better_response_id", "preference_strength"}
)


def present_pairs(pairs: Sequence[tuple[str, str]], fields: Fields) -> list[tuple[str, str]]:
    """Return the pairs of names of which a row has both, in their order."""
    names = fields.filled(PAIRED)
    return [(a, b) for a, b in pairs if a in names and b in names] if len(names) > 1 else []


def several_answers(fields: Fields) -> str | None:
    """Return the field that holds a list of texts where one answer is expected, or None."""
    for name in ANSWERS:
        value = fields.peek(name)
        if isinstance(value, list) and len(value) > 1 and are_texts(value):
            return name
    return None


def are_texts(value: list[Any]) -> bool:
    """Return whether a list holds texts alone, and at least one."""
    return bool(value) and all(isinstance(v, str) for v in value)
