"""A probe of a model in training: do its answers begin to loop?

The repetition rate of some prompts at a short cap, greedy, in training's arithmetic: enough to see
a model that breaks, not to tell two models apart. Rows are kept in STAGE/loops.jsonl, the
answers in STAGE/loops/STEP/.
"""

import logging
import time
from typing import Any

from eval import repetition
from sft.config import Preset
from sft.epochs import InTraining, Moment
from sft.prompts import spread
from sft.run import write_jsonl
from sft.setting import Setting
from sft.sharding import spread as spread_by

log = logging.getLogger(__name__)

PROMPTS = 24
# Tokens of an answer; one that loops is followed to twice this. Loops that begin later are seen by
# the measure behind the stage alone: of the quickstart's base model, 16% loop at 240, 53% at 480.
CAP = 256


def loop_probe(preset: Preset, setting: Setting) -> InTraining | None:
    """What `setting.loop_probe` is to be; None where it is switched off, or cannot be, as is said.

    Raises:
        UserError: the prompts cannot be read.
    """
    measured = preset.eval.repetition
    if not preset.run.loop_checks:
        return None
    if measured.prompts is None:
        log.info("loops in training: not looked for, since eval.repetition.prompts is null")
        return None
    if spread_by() == "DeepSpeed":
        log.info("loops in training: not looked for, under DeepSpeed no process holds all weights")
        return None
    prompts = spread(repetition.read(measured), PROMPTS)
    cap = min(CAP, measured.cap)

    def probe(model: Any, moment: Moment) -> dict[str, Any]:
        began = time.monotonic()
        rows = repetition.measure(model, setting.tokenizer, prompts, cap=cap)
        write_jsonl(moment.folder / "generations.jsonl", rows)
        found = repetition.summarise(rows)
        log.info(
            "%s: step %d: %.0f of %d short answers repeat themselves (%.1f s)",
            *(moment.stage, moment.step, found["rate"] * found["n"], found["n"]),
            time.monotonic() - began,
        )
        return {"repetition": found}

    return probe
