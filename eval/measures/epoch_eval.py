"""Repetition and benchmarks of a model in training, at the end of each epoch.

DeepSeek LLM (arXiv 2401.02954, section 4) watched its 7B and 67B models so: scores on GSM8K and
HumanEval went on rising with the epochs of the one, the other was soon at its bound, and repetition
told what the data did. The section `eval.each_epoch` switches it on. It is a small measure, of some
prompts and the first documents of each task, in the chat template as the chat models' own, on the
model as it trains, in training's arithmetic; what is decided rests on the measure of the finished
stages. Rows are kept in STAGE/epochs.jsonl, all answers in STAGE/epochs/EPOCH/.
"""

import logging
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.graders.isolation import RunCode
from eval.measures import repetition
from eval.measures.measure import task_format
from eval.measures.tracker_metrics import tracker_values
from eval.metrics.formatting import percent, percent_range
from eval.metrics.stats import BITS_PER_BYTE
from eval.tasks.benchmark import run_benchmark, scores_key
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource
from sft.config.sections import EvalSection, Preset
from sft.context import EvalPoint, InTraining, RunContext
from sft.data.prompts import evenly_spaced, read_repetition_prompts
from sft.distributed.sharding import sharding_strategy
from sft.errors import UserError
from sft.run.stage_folders import STAGE_FOLDERS
from sft.system.atomic_files import write_jsonl
from sft.training.eval_callbacks import read_rows

log = logging.getLogger(__name__)


def check_epochs(preset: Preset) -> None:
    """Refuse to measure weights that processes cannot lend each other in training.

    Raises:
        UserError: the launcher asks for DeepSpeed.
    """
    if preset.eval.each_epoch.enabled and sharding_strategy() == "DeepSpeed":
        raise UserError(
            "eval.each_epoch.enabled=true measures in one process, and under DeepSpeed none holds "
            "all weights; set it to false, or train with recipes/accelerate/fsdp2.yaml or ddp.yaml"
        )


def epoch_measure(section: EvalSection, context: RunContext) -> InTraining | None:
    """What `context.after_epoch` is to be: None where the preset does not ask for it.

    The function writes generations.jsonl and samples/<task>.jsonl and returns `repetition` and
    `benchmarks` (and `language`) as `eval.measures.measure` has them in scores.json.

    Raises:
        UserError: the prompts cannot be read.
    """
    own = section.each_epoch
    if not own.enabled:
        return None
    prompts: list[dict[str, Any]] = []
    if own.prompts and section.repetition.prompts:
        prompts = evenly_spaced(read_repetition_prompts(section.repetition), own.prompts)
    tasks = section.tasks if own.tasks is None else own.tasks

    def measure(model: Any, end: EvalPoint) -> dict[str, Any]:
        began = time.monotonic()
        row: dict[str, Any] = {}
        name = f"{end.stage}: epoch {end.epoch:g}"
        with tqdm(total=len(prompts) + len(tasks), desc=name, leave=False) as bar:
            if prompts:
                cap = section.repetition.cap
                rows = repetition.greedy_answers(
                    model, context.tokenizer, prompts, cap=cap, progress=bar.update
                )
                write_jsonl(end.folder / "generations.jsonl", rows)
                row["repetition"] = repetition.summarize(rows)
            for task in tasks:
                engine = LmEvalModel(
                    *(model, context.tokenizer),
                    chat=True,
                    seed=context.seed,
                    max_unknown=context.max_unknown,
                )
                entry = run_benchmark(
                    engine,
                    task=task,
                    source=TaskSource.of(section),
                    form=task_format(task, section, chat=True),
                    limit=own.limit,
                    file=end.folder / "samples" / f"{task}.jsonl",
                    code=RunCode.of(section),
                )
                row.setdefault(scores_key(entry), {})[task] = entry
                bar.update()
        log.info("%s: %s (%.1f s)", name, _in_words(row), time.monotonic() - began)
        context.trackers.log_values(end.stage, tracker_values(row, "epoch"), step=end.step)
        return row

    return measure


def rows_in_training(folder: Path, file: str) -> dict[str, list[dict[str, Any]]]:
    """The `epochs` and `loops` of results.json: the rows of each finished stage that has any in its
    `file`, by its name."""
    found = {
        name: read_rows(folder / place / file)
        for name, place in STAGE_FOLDERS.items()
        if (folder / place / "done.json").is_file()
    }
    return {name: rows for name, rows in found.items() if rows}


def _in_words(row: dict[str, Any]) -> str:
    parts = []
    if rate := row.get("repetition"):
        of = f"of {rate['n']} answers ({percent_range(rate['ci'])})"
        parts.append(f"{percent(rate['rate'])} {of} repeat themselves")
    parts += [f"{t} {percent(e['score'])}" for t, e in row.get("benchmarks", {}).items()]
    parts += [f"{t} {e[BITS_PER_BYTE]:.3f} bits" for t, e in row.get("language", {}).items()]
    return ", ".join(parts)
