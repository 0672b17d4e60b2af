"""A training stage from the model it starts with to the published one."""

import copy
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from sft.config.sections import SftStage
from sft.context import RunContext
from sft.distributed.collectives import run_on_main
from sft.distributed.sharding import full_weights, sharding_strategy
from sft.errors import UserError
from sft.export.merge import MERGE_ROWS, merge_before_stage
from sft.model.loading import bare_model, load_trainable, save_model
from sft.run.adapters import is_adapter
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage
from sft.run.stage_facts import StageFacts
from sft.run.stage_folders import STAGE_FOLDERS
from sft.system.atomic_files import remove, sync_and_rename, temporary_name, writing
from sft.tokenization.fingerprints import rows_fingerprint, tokenizer_fingerprint
from sft.tokenization.prepare import Example
from sft.training import divergence
from sft.training.eval_callbacks import EPOCHS_FILE, LOOPS_FILE
from sft.training.trainer import train_sft

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedStage:
    """An SFT stage of the chain with the rows that it trains on."""

    name: str  # of the model that it makes
    section: SftStage
    rows: Dataset  # columns `input_ids`, `trained`
    examples: tuple[Example, ...] = ()


def run_stage(
    context: RunContext,
    name: str,
    *,
    start: str,
    inputs: dict[str, Any],
    train: Callable[[Any, Path], StageFacts],
    texts: Sequence[Sequence[int]],
    keep: tuple[str, ...] = (),
) -> str:
    """Train a stage unless it is finished; returns the directory of its model.

    Args:
        start: the model (or adapter) that the stage begins with.
        inputs: what else it reads, as plain data; a change makes the stage run again.
        train: given the loaded model and the stage's folder, trains the model in place.
        texts: token ids of some of its rows; where an adapter is merged before the stage begins,
            what came of it is compared on these.
    """
    state = PartialState()
    read = {
        "weights": context.weights_key(start),
        "tokenizer": tokenizer_fingerprint(context.tokenizer),
        "lora": fingerprint(asdict(context.lora)),
        "dtype": str(context.placement.compute),
        "seed": str(context.seed),
    }
    if context.tokens:
        read["tokens"] = fingerprint(list(context.tokens))
    seed = context.seed
    if is_adapter(start) and context.lora.between_stages == "merge":
        keep = (*keep, "start")
        start = merge_before_stage(
            start, context, folder=context.folder / name / "start", rows=texts
        )
        seed += 1 + list(STAGE_FOLDERS.values()).index(name)  # the new adapter's own directions
    stage = Stage(
        context.folder / name, read | {k: fingerprint(v) for k, v in inputs.items()}, keep
    )
    target = stage.folder / "model"
    finished = stage.finished()
    state.wait_for_everyone()
    if finished is not None:
        log.info("%s: finished already, skipped", name)
        return str(target)
    if state.is_main_process:
        stage.begin()
    state.wait_for_everyone()
    model = load_trainable(
        start,
        context.placement,
        lora=context.lora,
        seed=seed,
        trust_remote_code=context.trust_remote_code,
        tokens=context.tokens,
    )
    try_saving(model, context.tokenizer, stage.folder)
    facts = train(model, stage.folder)
    weights = full_weights(model)
    if state.is_main_process:
        temporary = temporary_name(target)
        shutil.rmtree(temporary, ignore_errors=True)
        with writing(target):
            save_model(model, context.tokenizer, temporary, weights=weights)
            if target.exists():
                remove(target)
            sync_and_rename(temporary, target)
        stage.finish(
            outputs=["model", "log.jsonl"],
            facts=asdict(facts),
            kept=(EPOCHS_FILE, LOOPS_FILE, divergence.FILE),
        )
    state.wait_for_everyone()
    return str(target)


def try_saving(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what a stage publishes at its end to a working folder that is removed again, so that a
    model that cannot be saved is found before it is trained. All processes call it; the model is as
    it was. DeepSpeed has its weights only once it trains: there nothing is tried.

    Raises:
        UserError: a library refuses to save the model.
        WriteFailed: the disk does not take it.
    """
    if sharding_strategy() == "DeepSpeed":
        return
    bare, draft = bare_model(model), temporary_name(folder / "trial")
    use_cache, settings = bare.config.use_cache, copy.deepcopy(bare.generation_config)
    weights = full_weights(model)

    def write() -> None:
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with writing(draft):
                save_model(model, tokenizer, draft, weights=weights)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{folder.name}: the model could not be saved at the end of the stage ({reason}), "
                "so it is not trained; correct what is named in the files of the model, or give "
                "another model"
            ) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    run_on_main(write)
    bare.config.use_cache, bare.generation_config = use_cache, settings


def run_sft_stage(planned: PlannedStage, context: RunContext, *, start: str) -> str:
    """A stage of supervised fine-tuning on token rows; returns the directory of its model."""

    def train(model: Any, folder: Path) -> StageFacts:
        return train_sft(
            model,
            planned.rows,
            section=planned.section,
            context=context,
            folder=folder,
            label=planned.name,
        )

    return run_stage(
        context,
        STAGE_FOLDERS[planned.name],
        start=start,
        inputs={"section": asdict(planned.section), "rows": rows_fingerprint(planned.rows)},
        train=train,
        texts=planned.rows[:MERGE_ROWS]["input_ids"],
    )
