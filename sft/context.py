"""Context that all stages and measures of a run share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.config.sections import LoraSection, Preset, RunSection
from sft.model.placement import Placement
from sft.run.console import show
from sft.run.fingerprint import fingerprint, model_fingerprint
from sft.run.trackers import Trackers


@dataclass(frozen=True)
class EvalPoint:
    """The point of training at which a model is measured.

    Args:
        epoch: epochs done; a fraction within one.
        step: optimizer steps done.
        folder: where the measure writes the samples that its row is computed from.
        seconds: the measure raises `OutOfTime` when it takes longer.
    """

    stage: str
    epoch: float
    step: int
    folder: Path
    seconds: float = math.inf


# Returns the content of a row of measures. It is called in one process, with the model without its
# distributed wrapper, and must not change the model.
TrainingEval = Callable[[Any, EvalPoint], dict[str, Any]]


@dataclass(frozen=True)
class RunContext:
    """The run's folder, tokenizer, placement and seed, passed to every stage and measure.

    `run`, `epoch_eval`, `loop_check`, `trackers` and `tables` are not part of a stage's input
    hash: changing them does not run a finished stage again.

    Args:
        tokens: ids of `model.add_tokens`, whose embeddings are trained under LoRA too.
        run: bounds for bad steps and looping answers, and the reaction to them.
        epoch_eval: measures the model at the end of each epoch.
        loop_check: measures the repetition of short answers a few times within a stage.
        trackers: receive the lines of the log and the measures.
        tables: whether a stage prints tables of its training data.
        max_unknown: `model.max_unknown`.
        parts: whether models are measured in shards (`sft.distributed.fsdp_forward`).
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    lora: LoraSection
    seed: int
    trust_remote_code: bool
    tokens: tuple[int, ...] = ()
    run: RunSection = field(default_factory=RunSection)
    epoch_eval: TrainingEval | None = None
    loop_check: TrainingEval | None = None
    trackers: Trackers = field(default_factory=Trackers)
    tables: bool = True
    max_unknown: float = 0.03
    parts: bool = False

    @classmethod
    def of(
        cls,
        preset: Preset,
        *,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        placement: Placement,
    ) -> "RunContext":
        """Return the context that a preset describes on this machine."""
        return cls(
            folder,
            tokenizer,
            placement,
            preset.lora,
            preset.run.seed,
            preset.model.trust_remote_code,
            tuple(tokenizer.get_vocab()[token] for token in preset.model.add_tokens),
            preset.run,
            max_unknown=preset.model.max_unknown,
        )

    def show(self, table: Any) -> None:
        """Print a table of a stage's training data unless `tables` is false."""
        if self.tables:
            show(table)

    def weights_key(self, path: str) -> str:
        """Return the hash of a model as this run loads it; quantization changes it."""
        key = model_fingerprint(path)
        return fingerprint([key, "4 bits"]) if self.placement.load_in_4bit else key
