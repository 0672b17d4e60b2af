"""Marks of turns that a row excludes from the loss, in the spellings of several trainers.

A marked assistant turn stays in the chat as context and carries the key TRAINED, which no template
sees (`sft.chat_template.template_date.apply_template`). Functions raise `RowError` for values other
than true, false, 1 or 0, and for marks that contradict each other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from sft.data.fields import Fields
from sft.data.json_values import type_name
from sft.data.records import RowError
from sft.schema import ChatMessage

TRAINED: Final = "trained"  # key of a message: False if its row excludes it from the loss
# Keys of a message that are true or 1 if it is trained: OpenAI's fine-tuning format, Axolotl,
# ms-swift, XTuner; and keys that are true if it is not (torchtune).
KEPT = (
    *("weight", "train", "training", "trainable", "supervised"),
    *("loss", "loss_weight", "loss_scale", "loss_mask"),
)
SKIPPED = ("masked", "is_masked", "no_loss", "no_train")
UNCLEAR = ("mask", "train_detail")  # of two meanings, or for parts of a turn
KEYS = frozenset({TRAINED, *KEPT, *SKIPPED, *UNCLEAR})
# Fields of a row with a value for each turn.
LISTS = ("loss_mask", "loss_masks", "train_mask", "train_masks", "train", "trainable", "weights")
ROW_KEYS = frozenset({*KEPT, *SKIPPED, *LISTS})
FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def is_trained(message: Mapping[str, Any]) -> bool:
    """Return whether this assistant turn may be trained."""
    return bool(message.get(TRAINED, True))


def has_marks(messages: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a turn is marked as not trained."""
    return not all(map(is_trained, messages))


def without_marks(messages: Iterable[Mapping[str, Any]]) -> list[ChatMessage]:
    """Return the messages in the form that a template takes."""
    kept = [{k: v for k, v in message.items() if k != TRAINED} for message in messages]
    return cast(list[ChatMessage], kept)


def read_mark(turn: Mapping[str, Any], origin: str, *, where: str) -> bool | None:
    """Return whether a message is marked as trained; None if it has no mark."""
    if not KEYS & turn.keys():
        return None
    for key in UNCLEAR:
        if turn.get(key) not in (None, []):
            detail = f"{where}.{key} marks what is trained in a way that is not known"
            raise _bad_mark(origin, detail, "give the message a weight of 1 (trained) or 0 instead")
    given = {key: turn[key] for key in (*KEPT, *SKIPPED) if turn.get(key) is not None}
    marks = {_flag(v, origin, where=f"{where}.{k}") != (k in SKIPPED) for k, v in given.items()}
    if len(marks) > 1:
        detail = f"{where} is marked both as trained and as not trained ({', '.join(given)})"
        raise _bad_mark(origin, detail, "leave one of them out")
    return next(iter(marks), None)


def mark_turns(messages: Sequence[ChatMessage], fields: Fields, origin: str) -> None:
    """Mark the assistant turns that a field of the row excludes from the loss.

    The field is a list with a value for each message, for each but the system turn, or for each
    assistant turn; or one value for the row.
    """
    if not fields.filled(ROW_KEYS):
        return
    answers = [m for m in messages if m["role"] == "assistant"]
    without_system = [m for m in messages if m["role"] != "system"]
    for name in LISTS:
        values = fields.get(name)
        if not isinstance(values, list):
            continue
        candidates = (messages, without_system, answers)
        turns = next((t for t in candidates if len(t) == len(values)), None)
        if turns is None:
            detail = f"{name} has {len(values)} values for {len(messages)} messages"
            raise _bad_mark(origin, detail, "give it one for each message")
        for i, (message, value) in enumerate(zip(turns, values, strict=True)):
            if not _flag(value, origin, where=f"{name}[{i}]") and message["role"] == "assistant":
                message[TRAINED] = False
    if any(_excludes_row(name, fields.get(name)) for name in (*KEPT, *SKIPPED)):
        for message in answers:
            message[TRAINED] = False


def _excludes_row(name: str, value: Any) -> bool:
    # A number under `loss` is a measured loss, and `weight` may be any number: only 0 excludes.
    if name == "loss" and not isinstance(value, bool):
        return False
    return _as_flag(value) is (name in SKIPPED)


def _flag(value: Any, origin: str, *, where: str) -> bool:
    flag = _as_flag(value)
    if flag is None:
        shown = value if isinstance(value, int | float | str) else type_name(value)
        remedy = "it must be true or 1 (trained), or false or 0; there are no weights in between"
        raise _bad_mark(origin, f"{where} is {str(shown)[:40]!r}", remedy)
    return flag


def _as_flag(value: Any) -> bool | None:
    """Return true or false, given as such, as 1 or 0, or as a text of these; else None."""
    known = isinstance(value, bool | int | float | str)
    return FLAGS.get(str(value).strip().lower()) if known else None


def _bad_mark(origin: str, detail: str, remedy: str) -> RowError:
    return RowError(origin, rule="training mark", detail=detail, remedy=remedy)
