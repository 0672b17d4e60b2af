"""Progress of training: log.jsonl, the progress bar and the trackers."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.run.trackers import Trackers
from sft.system.atomic_files import write_jsonl


class StageLog(TrainerCallback):
    """Callback that writes log.jsonl, sends its lines to the trackers and draws a progress bar."""

    def __init__(self, path: Path, *, label: str, trackers: Trackers) -> None:
        self.path, self.label, self.trackers = path, label, trackers
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            self.trackers.begin(self.label)
            # After a kill the log may be ahead of the checkpoint, so begin with its lines.
            lines = [entry for entry in state.log_history if "loss" in entry]
            write_jsonl(self.path, lines)
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.label, unit="step"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            entry = {"step": state.global_step, **logs}
            with self.path.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
            self.trackers.log_line(entry)
            self.bar.set_postfix(_short(logs), refresh=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def _short(logs: dict[str, Any]) -> dict[str, str]:
    """Return the values of a log line for the progress bar."""
    shown = {"loss": f"{float(logs['loss']):.3f}"}
    if "tokens_per_second" in logs:
        shown["tok/s"] = f"{logs['tokens_per_second']:,.0f}"
        shown["pad"] = f"{logs['padding']:.0%}"
        shown["GiB"] = f"{logs['memory_gib']:.1f}"
    if "peak_share" in logs:
        shown["of peak"] = f"{logs['peak_share']:.0%}"
    return shown
