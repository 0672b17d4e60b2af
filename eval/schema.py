"""Schemas of what measuring stores: results.json, scores.json and the rows of each model.

`eval.schema_checks` checks what is read against them, with pydantic in strict mode. A key that
is `NotRequired` does not apply everywhere, or was not recorded by an earlier version.
"""

from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Field
from typing_extensions import NotRequired, TypedDict  # pydantic needs these below Python 3.12

LARGEST = 10**15  # no number of a run is larger; beyond it, formatted tables lose their layout


def _shown(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"larger than {LARGEST}")
    return value


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return names


def _no_text_metric(metric: str) -> str:
    if metric == "bits_per_byte":
        raise ValueError("bits per byte are not a score")
    return metric


# The bounds reject NaN, except in Number: a diverged loss is NaN and is shown as such.
Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Number = Annotated[float, AfterValidator(_shown)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Interval = Annotated[list[Change], Field(min_length=2, max_length=2)]
Names = Annotated[list[str], Field(min_length=1), AfterValidator(_unique)]


class Rate(TypedDict):
    """A share of `n` answers with its interval."""

    rate: Share
    ci: Interval
    n: Positive


class Repetition(Rate):
    """How often a model's answers to the prompts loop."""

    cap: NotRequired[Count]
    truncated: NotRequired[Share]
    seq_rep_4: NotRequired[Share]
    distinct_loops: NotRequired[Count]


class CappedRate(Rate):
    cap: Count


class SampledRate(Rate):
    temperature: Change


class GroupRate(Rate):
    language: str
    category: str


class DefinitionRate(Rate):
    definition: str


class RepetitionDetail(TypedDict):
    groups: list[GroupRate]
    sensitivity: list[DefinitionRate]
    near_loops: Rate
    double_cap: NotRequired[CappedRate]
    sampled: NotRequired[SampledRate]


class Score(TypedDict):
    score: Share
    ci: NotRequired[Interval | None]
    n: Positive
    metric: str
    shots: Count | None
    metrics: NotRequired[dict[str, Share]]
    chat_template: NotRequired[bool]
    description: NotRequired[str]
    isolation: NotRequired[str]
    cut_prompts: NotRequired[Count]
    fewer_shots: NotRequired[Count]
    left_out: NotRequired[Count]
    cut_answers: NotRequired[Count]
    unanswered: NotRequired[Count]
    together: NotRequired[Count]


class Bits(TypedDict):
    bits_per_byte: Change
    ci: NotRequired[Interval | None]
    n: Positive
    left_out: NotRequired[Count]


class SafetyCategory(TypedDict):
    category: str
    harmful: bool
    n: Positive
    safe: Count
    unsafe: Count
    refusal: Count
    empty: NotRequired[Count]


class Agreement(TypedDict):
    agree: Share
    n: Count
    kappa: Change
    unsafe_found: Share


class Safety(TypedDict):
    judge: str
    agreement: Agreement | None
    categories: list[SafetyCategory]
    secure: NotRequired[Rate | None]
    over_refusal: NotRequired[Rate | None]
    empty: NotRequired[Rate | None]


class Scores(TypedDict):
    """scores.json of one model."""

    repetition: NotRequired[Repetition]
    benchmarks: NotRequired[dict[str, Score]]
    language: NotRequired[dict[str, Bits]]
    repetition_detail: NotRequired[RepetitionDetail]
    safety: NotRequired[Safety]
    backend: NotRequired[str | None]


class ScoredTasks(TypedDict):
    """The names in scores.json of the tasks that have sample files."""

    benchmarks: NotRequired[dict[str, Any]]
    language: NotRequired[dict[str, Any]]


# A row of `deltas`, a change from one model to another; `from` is no name for an attribute.
DeltaRow = TypedDict(
    "DeltaRow",
    {
        "task": str,
        "from": str,
        "to": str,
        "delta": Change,
        "ci": NotRequired[Interval | None],
        "p": NotRequired[Number | None],
        "p_holm": Number | None,
        "n": Positive,
        "test": str,
        "visible": NotRequired[Change | None],
        "needed": NotRequired[Count | None],
        "smallest_p": NotRequired[Number],
        "gained": NotRequired[Count | None],
        "lost": NotRequired[Count | None],
        "left_out": NotRequired[Count],
    },
)


class FormatDelta(DeltaRow):
    """The change that a prompt format alone makes for one model."""

    model: str


class SameFormat(TypedDict):
    benchmarks: NotRequired[dict[str, dict[str, Score]]]
    deltas: list[DeltaRow]
    formats: list[FormatDelta]


class Language(TypedDict):
    benchmarks: dict[str, dict[str, Bits]]
    deltas: list[DeltaRow]


class TrainingScore(TypedDict):
    score: Share
    ci: Interval
    n: Positive
    metric: str


class TrainingPoint(TypedDict):
    epoch: Change
    step: Count
    repetition: NotRequired[Rate]
    benchmarks: NotRequired[dict[str, TrainingScore]]


class StageFacts(TypedDict):
    steps: Count
    tokens: NotRequired[Count]
    seconds: NotRequired[Number]
    loss_first: NotRequired[Number]
    loss_last: NotRequired[Number]


class Decision(TypedDict):
    stage: str
    verdict: str
    reason: str


class Results(TypedDict):
    """results.json."""

    models: Names
    repetition: NotRequired[dict[str, Repetition]]
    benchmarks: NotRequired[dict[str, dict[str, Score]]]
    language: NotRequired[Language]
    deltas: NotRequired[list[DeltaRow]]
    same_format: NotRequired[dict[str, SameFormat]]
    repetition_detail: NotRequired[dict[str, RepetitionDetail]]
    safety: NotRequired[dict[str, Safety]]
    same_weights: NotRequired[list[list[str]]]
    stages: NotRequired[dict[str, StageFacts]]
    epochs: NotRequired[dict[str, list[TrainingPoint]]]
    loops: NotRequired[dict[str, list[TrainingPoint]]]
    decisions: NotRequired[list[Decision]]


class LogRow(TypedDict):
    """A row of log.jsonl."""

    step: Count
    loss: NotRequired[Number | None]
    learning_rate: NotRequired[Number | None]


class StoredLoop(TypedDict):
    """Place of a loop in an answer: in tokens of a generation, in characters of a sample."""

    start: Count
    period: Positive
    copies: Positive


class ChatMessage(TypedDict):
    role: str
    content: str


@final  # mypy distinguishes the two kinds of rows by a key only if they are final
class GenerationRow(TypedDict):
    """A row of generations.jsonl."""

    id: str
    messages: list[ChatMessage]
    text: str
    repeats: bool
    loop: NotRequired[StoredLoop | None]
    token_ids: NotRequired[list[Count]]
    cap: NotRequired[Count]
    finish_reason: NotRequired[str]
    language: NotRequired[str]
    category: NotRequired[str]


class SampleRow(TypedDict):
    """The keys that all rows of samples/<task>.jsonl share."""

    doc_id: str
    doc_hash: str
    prompt: NotRequired[str]
    cluster: NotRequired[str | None]
    filter: NotRequired[str]
    version: NotRequired[str | None]
    template: NotRequired[str | None]


class FollowedInstructions(TypedDict):
    strict: list[bool]
    loose: list[bool]


@final
class ScoredRow(SampleRow):
    """A row of samples/<task>.jsonl of a benchmark."""

    score: Share
    metric: Annotated[str, AfterValidator(_no_text_metric)]
    answer: str
    target: str
    finish_reason: NotRequired[str]
    loop: NotRequired[StoredLoop | None]
    outcome: NotRequired[FollowedInstructions | str | None]


class TextRow(SampleRow):
    """A row of samples/<task>.jsonl of texts whose log-probability is measured."""

    metric: Literal["bits_per_byte"]
    log_prob: Change
    bytes: Positive


class GradeFacts(TypedDict):
    """The answer that a grade is about: the last of the first `turn` turns of a model."""

    kind: Literal["grade"]
    question: str
    category: str
    turn: int
    model: str


class PairFacts(TypedDict):
    """The answers that are compared, in the order that the judge sees."""

    kind: Literal["pair"]
    question: str
    category: str
    a: str
    b: str


class _Judged(TypedDict):
    key: str
    reply: str
    asked: Annotated[int, Field(ge=0, le=10**12)]
    prompt_tokens: Annotated[int, Field(ge=0, le=10**12)]
    completion_tokens: Annotated[int, Field(ge=0, le=10**12)]


class GradeJudgment(GradeFacts, _Judged):
    """A row of judgments.jsonl: a grade of one turn of one model; None if no reply holds one."""

    verdict: Annotated[float, Field(ge=1, le=10)] | None


class PairJudgment(PairFacts, _Judged):
    """A row of judgments.jsonl: which model's answers are better; C for neither."""

    verdict: Literal["A", "B", "C"] | None


Judgment = GradeJudgment | PairJudgment


class OpenTurn(TypedDict):
    text: str
    token_ids: list[int]
    finish_reason: str
    thinking: NotRequired[str]


class OpenAnswer(TypedDict):
    """A row of answers.jsonl: a model's answers to an open-ended question."""

    id: str
    category: str
    turns: list[OpenTurn]
