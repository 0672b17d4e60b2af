"""Types of the records that sft and dpo store or pass on."""

from typing import Any

from typing_extensions import NotRequired, TypedDict  # NotRequired is in typing from 3.11 on


class ChatMessage(TypedDict):
    """One turn of a chat."""

    role: str  # system, user, assistant or tool
    content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    reasoning_content: NotRequired[str]
    thinking: NotRequired[str]  # as `reasoning_content`, under the names of other templates
    reasoning: NotRequired[str]
    trained: NotRequired[bool]  # False: a turn of the assistant that is context only


class SourceFacts(TypedDict):
    """The rows of one source; `rows_in` is `kept` plus the sum of `dropped`."""

    source: str
    rows_in: int
    kept: int
    dropped: dict[str, int]  # by rule
    mended: dict[str, int]  # rows kept with a part removed, by rule
    unread: dict[str, int]  # rows with text in a field that is not read, by field
    problems: list[str]


class TrackerProgress(TypedDict):
    """What one tracker has received of a model."""

    last: int  # step of its last line of log.jsonl
    once: list[str]  # hashes of the measures


class TrackerRecord(TypedDict):
    """tracker.json of a model."""

    id: str  # of the model's run in the trackers
    told: dict[str, TrackerProgress]
