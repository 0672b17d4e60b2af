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
from conftest import FAMILY, long
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from sft.config import LoraSection, UserError
from sft.flops import costs_of_config, costs_of_model
from sft.memory import NeedsValues, RowsNotRead, Setup, step_memory
from sft.model import attention_for
from sft.packing import Document, Segment, lay_out
from sft.proof import settle_layout
from sft.scoring import enable_scoring, log_probs, rows_of
from sft.targets import add_adapter, lora_config, reach_of

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
    "KimiLinear": LATENT | {"num_hidden_layers": 4},
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
    "Qwen4ExpText": {"num_hidden_layers": 4},
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
