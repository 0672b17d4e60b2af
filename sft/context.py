"""What all stages of a run share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.config.sections import LoraSection, Preset, RunSection
from sft.model.placement import Placement
from sft.run.console import show
from sft.run.contents import fingerprint, model_fingerprint
from sft.run.trackers import Trackers


@dataclass(frozen=True)
class Moment:
    """Where a stage stands when it is measured: behind `step`, with `epoch` epochs done (no whole
    number within one); `folder` takes what the row rests on. A measure that takes more than
    `seconds` raises `OutOfTime`."""

    stage: str
    epoch: float
    step: int
    folder: Path
    seconds: float = math.inf


# Given the model and where it stands, returns the row's content. One process calls it; the model
# comes without a distributed wrapper, and is to be read only.
InTraining = Callable[[Any, Moment], dict[str, Any]]


@dataclass(frozen=True)
class Limits:
    """What counts as wrong, and what is done then; from the `run` section."""

    skip: bool = False
    spike_factor: float = 10.0
    collapse_nats: float = 2.0
    loop_checks: int = 3
    loop_rise: float = 0.3
    loop_budget: float = 0.05

    @classmethod
    def of(cls, section: RunSection) -> "Limits":
        """The limits that a preset sets."""
        return cls(
            section.on_bad_step == "skip",
            section.spike_factor,
            section.collapse_nats,
            section.loop_checks,
            section.loop_rise,
            section.loop_budget,
        )


@dataclass(frozen=True)
class RunContext:
    """The run's folder, tokenizer, placement and seed, passed to every stage and measure.

    `tokens` are the ids of `model.add_tokens`, whose embeddings are trained under LoRA too.
    `limits` say which steps stop a stage, `after_epoch` measures it at each epoch's end and
    `loop_probe` a few times within, `trackers` are told, `tables` shows what it trains on; none is
    an input of it. `max_unknown` is `model.max_unknown`. With `parts` models are measured in parts
    (`sft.distributed.fsdp_forward`).
    """

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    lora: LoraSection
    seed: int
    trust_remote_code: bool
    tokens: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    after_epoch: InTraining | None = None
    loop_probe: InTraining | None = None
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
            Limits.of(preset.run),
            max_unknown=preset.model.max_unknown,
        )

    def show(self, table: Any) -> None:
        """A table of what a stage trains on, unless the run has shown it and is at its end."""
        if self.tables:
            show(table)

    def weights_key(self, path: str) -> str:
        """The hash of a model as this run loads it: quantised weights are others."""
        key = model_fingerprint(path)
        return fingerprint([key, "4 bits"]) if self.placement.load_in_4bit else key
