"""Every family of causal models that transformers has: scored and continued right, or refused.

Tiny, with random weights. TRUING_LONG=1 runs it, in about a minute.
"""

import warnings

import pytest
import torch
import transformers
from launching import long
from tiny_models import FAMILY
from transformers import AutoModelForCausalLM

from eval.backends.base import ScoreRequest
from eval.backends.transformers_backend import TransformersBackend
from eval.generation.generate import GenerationSettings, generate
from sft.errors import UserError
from sft.model.architecture import check_causal
from sft.model.loading import attention_for
from sft.packing.equivalence import verify_packing
from sft.packing.logprobs import enable_scoring

pytestmark = [long, pytest.mark.slow]

# The same under the names of older families, and few experts.
SIZES = {
    **{"head_dim": 8, "d_model": 32, "n_embd": 32, "hidden_dim": 64, "intermediate_size_mlp": 64},
    **{"n_head": 4, "n_heads": 4, "n_layer": 2, "n_layers": 2},
    **{"max_position_embeddings": 128, "n_positions": 128, "moe_intermediate_size": 16},
    **{"num_experts": 2, "num_local_experts": 2, "n_routed_experts": 2, "num_experts_per_tok": 1},
}
RANKS = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"v_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 2, "n_group": 1},
    **{"topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
}
LINEAR = {
    **{"num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "mlp_only_layers": [0, 1, 2, 3]},
}
# Where the sizes above fit together in another way.
OWN = {
    **dict.fromkeys(("DeepseekV2", "DeepseekV3", "Glm4MoeLite", "Youtu"), RANKS),
    **dict.fromkeys(("Qwen3_5Text", "Qwen3Next"), LINEAR),
    "GPTJ": {"rotary_dim": 8},
    "CodeGen": {"rotary_dim": 8},
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
}
# Of these the sentence is the point; others may be refused for the sizes that they get here.
REFUSED = {"Cohere", "BertGeneration", "Mamba", "Rwkv", "MiniMax"}
LARGEST = 30_000_000  # parameters: what is larger took little of its sizes from here

NAMES = sorted(config.__name__ for config in AutoModelForCausalLM._model_mapping)
PROMPTS = [[5, 6, 7, 8, 9], list(range(10, 31)), [40] * 3 + list(range(50, 60))]


def tiny(name):
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip("transformers does not export its configuration")
    own = OWN.get(name.removesuffix("Config"), {})
    try:
        config = kind(**FAMILY | SIZES | own)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:  # anything at all: upstream builds none of these sizes
        pytest.skip(f"not of these sizes: {str(error).splitlines()[0][:80] if str(error) else ''}")
    if size > LARGEST:
        pytest.skip(f"{size:,} parameters of these sizes")
    return config


def plainly(model, tokens):
    return model(input_ids=torch.tensor([tokens])).logits[0].float()


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_right_or_refused(name, tiny_tokenizer):
    warnings.simplefilter("ignore")
    config = tiny(name)
    torch.manual_seed(0)
    try:
        check_causal(config, given=name)
        attention = attention_for(config, "documents")
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        model.generation_config.eos_token_id = None
        verify_packing(enable_scoring(model.float().eval()), training=torch.float32)
        written = generate(
            model, tiny_tokenizer, PROMPTS, GenerationSettings(max_new_tokens=12, stop_ids=[])
        )
    except UserError as error:
        assert "\n" not in str(error)
        return
    except Exception:
        with torch.no_grad(), pytest.raises(Exception):  # noqa: B017  not even upstream runs it
            plainly(model, PROMPTS[0])
        return
    assert name.removesuffix("Config") not in REFUSED
    context = tuple(range(100, 150))
    asked = [
        ScoreRequest((*context, 7), (8, 9)),
        ScoreRequest((*context, 7), (3,)),
        ScoreRequest((5,), (6, 7)),
    ]
    scored = TransformersBackend(model, tiny_tokenizer).score(asked)
    with torch.no_grad():
        for prompt, answer in zip(PROMPTS, written, strict=True):
            logits = plainly(model, [*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
            picked = logits.gather(1, torch.tensor(answer.token_ids)[:, None]).squeeze(1)
            assert (logits.max(1).values - picked).max() < 1e-4, "not what a plain forward prefers"
        for question, score in zip(asked, scored, strict=True):
            every = plainly(model, [*question.context, *question.continuation]).log_softmax(1)
            own = every[len(question.context) - 1 : -1]
            picked = own.gather(1, torch.tensor(question.continuation)[:, None])
            assert score.log_prob == pytest.approx(picked.sum().item(), abs=1e-3)
