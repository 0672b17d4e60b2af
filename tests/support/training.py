"""Run a short SFT training of a tiny model."""

import logging

from tiny_models import make_tiny_model

from sft.config.sections import LoraSection, ModelSection, SftStage
from sft.context import RunContext
from sft.model.placement import choose_placement
from sft.packing.logprobs import enable_scoring
from sft.system.atomic_files import read_jsonl
from sft.training.trainer import train_sft

log = logging.getLogger(__name__)

PLACEMENT = choose_placement(ModelSection(dtype="float32"))


def make_context(tokenizer, folder):
    return RunContext(folder, tokenizer, PLACEMENT, LoraSection(), 0, False)


def train(
    rows,
    tokenizer,
    folder,
    *,
    micro=4,
    batch=8,
    packing=True,
    attention="sdpa",
    model=None,
    **options,
):
    folder.mkdir(exist_ok=True)
    model = model or enable_scoring(make_tiny_model(attn_implementation=attention))
    given = {"per_device_train_batch_size": micro, "learning_rate": 1e-2, "max_length": 128}
    section = SftStage(
        train_batch_size=batch, packing=packing, trl=SftStage().trl | given | options
    )
    context = make_context(tokenizer, folder)
    facts = train_sft(model, rows, section=section, context=context, folder=folder, label="sft")
    log = read_jsonl(folder / "log.jsonl")
    return facts, [(entry["loss"], entry["grad_norm"]) for entry in log], model
