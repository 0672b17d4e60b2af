"""The preference stage: pairs given or built, then DPO against the stage's own start."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from dpo.trainer import train_dpo
from sft.config import DpoStage
from sft.run import fingerprint, model_fingerprint
from sft.stage import Setting, run_stage
from sft.trainer import StageFacts


def run_dpo_stage(
    setting: Setting, name: str, *, start: str, section: DpoStage, rows: Dataset
) -> str:
    """DPO on token rows of pairs (see `dpo.encode`); returns the directory of its model."""
    rows_key = fingerprint(rows.to_list())
    # Weights, rows and precision decide the reference; beta and the schedule do not.
    key = fingerprint([model_fingerprint(start), rows_key, str(setting.placement.compute)])

    def train(model: Any, folder: Path) -> StageFacts:
        return train_dpo(
            model,
            rows,
            options=section.trl,
            tokenizer=setting.tokenizer,
            folder=folder,
            cache=folder / "reference" / key[:16],
            placement=setting.placement,
            seed=setting.seed,
            train_batch_size=section.train_batch_size,
            packing=section.packing,
            num_processes=PartialState().num_processes,
            label=name,
        )

    return run_stage(
        setting,
        name,
        start=start,
        inputs={"section": asdict(section), "rows": rows_key},
        train=train,
        keep=("reference", "pairs", "pairs.jsonl"),
    )
