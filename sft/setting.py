"""What all stages of a run share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.chat import stop_ids
from sft.config import LoraSection, Preset
from sft.console import show
from sft.epochs import InTraining
from sft.placement import Placement
from sft.run import fingerprint, model_fingerprint
from sft.template_date import asks_date, date_of
from sft.trackers import Trackers
from sft.watch import Limits


@dataclass(frozen=True)
class Setting:
    """The run's folder, tokenizer, placement and seed, passed to every stage and measure.

    `tokens` are the ids of `model.add_tokens`, whose embeddings are trained under LoRA too.
    `limits` say which steps stop a stage, `after_epoch` measures it at each epoch's end and
    `loop_probe` a few times within, `trackers` are told, `tables` shows what it trains on; none is
    an input of it. `max_unknown` is `model.max_unknown`. With `parts` models are measured in parts
    (`sft.lockstep`).
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
    ) -> "Setting":
        """The setting that a preset describes, on this machine."""
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


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The hash of vocabulary, merges, special tokens and chat template, with the date where the
    template writes one."""
    core = tokenizer.backend_tokenizer.to_str()
    day = [date_of(tokenizer)] if asks_date(tokenizer) else []
    return fingerprint([core, tokenizer.chat_template, stop_ids(tokenizer), *day])
