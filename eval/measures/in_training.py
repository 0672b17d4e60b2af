"""Measures of a model while it trains: scores at the end of each epoch, and checks for loops.

`eval.each_epoch` follows DeepSeek LLM (arXiv 2401.02954, section 4). The few short answers of
`run.loop_checks` show a model that breaks but compare no two models. Both generate greedily, in the
chat template, in the arithmetic of training.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eval.measures import repetition
from eval.measures.measure import run_task
from eval.measures.tracker_metrics import tracker_values
from eval.metrics.number_format import percent, percent_range
from eval.metrics.stats import BITS_PER_BYTE
from eval.schema import Repetition
from eval.tasks.benchmark import scores_key
from sft.config.sections import EvalSection, Preset
from sft.context import EvalPoint, RunContext, TrainingEval
from sft.data.prompts import evenly_spaced, read_repetition_prompts
from sft.distributed.sharding import sharding_strategy
from sft.errors import UserError
from sft.run.stage_folders import STAGE_FOLDERS
from sft.system.atomic_files import read_jsonl, write_jsonl
from sft.training.eval_callbacks import OutOfTime, read_rows

log = logging.getLogger(__name__)

LOOP_PROMPTS = 24
# Tokens of an answer that is checked for loops; one that loops is continued to twice this. Loops
# that begin later are found after the stage: of the quickstart's base model, 8 % loop at 240 tokens
# and 32 % at 480.
LOOP_CAP = 256


def _obstacle() -> str:
    """Return why a model cannot be measured while it trains, or ""."""
    # Unlike FSDP2, ZeRO-3 cannot gather weights in one process's forward passes.
    by_deepspeed = sharding_strategy() == "DeepSpeed"
    return "under DeepSpeed no process holds all weights" if by_deepspeed else ""


def check_epoch_eval(preset: Preset) -> None:
    """Check that the launcher can measure a model at the end of an epoch: DeepSpeed cannot."""
    if preset.eval.each_epoch.enabled and (obstacle := _obstacle()):
        raise UserError(
            f"eval.each_epoch.enabled=true measures in one process, and {obstacle}; set it to "
            "false, or train with recipes/accelerate/fsdp2.yaml or ddp.yaml"
        )


def epoch_eval(section: EvalSection, context: RunContext) -> TrainingEval | None:
    """Return the measure for `RunContext.epoch_eval`, or None if the preset disables it.

    The measure writes generations.jsonl and samples/TASK.jsonl and returns `repetition`,
    `benchmarks` and `language` in the format of scores.json.

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
    limited = replace(section, limit=own.limit)

    def measure(model: Any, point: EvalPoint) -> dict[str, Any]:
        began = time.monotonic()
        row: dict[str, Any] = {}
        name = f"{point.stage}: epoch {point.epoch:g}"
        with tqdm(total=len(prompts) + len(tasks), desc=name, leave=False) as bar:
            if prompts:
                answers = repetition.greedy_answers(
                    *(model, context.tokenizer, prompts),
                    cap=section.repetition.cap,
                    progress=bar.update,
                )
                row["repetition"] = _store_repetition(answers, point)
            for task in tasks:
                file = point.folder / "samples" / f"{task}.jsonl"
                entry = run_task(model, task, context, limited, chat=True, file=file)
                row.setdefault(scores_key(entry), {})[task] = entry
                bar.update()
        log.info("%s: %s (%.1f s)", name, _summary(row), time.monotonic() - began)
        context.trackers.log_values(point.stage, tracker_values(row, "epoch"), step=point.step)
        return row

    return measure


def _store_repetition(answers: list[dict[str, Any]], point: EvalPoint) -> Repetition:
    write_jsonl(point.folder / "generations.jsonl", answers)
    return repetition.summarize(answers)


def _summary(row: Mapping[str, Any]) -> str:
    parts = []
    if rate := row.get("repetition"):
        of = f"of {rate['n']} answers ({percent_range(rate['ci'])})"
        parts.append(f"{percent(rate['rate'])} {of} repeat themselves")
    parts += [f"{t} {percent(e['score'])}" for t, e in row.get("benchmarks", {}).items()]
    parts += [f"{t} {e[BITS_PER_BYTE]:.3f} bits" for t, e in row.get("language", {}).items()]
    return ", ".join(parts)


def loop_check(preset: Preset, context: RunContext) -> TrainingEval | None:
    """Return the measure for `RunContext.loop_check`, or None, with a log line unless the preset
    disables it.

    Raises:
        UserError: the prompts cannot be read.
    """
    section = preset.eval.repetition
    if not preset.run.loop_checks:
        return None
    obstacle = "eval.repetition.prompts is null" if section.prompts is None else _obstacle()
    if obstacle:
        log.info("answers are not checked for loops in training: %s", obstacle)
        return None
    prompts = evenly_spaced(read_repetition_prompts(section), LOOP_PROMPTS)
    cap = min(LOOP_CAP, section.cap)

    def measure(model: Any, point: EvalPoint, *, start: str | None = None) -> dict[str, Any]:
        began = time.monotonic()

        def check_time() -> None:
            if time.monotonic() - began > point.seconds:
                raise OutOfTime

        tokenizer, answers = context.tokenizer, None
        if point.step == 0 and start is not None:
            file = context.folder / "eval" / start / "generations.jsonl"
            answers = _stored_answers(file, prompts, tokenizer, cap=cap)
        if answers is None:
            answers = repetition.greedy_answers(model, tokenizer, prompts, cap=cap, tick=check_time)
        found = _store_repetition(answers, point)
        log.info(
            "%s: step %d: %.0f of %d short answers repeat themselves (%.1f s)",
            *(point.stage, point.step, found["rate"] * found["n"], found["n"]),
            time.monotonic() - began,
        )
        return {"repetition": found}

    return measure


def starting_at(context: RunContext, name: str) -> RunContext:
    """Return the context of a stage that starts from the model measured under this name, whose
    stored answers are checked for loops before the first step."""
    check: Any = context.loop_check
    return context if check is None else replace(context, loop_check=partial(check, start=name))


def _stored_answers(
    file: Path,
    prompts: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    cap: int,
) -> list[dict[str, Any]] | None:
    """Return the answers measured at a larger cap, cut to `cap`, or None if one is missing."""
    stored = {row["id"]: row for row in read_jsonl(file)} if file.is_file() else {}
    answers = []
    for prompt in prompts:
        row = stored.get(prompt["id"])
        if row is None or row["messages"] != list(prompt["messages"]):
            return None
        answers.append(repetition.at_cap(row, prompt, tokenizer, cap=cap))
    return answers


def rows_in_training(folder: Path, file: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a file of measures for each finished stage that has any."""
    found = {
        name: read_rows(folder / place / file)
        for name, place in STAGE_FOLDERS.items()
        if (folder / place / "done.json").is_file()
    }
    return {name: rows for name, rows in found.items() if rows}
