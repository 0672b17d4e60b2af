"""Every mixture of experts of transformers: planned, counted and trained, or refused.

Tiny, with random weights, in the sizes of `MIXTURES`. TRUING_LONG=1 runs all of them.
"""

import importlib
import inspect
import re
import warnings
from collections import Counter

import pytest
import torch
import transformers
from launching import long
from tiny_models import FAMILY
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from sft.config.sections import LoraSection
from sft.errors import UserError
from sft.model.flops import costs_of_config, costs_of_model
from sft.model.loading import attention_for
from sft.model.lora_targets import adapter_coverage, add_adapter, lora_config
from sft.packing.equivalence import verify_packing
from sft.packing.layout import Document, Segment, lay_out
from sft.packing.logprobs import enable_scoring, log_probs, row_layout
from sft.planning.step_memory import NeedsValues, Setup, step_memory

SIZES = {
    **{"head_dim": 8, "moe_intermediate_size": 16, "intermediate_size_mlp": 64},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_num_experts": 4, "moe_topk": 2, "moe_k": 2, "shared_expert_intermediate_size": 16},
    **{"max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False},
    **{"n_group": 1, "topk_group": 1, "num_expert_group": 1},
}
RANKS = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 8},
}
LATENT = RANKS | {"first_k_dense_replace": 1}
INDEXED = LATENT | {"index_topk": 64, "index_n_heads": 2, "index_head_dim": 16}
LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_hidden_layers": 4},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

# Configurations with experts, and what each needs apart from `SIZES`.
MIXTURES = {
    "Afmoe": {},
    "AriaText": {"moe_num_shared_experts": 1},
    "AXK1": LATENT,
    "AXK2": LATENT,
    "BailingHybrid": LATENT | {"num_hidden_layers": 4, "layer_group_size": 2},
    "Beam": {"mlp_layer_types": ["dense", "sparse"]},
    "Cohere2Moe": {},
    "Dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_top_k": 2},
        **{"d_model": 32, "n_heads": 4, "n_layers": 2},
    },
    "DeepseekV2": LATENT,
    "DeepseekV3": LATENT,
    "DeepseekV32": INDEXED,
    "DeepseekV4": {},
    "Dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "Dots3NoteText": INDEXED,
    "Ernie4_5_Moe": {},
    "ExaoneMoe": {"first_k_dense_replace": 1},
    "FlexOlmo": {},
    "Flint": {"mlp_only_layers": [0]},
    "Gemma4Text": {
        **{"enable_moe_block": True, "top_k_experts": 2, "global_head_dim": 16},
        **{"vocab_size_per_layer_input": 260, "hidden_size_per_layer_input": 8},
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Glm4Moe": {},
    "Glm4MoeLite": LATENT,
    "GlmMoeDsa": INDEXED,
    "GptOss": {},
    "GraniteMoe": {},
    "GraniteMoeSWA": {},
    "GraniteMoeHybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "GraniteMoeShared": {},
    "HunYuanMoEV1": {},
    "HYV3": {},
    "HYV4": {},
    "Inkling2Text": {},
    "InklingText": {},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "JetMoe": {},
    "KimiLinear": LATENT | {"layer_types": ["linear_attention", "full_attention"]},
    "Kolibri1": {},
    "Laguna": {},
    "Lfm2Moe": {"num_dense_layers": 0, "layer_types": ["conv", "full_attention"]},
    "Llama4Text": {},
    "LongcatFlash": RANKS,
    "Mellum": {},
    "MiMoV2Flash": {},
    "MiniMax": {},
    "MiniMaxM2": {},
    "MiniMaxM3VLText": {},
    "Mixtral": {},
    "NemotronH": {},
    "Olmoe": {},
    "Phimoe": {},
    "Qwen2Moe": {},
    "Qwen3_5MoeText": LINEAR,
    "Qwen3Moe": {},
    "Qwen3Next": LINEAR,
    "Qwen4ExpText": {
        **{"layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2},
        **{"indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 64},
        "indexer_compress_ratio": 4,
    },
    "SolarOpen": {},
    "Zaya": {"num_experts_per_tok": 1},
}


class ProductsWithWeights(TorchDispatchMode):
    """Multiply-adds of products of which one side is a parameter of the model, by its name."""

    def __init__(self, model):
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): n for n, p in model.named_parameters()}
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        kind = func.overloadpacket.__name__
        sides = {"addmm": args[1:3], "baddbmm": args[1:3]}.get(kind, args[:2])
        if kind in ("mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "convolution"):
            own = [n for t in sides if (n := self.names.get(t.untyped_storage().data_ptr()))]
            if own and kind == "convolution":  # its padding is no work
                self.counts[own[0]] += sides[1].numel() * sides[0].shape[0] * sides[0].shape[-1]
            elif own:
                self.counts[own[0]] += found.numel() * sides[0].shape[-1]
        return found


def config_of(name):
    kind = getattr(transformers, f"{name}Config")
    known = {*vars(kind()), *kind.attribute_map, *FAMILY, *MIXTURES[name]}
    sizes = FAMILY | SIZES | MIXTURES[name]
    return kind(**{key: value for key, value in sizes.items() if key in known})


IDS = list(range(4, 68))  # as many as leave a row no padding
DOCUMENT = Document(Segment(IDS, [False] + [True] * 63))
ADAPTER = LoraSection(r=2)
# Left out: products with a matrix for each head, of which shapes say nothing.
EACH_HEAD = ("rel_logits_proj.proj",)
# Counted on average, since the tokens decide how many of its experts have weights; and a position
# of padding, which one that looks at the token before adds to its rows.
NEARLY = {"LongcatFlash", "Zaya"}
# The code of these reads values of tensors, so their memory is shown as unknown.
WITHOUT_MEMORY = {"Dbrx", "JetMoe", "LongcatFlash", "Qwen4ExpText"}
# The adapters of these modules get no gradient from the loss: they choose what others read.
CHOOSERS = re.compile(r"\.(indexer|compressor|router|gate)\.")
SHORT = ("GraniteMoeShared", "DeepseekV2", "Gemma4Text")  # of these the test runs every time


def test_no_mixture_is_missing():
    """Sources that name a class of experts, beside those of `MIXTURES`."""
    missing = set()
    for config in AutoModelForCausalLM._model_mapping:
        known = AutoModelForCausalLM._model_mapping[config]
        module = importlib.import_module(known.__module__)
        source = inspect.getsource(module)
        if re.search(r"^class \w*Experts?\w*\(|Experts\(", source, re.M):
            missing.add(config.__name__.removesuffix("Config"))
    composed = {"Dots3Note", "Gemma4", "Llama4", "Qwen3_5Moe", "Qwen4Exp"}  # of a text model above
    assert missing - composed <= MIXTURES.keys()


def really_ran(model, batch):
    """Multiply-adds of a token in the layers' matrices, by parameter, of a step that ran."""
    with ProductsWithWeights(model) as products:
        loss = -log_probs(model, batch).sum()
    loss.backward()
    head = model.get_output_embeddings().weight
    names = {n for n, p in model.named_parameters() if p is not head}
    return {n: c // batch.num_tokens for n, c in products.counts.items() if n in names}


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=[long, pytest.mark.slow]) for n in MIXTURES]
)
def test_a_mixture_is_planned_counted_and_trained_or_refused(name):
    """What is counted is what torch multiplies; every expert has an adapter, which learns."""
    warnings.simplefilter("ignore")
    config = config_of(name)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).float()
    assert any("expert" in n or "moe" in n for n, _ in plain.named_parameters()), "no mixture"
    tokens = torch.tensor([IDS])
    plain(input_ids=tokens, labels=tokens).loss.backward()
    try:
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention_for(config, "documents")
        )
        verify_packing(enable_scoring(model.float().eval()), training=torch.float32)
        planned(config, name)
        batch = lay_out([DOCUMENT], packing=True, rows=row_layout(model))
        assert batch.input_ids.numel() == batch.num_tokens
        ran = really_ran(model.train(), batch)
        costs = costs_of_model(model)
        assert costs == costs_of_config(config)
        of_heads = [p.numel() for n, p in model.named_parameters() if n.endswith(EACH_HEAD)]
        counted = costs.frozen + costs.trained - sum(of_heads)
        found = sum(c for n, c in ran.items() if not n.endswith(EACH_HEAD))
        assert counted == found or (name in NEARLY and abs(counted / found - 1) < 0.05)
        lora = lora_config(ADAPTER)
        adapted = add_adapter(model, lora)
        assert costs_of_model(adapted) == costs_of_config(config, lora=lora)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert not {kind for kind in adapter_coverage(adapted).not_adapted if "Expert" in kind}
    log_probs(adapted, batch).sum().backward()
    without = {n for n, p in adapted.named_parameters() if p.requires_grad and p.grad is None}
    assert not {n for n in without if not CHOOSERS.search(n) and "experts" in n}


def planned(config, name):
    """The plan's memory holds the weights and moments that training has, or it is not known."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    for lora in (None, lora_config(ADAPTER)):
        setup = Setup(lora, torch.float32, torch.float32, attention_for(config, "sdpa"))
        batch = lay_out([DOCUMENT], packing=True, rows="masked")
        parameters = costs_of_config(config, lora=lora).parameters
        try:
            found = step_memory(config, batch, setup)
        except NeedsValues:
            assert name in WITHOUT_MEMORY
            continue
        assert found.optimizer == 8 * parameters.trainable
        assert 0 <= found.weights - 4 * parameters.total <= buffers + 20_000
