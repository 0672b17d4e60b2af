"""Training on CUDA as it is chosen there: attention, head, kernels, 4 bits; run on a GPU alone."""

import hashlib
import importlib.util
import random

import pytest
import torch
from datasets import Dataset
from tiny_models import make_tiny_model

from dpo.trainer import train_dpo
from sft.chat_template.template import ensure_template
from sft.config.sections import DpoStage, LoraSection, ModelSection, SftStage
from sft.context import RunContext
from sft.model.loading import load_trainable, save_model
from sft.model.placement import choose_placement
from sft.training.trainer import train_sft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]
OPTIONS = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_length": 512}


def chats(count=32):
    draw = random.Random(0)
    rows = [[draw.randrange(4, 250) for _ in range(draw.randrange(8, 200))] for _ in range(count)]
    return Dataset.from_list(
        [{"input_ids": ids, "trained": [i > 3 for i in range(len(ids))]} for ids in rows]
    )


def pairs(count=16):
    draw = random.Random(1)

    def ids(most):
        return [draw.randrange(4, 250) for _ in range(draw.randrange(4, most))]

    rows = []
    for _ in range(count):
        row = {"prompt_ids": ids(150), "chosen_ids": ids(60), "rejected_ids": ids(60)}
        scored = {f"{k}_scored": [True] * len(row[f"{k}_ids"]) for k in ("chosen", "rejected")}
        rows.append(row | scored)
    return Dataset.from_list(rows)


def trained(stage, tokenizer, folder, *, lora, four_bit=False):
    """Facts of a stage on a tiny model, a hash of what it trained, and GiB of the weights."""
    folder.mkdir()
    ensure_template(tokenizer)
    save_model(make_tiny_model(hidden_size=128, num_key_value_heads=4), tokenizer, folder / "base")
    placement = choose_placement(ModelSection(load_in_4bit=four_bit))
    section = LoraSection(r=8 if lora else 0)
    model = load_trainable(
        str(folder / "base"), placement, lora=section, seed=0, trust_remote_code=False
    )
    linear = model.get_submodule(next(n for n, _ in model.named_modules() if "down_proj" in n))
    size = getattr(linear, "base_layer", linear).weight.nbytes
    context = RunContext(folder, tokenizer, placement, section, 0, False)
    common = {"context": context, "folder": folder}
    if stage == "sft":
        facts = train_sft(
            model, chats(), section=SftStage(trl=SftStage().trl | OPTIONS), label="sft", **common
        )
    else:
        facts = train_dpo(
            model,
            pairs(),
            section=DpoStage(trl=DpoStage().trl | OPTIONS | {"num_train_epochs": 4}),
            cache=folder / "reference",
            **common,
        )
    made = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            made.update(parameter.detach().float().cpu().numpy().tobytes())
    return facts, made.hexdigest(), size


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_runs_give_the_same_bits(stage, lora, tiny_tokenizer, tmp_path):
    first, bits, _ = trained(stage, tiny_tokenizer, tmp_path / "a", lora=lora)
    again, same, _ = trained(stage, tiny_tokenizer, tmp_path / "b", lora=lora)
    assert bits == same
    assert (first.loss_first, first.loss_last) == (again.loss_first, again.loss_last)
    assert first.loss_last < first.loss_first


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_over_4_bit_weights_an_adapter_learns_as_over_whole_ones(tiny_tokenizer, tmp_path):
    whole, _, bytes_whole = trained("sft", tiny_tokenizer, tmp_path / "a", lora=True)
    four, _, bytes_four = trained("sft", tiny_tokenizer, tmp_path / "b", lora=True, four_bit=True)
    assert bytes_four * 4 == bytes_whole
    assert four.loss_last < four.loss_first
    assert four.loss_last == pytest.approx(whole.loss_last, rel=0.1)
