"""A probe of a model in training: do its answers begin to loop?

The repetition rate of some prompts at a short cap, greedy, in training's arithmetic: enough to see
a model that breaks, not to tell two models apart. Rows are kept in STAGE/loops.jsonl, the
answers in STAGE/loops/STEP/.
"""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.measures import repetition
from sft.config.sections import Preset
from sft.context import EvalPoint, InTraining, RunContext
from sft.data.prompts import evenly_spaced, read_repetition_prompts
from sft.distributed.sharding import sharding_strategy
from sft.system.atomic_files import read_jsonl, write_jsonl
from sft.training.eval_callbacks import OutOfTime

log = logging.getLogger(__name__)

PROMPTS = 24
# Tokens of an answer; one that loops is followed to twice this. Loops that begin later are seen by
# the measure behind the stage alone: of the quickstart's base model, 8% loop at 240, 32% at 480.
CAP = 256


def loop_probe(preset: Preset, context: RunContext) -> InTraining | None:
    """What `context.loop_probe` is to be; None where it is switched off, or cannot be, as is said.

    Raises:
        UserError: the prompts cannot be read.
    """
    measured = preset.eval.repetition
    if not preset.run.loop_checks:
        return None
    if measured.prompts is None:
        log.info("loops in training: not looked for, since eval.repetition.prompts is null")
        return None
    if sharding_strategy() == "DeepSpeed":
        log.info("loops in training: not looked for, under DeepSpeed no process holds all weights")
        return None
    prompts = evenly_spaced(read_repetition_prompts(measured), PROMPTS)
    cap = min(CAP, measured.cap)

    def probe(model: Any, moment: EvalPoint, *, start: str | None = None) -> dict[str, Any]:
        began = time.monotonic()

        def tick() -> None:
            if time.monotonic() - began > moment.seconds:
                raise OutOfTime

        rows = None
        if moment.step == 0 and start is not None:
            file = context.folder / "eval" / start / "generations.jsonl"
            rows = _measured(file, prompts, context.tokenizer, cap=cap)
        if rows is None:
            rows = repetition.greedy_answers(model, context.tokenizer, prompts, cap=cap, tick=tick)
        write_jsonl(moment.folder / "generations.jsonl", rows)
        found = repetition.summarize(rows)
        log.info(
            "%s: step %d: %.0f of %d short answers repeat themselves (%.1f s)",
            *(moment.stage, moment.step, found["rate"] * found["n"], found["n"]),
            time.monotonic() - began,
        )
        return {"repetition": found}

    return probe


def starting_at(context: RunContext, name: str) -> RunContext:
    """The context of a stage that begins with a model which was measured under this name: the look
    before its first step reads the answers that are on disk."""
    probe: Any = context.loop_probe
    return context if probe is None else replace(context, loop_probe=partial(probe, start=name))


def _measured(
    file: Path, prompts: list[dict[str, Any]], tokenizer: Any, *, cap: int
) -> list[dict[str, Any]] | None:
    """The answers to the prompts that were measured at a larger cap; None where one is missing."""
    stored = {row["id"]: row for row in read_jsonl(file)} if file.is_file() else {}
    if not all(prompt["id"] in stored for prompt in prompts):
        return None
    if any(stored[p["id"]]["messages"] != list(p["messages"]) for p in prompts):
        return None
    return [repetition.at_cap(stored[p["id"]], p, tokenizer, cap=cap) for p in prompts]
