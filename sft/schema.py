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


class ChatRow(TypedDict):
    """A chat; plain text has a `TextRow`."""

    messages: list[ChatMessage]
    kind: str
    origin: str  # path:line, or path:row of Parquet files and hub datasets
    tools: NotRequired[list[dict[str, Any]]]
    language: NotRequired[str]
    reference: NotRequired[dict[str, Any]]  # the right answer, in the keys that a judge knows
    id: NotRequired[str]


class TextRow(TypedDict):
    """A document to continue pretraining on."""

    text: str
    kind: str
    origin: str
    tools: NotRequired[list[dict[str, Any]]]
    language: NotRequired[str]
    reference: NotRequired[dict[str, Any]]  # the right answer, in the keys that a judge knows
    id: NotRequired[str]


class PreferenceRow(TypedDict):
    """A prompt with a better and a worse answer."""

    prompt: list[ChatMessage]
    chosen: list[ChatMessage]
    rejected: list[ChatMessage]
    tools: NotRequired[list[dict[str, Any]]]
    prompt_ids: NotRequired[list[int]]  # the ids: of pairs made of the model's samples
    chosen_ids: NotRequired[list[int]]
    rejected_ids: NotRequired[list[int]]
    reference: NotRequired[dict[str, Any] | None]


class PairSample(TypedDict):
    """A sampled answer with its verdict."""

    seed: int
    text: str
    token_ids: list[int]
    finish_reason: str
    score: float
    reasons: list[str]


class SampledPair(PreferenceRow):
    """A line of pairs.jsonl: the best and the worst of the answers to a prompt."""

    samples: list[PairSample]


class TokenRow(TypedDict):
    """A row that an SFT stage trains on."""

    origin: str
    input_ids: list[int]
    trained: list[bool]
    branches: NotRequired[list[int]]  # lengths of the branches, where rows share a prefix


class PairTokenRow(TypedDict):
    """A row that DPO trains on; the prompt is the prefix that both answers share."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    chosen_scored: list[bool]
    rejected_ids: list[int]
    rejected_scored: list[bool]


class SourceFacts(TypedDict):
    """The rows of one source; `rows_in` is `kept` plus the sum of `dropped`."""

    source: str
    rows_in: int
    kept: int
    dropped: dict[str, int]  # by rule
    mended: dict[str, int]  # rows kept with a part removed, by rule
    unread: dict[str, int]  # rows with text in a field that is not read, by field
    problems: list[str]


class NotTokenized(TypedDict):
    count: int
    problems: list[str]


class DataFacts(TypedDict):
    """data/data.json; the counts of tokens, turns and pieces are sums over all token rows."""

    sources: list[SourceFacts]
    questions: dict[str, int]  # by benchmark, those that rows are compared with
    unchecked: list[str]  # benchmarks whose questions could not be loaded
    mixed: int  # chats after weighting
    not_tokenised: NotTokenized
    kinds: dict[str, int]
    tokens: int
    trained_tokens: int
    untrained_turns: int
    pieces: int
    without_system: int


class DoneRecord(TypedDict):
    """done.json, the marker of a finished stage."""

    inputs: dict[str, str]  # hashes of what the stage read
    outputs: dict[str, str]  # hashes of its files, by path below its folder
    facts: dict[str, Any]  # each stage has its own
    kept: NotRequired[dict[str, str]]  # texts of small outputs that could not be made again


class BegunRecord(TypedDict):
    """begun.json, the marker of a stage that works or is finished."""

    inputs: dict[str, str]


class FileFacts(TypedDict):
    size: int
    sha256: str


class Manifest(TypedDict):
    """manifest.json, the marker of a complete checkpoint."""

    files: dict[str, FileFacts]
    processes: NotRequired[int]
    spread: NotRequired[str]  # the sharding; absent in checkpoints of earlier versions


class Machine(TypedDict):
    """The part of run.json that describes where the run was made."""

    python: str
    versions: dict[str, str]
    platform: str
    cpu_threads: int
    device: str
    num_processes: int
    git: str | None


class RunRecord(Machine):
    """run.json."""

    seed: int
    date: str | None
    preset_sha256: str
    inputs: dict[str, str]  # hashes of what the run reads in addition to its preset
    hash_rules: int
    revisions: dict[str, str]  # commits, by hub repository


class LogLine(TypedDict):
    """A line of log.jsonl; losses and trackers add keys."""

    step: int
    loss: NotRequired[float]
    epoch: NotRequired[float]
    learning_rate: NotRequired[float]
    grad_norm: NotRequired[float]
    tokens_per_second: NotRequired[float]
    padding: NotRequired[float]
    memory_gib: NotRequired[float]
    peak_share: NotRequired[float]  # of the device's peak FLOPS


class TrackerProgress(TypedDict):
    """What one tracker has received of a model."""

    last: int  # step of its last line of log.jsonl
    once: list[str]  # hashes of the measures


class TrackerRecord(TypedDict):
    """tracker.json of a model."""

    id: str  # of the model's run in the trackers
    told: dict[str, TrackerProgress]
