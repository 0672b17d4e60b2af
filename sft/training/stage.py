"""A training stage, from the model that it starts from to the model that it saves."""

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
from sft.run.stage_folders import STAGE_FOLDERS
from sft.run.stage_summary import StageFacts
from sft.system.atomic_files import remove, sync_and_rename, temporary_name, writing
from sft.tokenization.input_hashes import rows_fingerprint, tokenizer_fingerprint
from sft.tokenization.prepare import Example
from sft.training import divergence
from sft.training.eval_callbacks import EPOCHS_FILE, LOOPS_FILE
from sft.training.trainer import train_sft

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedStage:
    """An SFT stage with its rows."""

    name: str  # of the resulting model
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
    """Train a stage unless it is finished, and return the directory of its model.

    Args:
        start: the model or adapter that the stage starts from.
        inputs: its other inputs as plain data; a change runs the stage again.
        train: trains the loaded model in place, given the stage's folder.
        texts: token ids of some rows, on which a merged adapter is compared with the original.
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
        seed += 1 + list(STAGE_FOLDERS.values()).index(name)  # a new adapter gets other directions
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
    """Save the model to a temporary folder, to find errors before it is trained.

    All processes call it; the model is unchanged.

    Raises:
        UserError: a library cannot save the model.
        WriteFailed: the disk is full, or writing fails.
    """
    if sharding_strategy() == "DeepSpeed":
        return  # DeepSpeed has the weights only while it trains
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
    """Run supervised fine-tuning on token rows and return the directory of its model."""

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
