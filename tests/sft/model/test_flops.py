"""Counts of parameters and operations against published sizes, torch's counter, closed forms."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from sft.model.flops import (
    attended_pairs,
    backward_flops,
    costs_of_config,
    costs_of_model,
    forward_flops,
    training_flops,
)
from sft.packing.layout import Document, Segment, Span, attention_mask, pack
from sft.packing.logprobs import enable_scoring, log_probs

LLAMA = {"num_attention_heads": 32, "vocab_size": 128256, "hidden_size": 4096}
# Sizes as their authors publish them (the totals in the hub's safetensors headers).
PUBLISHED = {
    "Llama-3-8B": (
        8_030_261_248,
        "llama",
        LLAMA | {"intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8},
    ),
    "Qwen3-0.6B": (
        596_049_920,
        "qwen3",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "SmolLM2-135M": (
        134_515_008,
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "GPT-2": (124_439_808, "gpt2", {}),
    "Mixtral-8x7B": (46_702_792_704, "mixtral", {"num_key_value_heads": 8}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    published, kind, options = PUBLISHED[name]
    parameters = costs_of_config(AutoConfig.for_model(kind, **options)).parameters
    assert parameters.total == parameters.trainable == published


def test_parts_of_llama_3_are_those_of_its_shapes():
    _, kind, options = PUBLISHED["Llama-3-8B"]
    parameters = costs_of_config(AutoConfig.for_model(kind, **options)).parameters
    d, kv = 4096, 1024
    assert parameters.embedding == parameters.head == 128256 * d
    assert parameters.attention == 32 * (2 * d * d + 2 * d * kv)
    assert parameters.mlp == 32 * 3 * d * 14336
    assert parameters.other == (2 * 32 + 1) * d


def test_a_gated_model_of_the_paper_s_proportions_costs_what_its_formula_says():
    # 12 d^2 a layer: four square attention matrices and three of d x 8d/3.
    n, d, length = 3, 96, 40
    config = AutoConfig.for_model(
        "llama",
        hidden_size=d,
        intermediate_size=8 * d // 3,
        num_hidden_layers=n,
        num_attention_heads=4,
        vocab_size=50,
    )
    found = training_flops(
        costs_of_config(config), [Span(0, 0, length, ())], scored=0, causal=False
    )
    assert found == length * (72 * n * d**2 + 12 * n * d * length)


def test_experts_cost_only_what_a_token_visits():
    # Mixtral's authors: 47B parameters, 13B of them used by a token.
    costs = costs_of_config(AutoConfig.for_model("mixtral", num_key_value_heads=8))
    expert = 32 * 3 * 4096 * 14336
    router = 32 * 8 * 4096
    assert costs.trained == costs.parameters.attention + router + 2 * expert
    assert round((costs.trained + 2 * costs.head) / 1e9) == 13


def counted(model, ids, *, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids).logits.float().sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 24}),
        ("gemma2", {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64}),
        ("gpt2", {}),
        (
            "deepseek_v3",
            {
                "kv_lora_rank": 16,
                "q_lora_rank": 24,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 16,
                "v_head_dim": 12,
                "num_key_value_heads": 4,
                "first_k_dense_replace": 9,
            },
        ),
    ],
)
def test_forward_and_backward_are_those_that_torch_counts(kind, options):
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 101,
    }
    sizes |= {} if kind == "gpt2" else {"intermediate_size": 128, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    costs = costs_of_model(model)
    assert costs == costs_of_config(config)
    length = 20
    ids = torch.randint(100, (2, length))
    load = [Span(r, 0, length, ()) for r in range(2)]
    options = {"scored": 2 * length, "causal": False}
    assert forward_flops(costs, load, **options) == counted(model, ids, backward=False)
    assert training_flops(costs, load, **options) == counted(model, ids, backward=True)


def test_an_adapter_s_pass_is_the_one_that_torch_counts():
    model = make_tiny_model(tie_word_embeddings=False)
    model.set_attn_implementation("eager")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    full = costs_of_model(model)
    whole = model.config
    model = get_peft_model(model, lora)
    costs = costs_of_model(model)
    assert costs == costs_of_config(whole, lora=lora)
    assert costs.parameters.adapter == costs.parameters.trainable
    assert costs.parameters.total - costs.parameters.adapter == full.parameters.total
    assert costs.frozen == full.trained
    load = [Span(0, 0, 16, ())]
    options = {"scored": 16, "causal": False}
    ids = torch.randint(200, (1, 16))
    assert forward_flops(costs, load, **options) == counted(model, ids, backward=False)
    # Nothing below the first layer is trained, so what reads the embedding owes it no gradient:
    # q, k and v with their adapters' inner matrices. The count takes all layers alike.
    unneeded = 2 * 16 * (32 * 32 + 2 * 32 * 16 + 3 * 4 * 32)
    found = forward_flops(costs, load, **options) + backward_flops(costs, load, **options)
    assert found - unneeded == counted(model, ids, backward=True)


@pytest.mark.parametrize("window", [None, 3, 7, 100])
def test_pairs_are_those_of_the_attention_mask(window):
    documents = [
        Document(Segment([1] * 6, [False] * 6), (Segment([2] * 3, [True] * 3),)),
        Document(Segment([1] * 2, [False] * 2), (Segment([2] * 9, [True] * 9),) * 2),
        Document(Segment([1] * 11, [False] * 11)),
    ]
    batch = pack(documents, row_length=24, bucket=8)
    padding = batch.input_ids.numel() - batch.num_tokens
    assert attended_pairs(batch.spans, window=window) == (
        attention_mask(batch, window=window).sum() - padding
    )


def test_sliding_layers_cost_their_window():
    window, length = 8, 50
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 90,
    }
    costs = costs_of_config(AutoConfig.for_model("gemma2", **sizes, sliding_window=window))
    spans = [Span(0, 0, length, ())]
    seen = length * (length + 1) // 2, window * (window + 1) // 2 + (length - window) * window
    attention = forward_flops(costs, spans, scored=0) - 2 * length * costs.trained
    assert attention == 2 * 2 * (2 * 64) * sum(seen)


def test_scored_rows_cost_the_head_only_where_they_score():
    model = enable_scoring(make_tiny_model())
    model.set_attn_implementation("documents")
    document = Document(Segment([5] * 10, [False] * 10), (Segment([6] * 4, [True] * 4),) * 2)
    batch = pack([document], row_length=24, bucket=2)
    # The counter knows torch's plain attention, not the fused one of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        log_probs(model, batch)
    costs = costs_of_model(model)
    assert counter.get_total_flops() == forward_flops(
        costs, batch.spans, scored=len(batch.target), causal=False
    )
