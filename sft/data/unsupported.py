"""Refusal of rows that no text model can imitate: media, and answers that a label calls bad.

The checks raise `RowError` with the field; `check_not_kto` raises `UserError`, for all of the file.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sft.data.fields import Fields
from sft.data.json_values import number_of
from sft.data.records import RowError
from sft.errors import UserError
from sft.schema import ChatMessage

# Fields of images, video and audio.
MEDIA = frozenset(
    f"{kind}{end}"
    for kind in ("image", "img", "picture", "video", "audio")
    for end in (
        *("", "s", "_path", "_paths", "_file", "_files", "_url", "_urls"),
        *("_bytes", "_base64", "_b64", "_data"),
    )
) | {"pixel_values"}
# The placeholder of an image in a user turn. <video> and <audio> are HTML tags too, so they count
# only on a separate line; an <image> with an end tag is XML; Qwen-VL writes <img>PATH</img>.
PLACEHOLDER = re.compile(
    r"<image(?:[ _]?\d+)?>(?![\s\S]*</image>)|<img>[^<>]+</img>"
    r"|<\|(?:image|video|audio)(?:_pad)?\|>"
    r"|^\s*<(?:video|audio)>\s*$",
    re.MULTILINE,
)
# Fields that label the one answer of a row as good or bad; `chosen` and the like as true or false.
GOOD_IF_TRUE = {
    *("label", "labels", "tag", "kto_tag", "kto_label", "desirable", "is_desirable"),
    *("chosen", "is_chosen", "accepted", "is_accepted", "preferred", "is_preferred", "good"),
    *("is_good", "approved", "liked", "like", "thumbs_up", "thumbsup", "upvoted", "feedback"),
    *("vote", "verdict", "thumbs", "reaction", "judgment", "judgement"),
}
BAD_IF_TRUE = {
    *("undesirable", "is_undesirable", "rejected", "is_rejected", "bad", "is_bad"),
    *("disliked", "dislike", "thumbs_down", "thumbsdown", "downvoted"),
}
# Judgments that ordinary data sets carry as well, where only a bad one matters.
CHECKS = {
    *("correct", "is_correct", "safe", "is_safe", "is_response_safe", "helpful"),
    *("is_helpful", "passed", "verified"),
}
# Ratings whose lowest grade is 0. Reward models also give scores below 0, where 0 is not the worst.
RATINGS = {
    *("rating", "ratings", "score", "reward", "stars", "grade", "helpfulness", "correctness"),
    *("coherence", "quality", "overall", "overall_rating", "overall_score"),
}
JUDGED = GOOD_IF_TRUE | BAD_IF_TRUE | CHECKS | RATINGS
BAD_WORDS = {
    *("bad", "poor", "wrong", "incorrect", "false", "undesirable", "rejected", "reject"),
    *("dispreferred", "thumbs_down", "thumbsdown", "down", "dislike", "disliked", "negative"),
    *("unhelpful", "harmful", "unsafe", "no", "fail", "failed", "lose", "loss", "worse"),
}


def check_no_media(fields: Mapping[str, Any], origin: str) -> None:
    """Check that a row or message has no filled field of an image, video or audio."""
    for name in fields:
        if _normalized(name) in MEDIA and _peek(fields, name):
            raise _media(origin, f"there is a filled field {name!r}")


def check_no_media_placeholders(messages: list[ChatMessage], origin: str) -> None:
    """Check that no turn but the assistant's holds the placeholder of an image, video or audio."""
    for number, message in enumerate(messages, start=1):
        text = message["content"]
        if message["role"] != "assistant" and "<" in text and (match := PLACEHOLDER.search(text)):
            raise _media(origin, f"message {number} holds {match[0].strip()!r}")


def _media(origin: str, found: str) -> RowError:
    return RowError(
        origin,
        rule="image or sound",
        detail=f"{found}, and models are trained on text alone here",
        remedy="remove such rows or, where the text is complete without it, name the field in the "
        "source's ignore",
    )


def check_answer_labels(fields: Mapping[str, Any], origin: str) -> None:
    """Check that the row does not label its answer as wrong, unsafe or worth 0."""
    for name in fields:
        value = _peek(fields, name)
        if _is_bad(_normalized(name), value):
            raise RowError(
                origin,
                rule="answer labeled as bad",
                detail=f"{name} is {str(value)[:40]!r}, which calls the answer bad",
                remedy="remove such rows, or name the field in the source's ignore to train on "
                "them all",
            )


def check_not_kto(fields: Mapping[str, Any], origin: str, *, wanted: str, remedy: str) -> None:
    """Check that the row is not one answer with a true or false label, as data for KTO has."""
    for name in fields:
        value = _peek(fields, name)
        if _normalized(name) in GOOD_IF_TRUE | BAD_IF_TRUE and _as_bool(value) is not None:
            raise UserError(
                f"{origin}: the row is a KTO label (one answer marked good or bad: {name} is "
                f"{str(value)[:40]!r}), not {wanted}; {remedy}"
            )


def _is_bad(name: str, value: Any) -> bool:
    if name not in JUDGED:
        return False
    number, flag, bad_word = number_of(value), _as_bool(value), _word(value) in BAD_WORDS
    if name in CHECKS:
        # The text of `correct` may be the right answer.
        return flag is False or number == 0 or (bad_word and name != "correct")
    if name in RATINGS:
        return number == 0 or bad_word
    if name in GOOD_IF_TRUE:
        return number in (0, -1) or bad_word or flag is False
    return flag is True


@lru_cache(maxsize=4096)
def _normalized(name: str) -> str:
    """Return a name in snake case, without a prefix for the judge or what is judged."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[- ]", "_", name).lower()
    return re.sub(r"^(human|user|annotator|completion|response)_", "", name)


def _peek(fields: Mapping[str, Any], name: str) -> Any:
    return fields.peek(name) if isinstance(fields, Fields) else fields[name]


def _word(value: Any) -> str:
    return re.sub(r"[- ]", "_", value.strip().lower()) if isinstance(value, str) else ""


def _as_bool(value: Any) -> bool | None:
    """Return true or false, given as such or as a cell of CSV; else None."""
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(_word(value))
