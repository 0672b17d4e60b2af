"""Marks of turns that a row wants left untrained, in the spellings of several trainers.

A marked assistant turn stays in the chat as context and carries the key TRAINED, which no template
sees (`sft.chat_template.template_date.apply_template`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sft.data.fields import Fields
from sft.data.json_values import type_name
from sft.data.records import RowError

TRAINED = "trained"  # key of a message: False where its row says that it is not trained
# Keys of a message that are true or 1 where it is trained: OpenAI's fine-tuning format, Axolotl,
# ms-swift, XTuner; and those that are true where it is not (torchtune).
KEPT = (
    "weight",
    "train",
    "training",
    "trainable",
    "loss",
    "loss_weight",
    "loss_scale",
    "loss_mask",
    "supervised",
)
SKIPPED = ("masked", "is_masked", "no_loss", "no_train")
UNCLEAR = ("mask", "train_detail")  # of two meanings, or for parts of a turn
KEYS = frozenset({TRAINED, *KEPT, *SKIPPED, *UNCLEAR})
LISTS = (
    "loss_mask",
    "loss_masks",
    "train_mask",
    "train_masks",
    "train",
    "trainable",
    "weights",
)  # fields of a row with a value for each turn
ROW_KEYS = frozenset({*KEPT, *SKIPPED, *LISTS})


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether this assistant turn may be trained."""
    return bool(message.get(TRAINED, True))


def has_marks(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a turn is marked as not trained."""
    return not all(map(is_trained, messages))


def without_marks(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as a template takes them."""
    return [{k: v for k, v in message.items() if k != TRAINED} for message in messages]


def read_mark(turn: Mapping[str, Any], origin: str, *, where: str) -> bool | None:
    """Whether a message says that it is trained; None where it says nothing.

    Raises:
        RowError: a value other than true, false, 1 or 0, a mark of unclear meaning, or two marks
            that differ.
    """
    if not KEYS & turn.keys():
        return None
    for key in UNCLEAR:
        if turn.get(key) not in (None, []):
            raise RowError(
                origin,
                rule="training mark",
                detail=f"{where}.{key} marks what is trained in a way that is not known",
                remedy="give the message a weight of 1 (trained) or 0 instead",
            )
    said = {key: turn[key] for key in (*KEPT, *SKIPPED) if turn.get(key) is not None}
    marks = {_flag(v, origin, where=f"{where}.{k}") != (k in SKIPPED) for k, v in said.items()}
    if len(marks) > 1:
        raise RowError(
            origin,
            rule="training mark",
            detail=f"{where} is marked both as trained and as not trained ({', '.join(said)})",
            remedy="leave one of them out",
        )
    return next(iter(marks), None)


def mark_turns(messages: Sequence[dict[str, Any]], fields: Fields, origin: str) -> None:
    """Mark the assistant turns that a field of the row leaves untrained: a list with a value for
    each message, each but the system turn, or each assistant turn; or one value for the row.

    Raises:
        RowError: a list of another length, or a value other than true, false, 1 or 0.
    """
    if not fields.of(ROW_KEYS):
        return
    answers = [m for m in messages if m["role"] == "assistant"]
    spoken = [m for m in messages if m["role"] != "system"]
    for name in LISTS:
        values = fields.get(name)
        if not isinstance(values, list):
            continue
        turns = next((t for t in (messages, spoken, answers) if len(t) == len(values)), None)
        if turns is None:
            raise RowError(
                origin,
                rule="training mark",
                detail=f"{name} has {len(values)} values for {len(messages)} messages",
                remedy="give it one for each message",
            )
        for i, (message, value) in enumerate(zip(turns, values, strict=True)):
            if not _flag(value, origin, where=f"{name}[{i}]") and message["role"] == "assistant":
                message[TRAINED] = False
    if any(_is_off(name, fields.get(name)) for name in (*KEPT, *SKIPPED)):
        for message in answers:
            message[TRAINED] = False


def _is_off(name: str, value: Any) -> bool:
    """Whether a field of the row leaves the whole row untrained. As numbers of a row, `loss` and
    `weight` may be measures: only a weight of 0 counts."""
    if name in SKIPPED:
        return _as_flag(value) is True
    if name == "loss" and not isinstance(value, bool):
        return False
    return _as_flag(value) is False


def _flag(value: Any, origin: str, *, where: str) -> bool:
    flag = _as_flag(value)
    if flag is None:
        shown = value if isinstance(value, int | float | str) else type_name(value)
        raise RowError(
            origin,
            rule="training mark",
            detail=f"{where} is {str(shown)[:40]!r}",
            remedy="it must be true or 1 (trained), or false or 0; there are no weights in between",
        )
    return flag


def _as_flag(value: Any) -> bool | None:
    """True or false, as such, as 1 or 0, or as a text of these."""
    text = str(value).strip().lower() if isinstance(value, bool | int | float | str) else ""
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    return known.get(text)
