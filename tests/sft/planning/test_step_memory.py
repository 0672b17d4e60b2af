"""Memory by part against closed forms, and extrapolated depth against a run at that depth."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig

from sft.model.flops import costs_of_config
from sft.packing.layout import Document, Segment, lay_out
from sft.planning.step_memory import Setup, _largest, _run, step_memory

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def setup(**options):
    plain = {
        "lora": None,
        "weights": torch.float32,
        "compute": torch.float32,
        "attention": "documents",
    }
    return Setup(**(plain | options))


def batch(rows=3, length=48):
    scored = [False] * (length // 2) + [True] * (length - length // 2)
    return lay_out([Document(Segment([5] * length, scored))] * rows, packing=True, rows="flat")


def config(depth, *, vocabulary=256, kind="llama", **more):
    return AutoConfig.for_model(
        kind, num_hidden_layers=depth, vocab_size=vocabulary, **SHAPE, **more
    )


@pytest.mark.parametrize(
    ("vocabulary", "options"),
    [
        (64, {}),
        (9000, {"checkpointing": True}),
        (64, {"accumulates": True}),
        (9000, {"compute": torch.bfloat16, "attention": "sdpa"}),
        (64, {"lora": LORA, "compute": torch.bfloat16}),
    ],
    ids=lambda o: "-".join(o) or "plain" if isinstance(o, dict) else str(o),
)
def test_a_deep_model_is_extrapolated_from_shallow_ones(vocabulary, options):
    deep = config(9, vocabulary=vocabulary, tie_word_embeddings=vocabulary == 64)
    drawn = step_memory(deep, batch(), setup(**options))
    run = _largest(_run(deep, batch(), setup(**options), training=True))
    assert drawn.total == pytest.approx(run.total, rel=5e-3)
    assert drawn.weights == run.weights and drawn.optimizer == run.optimizer


def test_layers_of_two_types_are_extrapolated_by_their_pattern():
    deep = config(13, kind="gemma3_text", head_dim=16, sliding_window=16)
    drawn = step_memory(deep, batch(), setup(attention="sdpa"))
    run = _largest(_run(deep, batch(), setup(attention="sdpa"), training=True))
    assert drawn.total == pytest.approx(run.total, rel=5e-3)


def test_weights_moments_and_gradients_are_four_bytes_a_parameter():
    model = config(2)
    parameters = costs_of_config(model).parameters.total
    found = step_memory(model, batch(rows=1, length=2), setup(accumulates=True))
    assert found.optimizer == 8 * parameters
    assert 0 <= found.weights - 4 * parameters < 1000  # rotary frequencies
    assert found.gradients == 4 * parameters
    adapter = step_memory(model, batch(), setup(lora=LORA, compute=torch.bfloat16))
    trained = costs_of_config(model, lora=LORA).parameters.trainable
    assert adapter.optimizer == 8 * trained
    assert 0 <= adapter.weights - 2 * parameters - 4 * trained < 1000


def test_logits_are_those_of_scored_tokens_only():
    model = config(1, vocabulary=5000)
    found = step_memory(model, batch(rows=3, length=48), setup())
    copies = found.logits / (4 * 5000 * 3 * 24)  # float32, V, scored tokens
    assert copies == 1  # powers, which its backward pass turns into gradients slice by slice
    longer = step_memory(model, batch(rows=3, length=96), setup())
    assert longer.logits == 2 * found.logits


def test_checkpointing_leaves_of_each_layer_its_input():
    tokens, width = 3 * 480, 64  # so many that the adapter's gradients weigh little beside them
    long = batch(length=480)
    shallow, deep = (
        step_memory(config(n, vocabulary=64), long, setup(checkpointing=True, lora=LORA))
        for n in (4, 8)
    )
    assert (deep.activations - shallow.activations) == pytest.approx(
        4 * tokens * width * 4, rel=0.05
    ), (shallow, deep)


def test_gradients_of_a_tied_matrix_are_added_in_place():
    model = config(1, vocabulary=9000, tie_word_embeddings=True)
    found = step_memory(model, batch(rows=1, length=16), setup())
    matrix = 4 * 9000 * SHAPE["hidden_size"]
    assert 2 * matrix < found.activations < 2.5 * matrix


def test_a_plan_does_not_change_the_adapters_settings():
    """PEFT writes the layers of a model into them; those of a shallow one would remain."""
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    step_memory(config(1), batch(), setup(lora=lora))
    costs_of_config(config(1), lora=lora)
    assert lora.target_modules == "all-linear"


FREED = """
import sys, psutil, torch
from sft.model.placement import return_freed_memory
if sys.argv[1] == "set":
    return_freed_memory()
torch.empty(6 * 2**20).fill_(1)  # 24 MiB, which raises glibc's threshold to this
before = psutil.Process().memory_info().rss
held, kept = [], []
for _ in range(40):
    held.append(torch.empty(2**20).fill_(1))  # 4 MiB
    kept.append(torch.empty(5000).fill_(1))  # stays behind it
held.clear()
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_a_run_returns_what_it_has_freed_as_the_plan_counts():
    own = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    kept, returned = (
        int(
            subprocess.run(
                [sys.executable, "-c", FREED, how], env=own, capture_output=True, check=True
            ).stdout
        )
        for how in ("default", "set")
    )
    assert kept > 100 * 2**20  # else this shows nothing
    assert returned < 4 * 2**20
