"""Rows that are no text to imitate: pictures and sound, and answers that a label calls bad."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sft.data.fields import Fields
from sft.data.json_values import number_of
from sft.data.records import RowError
from sft.errors import UserError

# Fields of what the text is about but this project cannot read.
MEDIA = frozenset(
    f"{kind}{end}"
    for kind in ("image", "img", "picture", "video", "audio")
    for end in (
        *("", "s", "_path", "_paths", "_file", "_files", "_url", "_urls"),
        *("_bytes", "_base64", "_b64", "_data"),
    )
) | {"pixel_values"}
# The place of a picture in a user's turn. <video> and <audio> are tags of HTML as well, and such a
# place where they have a line to themselves; an <image> with an end is XML, an <img> with a path
# between it and its end is Qwen-VL's.
PLACE = re.compile(
    r"<image(?:[ _]?\d+)?>(?![\s\S]*</image>)|<img>[^<>]+</img>"
    r"|<\|(?:image|video|audio)(?:_pad)?\|>"
    r"|^\s*<(?:video|audio)>\s*$",
    re.MULTILINE,
)

# Fields that say whether the one answer of a row is good; `chosen` and the like as true or false.
GOOD_IF_TRUE = frozenset(
    (
        *("label", "labels", "tag", "kto_tag", "kto_label", "desirable", "is_desirable"),
        *("chosen", "is_chosen", "accepted", "is_accepted", "preferred", "is_preferred", "good"),
        *("is_good", "approved", "liked", "like", "thumbs_up", "thumbsup", "upvoted", "feedback"),
        *("vote", "verdict", "thumbs", "reaction", "judgment", "judgement"),
    )
)
BAD_IF_TRUE = frozenset(
    (
        *("undesirable", "is_undesirable", "rejected", "is_rejected", "bad", "is_bad"),
        *("disliked", "dislike", "thumbs_down", "thumbsdown", "downvoted"),
    )
)
LABELS = GOOD_IF_TRUE | BAD_IF_TRUE
# Judgements that stand in ordinary data sets too, where only a bad one matters.
CHECKS = frozenset(
    (
        *("correct", "is_correct", "safe", "is_safe", "is_response_safe", "helpful"),
        *("is_helpful", "passed", "verified"),
    )
)
# Ratings whose lowest grade is 0. Scores of a reward model go below it and mean something else.
RATINGS = frozenset(
    (
        *("rating", "ratings", "score", "reward", "stars", "grade", "helpfulness", "correctness"),
        *("coherence", "quality", "overall", "overall_rating", "overall_score"),
    )
)
BAD_WORDS = frozenset(
    (
        *("bad", "poor", "wrong", "incorrect", "false", "undesirable", "rejected", "reject"),
        *("dispreferred", "thumbs_down", "thumbsdown", "down", "dislike", "disliked", "negative"),
        *("unhelpful", "harmful", "unsafe", "no", "fail", "failed", "lose", "loss", "worse"),
    )
)


def check_no_media(fields: Mapping[str, Any], origin: str) -> None:
    """A row or message with a picture, a film or sound is not read as if it were its text alone.

    Raises:
        RowError: naming the field, or the place in the text.
    """
    for name in fields:
        if _key(name) in MEDIA and _peek(fields, name):
            raise _media(origin, f"there is a filled field {name!r}")


def check_no_media_placeholders(messages: list[dict[str, Any]], origin: str) -> None:
    """The same for the place of a picture in what anyone but the assistant says."""
    for number, message in enumerate(messages, start=1):
        if (
            "<" in message["content"]
            and message["role"] != "assistant"
            and (found := PLACE.search(message["content"]))
        ):
            raise _media(origin, f"message {number} holds {found[0].strip()!r}")


def _media(origin: str, what: str) -> RowError:
    return RowError(
        origin,
        rule="image or sound",
        detail=f"{what}, and models are trained on text alone here",
        remedy="remove such rows or, where the text is complete without it, name the field in the "
        "source's ignore",
    )


def kto_label(fields: Mapping[str, Any]) -> str | None:
    """The field that marks a row's one answer as good or bad by true or false, as data for KTO
    does; None where there is none."""
    for name in fields:
        if _key(name) in LABELS and _truth(_peek(fields, name)) is not None:
            return name
    return None


def check_answer_labels(fields: Mapping[str, Any], origin: str) -> None:
    """An answer that the row itself calls wrong, unsafe or worth 0 is not one to imitate.

    Raises:
        RowError: naming the field and its value.
    """
    for name in fields:
        value = _peek(fields, name)
        if _is_bad(_key(name), value):
            raise RowError(
                origin,
                rule="answer labeled as bad",
                detail=f"{name} is {str(value)[:40]!r}, which calls the answer bad",
                remedy="remove such rows, or name the field in the source's ignore to train on "
                "them all",
            )


def check_not_kto(fields: Mapping[str, Any], origin: str, *, wanted: str, remedy: str) -> None:
    """Refuse rows of one answer with a label.

    Raises:
        UserError: naming the label.
    """
    if (name := kto_label(fields)) is not None:
        raise UserError(
            f"{origin}: the row is a KTO label (one answer marked good or bad: {name} is "
            f"{str(_peek(fields, name))[:40]!r}), not {wanted}; {remedy}"
        )


def _is_bad(name: str, value: Any) -> bool:
    if name in CHECKS:
        # As text, `correct` may be the right answer.
        said = _word(value) in BAD_WORDS and name != "correct"
        return _truth(value) is False or number_of(value) == 0 or said
    if name in RATINGS:
        return number_of(value) == 0 or _word(value) in BAD_WORDS
    if name in GOOD_IF_TRUE:
        return number_of(value) in (0, -1) or _word(value) in BAD_WORDS or _truth(value) is False
    return name in BAD_IF_TRUE and _truth(value) is True


@lru_cache(maxsize=4096)
def _key(name: str) -> str:
    """A field's name in small letters with underscores, without who judged or what is judged."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[- ]", "_", name).lower()
    return re.sub(r"^(human|user|annotator|completion|response)_", "", name)


def _peek(fields: Mapping[str, Any], name: str) -> Any:
    return fields.peek(name) if isinstance(fields, Fields) else fields[name]


def _word(value: Any) -> str:
    return re.sub(r"[- ]", "_", value.strip().lower()) if isinstance(value, str) else ""


def _truth(value: Any) -> bool | None:
    """True or false, as such or as a cell of CSV writes it."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(_word(value))
