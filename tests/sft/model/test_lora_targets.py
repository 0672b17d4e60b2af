"""Adapters of mixtures of experts: reach, merged weights by closed form, plans and counts."""

import pytest
import torch
from peft.tuners.lora import ParamWrapper
from tiny_models import FAMILY, make_tiny_tokenizer
from tiny_world import build_world
from transformers import AutoConfig, AutoModelForCausalLM

from recipes.export import main as export
from recipes.sft_then_dpo import main as train
from sft.chat_template.template import ensure_template
from sft.config.sections import LoraSection
from sft.errors import UserError
from sft.export import merge
from sft.model.flops import costs_of_config
from sft.model.loading import attention_for, load_model, load_trainable, save_model
from sft.model.lora_targets import adapter_coverage, add_adapter, lora_config
from sft.model.placement import Placement
from sft.packing.layout import Document, Segment, lay_out, pack
from sft.packing.logprobs import enable_scoring, log_probs
from sft.planning.device_memory import DeviceMemory
from sft.planning.devices import Machine
from sft.planning.step_memory import Setup, step_memory
from sft.system.atomic_files import read_jsonl

FLOAT = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
IDS = list(range(4, 60))
DOCUMENT = Document(Segment(IDS, [False] + [True] * 55))
BATCH = pack([DOCUMENT], row_length=64)

SIZES = {
    **{"head_dim": 8, "moe_intermediate_size": 16, "intermediate_size_mlp": 64},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False},
}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"v_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1},
    **{"topk_group": 1},
}
LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_hidden_layers": 4},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16},
}
# Those that PEFT's all-linear leaves without adapters on their experts, and those whose shared
# experts and dense layers it leaves out as it takes their names for experts'.
FAMILIES = {
    "gpt_oss": {},
    "granitemoe": {},
    "qwen3_5_moe_text": LINEAR,
    "llama4_text": {},
    "phimoe": {},
    "mixtral": {},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "qwen3_next": LINEAR,
    "deepseek_v3": LATENT,
}


def config_of(kind):
    return AutoConfig.for_model(kind, **FAMILY | SIZES | FAMILIES[kind])


def made(kind):
    torch.manual_seed(0)
    config = config_of(kind)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_for(config, "sdpa")
    )
    return model.float().eval()


def changed(model):
    """Every adapter anything but zero, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_linear_layer_of_a_mixture_gets_an_adapter_that_learns(kind):
    model = made(kind)
    reached_by_name = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and not any(part in name for part in ("embed_tokens", "lm_head", "bias", "conv1d"))
    }
    numbers = dict(model.named_parameters())
    wanted = sum(numbers[name].numel() for name in reached_by_name)
    adapted = changed(add_adapter(model, lora_config(LoraSection(r=2))))
    assert adapter_coverage(adapted).adapted == wanted
    enable_scoring(adapted.get_base_model())
    log_probs(adapted, BATCH).sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text", "deepseek_v3"])
def test_an_adapter_of_experts_is_kept_merged_and_gone_on_with(kind, tmp_path):
    """W + s BA of each expert: B A of its own r rows and columns."""
    base, tokenizer = str(tmp_path / "base"), make_tiny_tokenizer()
    made(kind).save_pretrained(base)
    tokenizer.save_pretrained(base)
    ensure_template(tokenizer)
    lora = LoraSection(r=2, lora_alpha=6)
    model = load_trainable(base, FLOAT, lora=lora, seed=0, trust_remote_code=False)
    model = changed(model)
    wrapped = next(m for m in model.modules() if isinstance(m, ParamWrapper) and m.num_experts > 1)
    down, up = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
    stack = wrapped.get_param().detach().clone()
    by_expert = torch.stack([up[:, i::4] @ down[2 * i : 2 * i + 2] for i in range(4)])
    if by_expert.shape != stack.shape:
        by_expert = by_expert.mT
    save_model(model, tokenizer, tmp_path / "adapter")
    with torch.no_grad():
        wanted = log_probs(model, BATCH)
        again = load_model(str(tmp_path / "adapter"), FLOAT, trainable=True)
        torch.testing.assert_close(log_probs(again, BATCH), wanted)
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
        ids = torch.tensor([IDS])
        torch.testing.assert_close(read(ids).logits, again(ids).logits, rtol=1e-4, atol=1e-4)
    trained = merge.TrainedModel(str(tmp_path / "adapter"), base, [IDS], FLOAT)
    folder = tmp_path / "whole"
    check = merge.export_weights(trained, tokenizer, folder=folder, dtype=torch.float32)
    assert check.share < 1e-4 and check.changed > 0.02
    whole = load_model(str(tmp_path / "whole"), FLOAT)
    name = next(
        n.removeprefix("base_model.model.").replace(".base_layer", "")
        for n, p in model.named_parameters()
        if p is wrapped.get_param()
    )
    found = dict(whole.named_parameters())[name]
    torch.testing.assert_close(found, stack + 3 * by_expert.detach(), rtol=1e-4, atol=1e-5)


def test_a_chain_over_experts_trains_measures_and_exports(tmp_path, caplog):
    caplog.set_level("INFO")
    world = build_world(tmp_path / "w", make_tiny_tokenizer())
    made("gpt_oss").save_pretrained(world / "base")
    options = ["lora.r=2", "eval.limit=2", "eval.repetition.prompts=null"]
    assert train([str(world / "preset.yaml"), *options]) == 0
    assert "of the weights; not adapted: Embedding" in caplog.text
    first = read_jsonl(world / "run" / "3-dpo" / "log.jsonl")[0]
    assert abs(first["rewards/margins"]) < 1e-4
    assert export([str(world / "run"), "--to", str(tmp_path / "out")]) == 0
    ids = torch.tensor([IDS])
    with torch.no_grad():
        answers = load_model(str(world / "run" / "3-dpo" / "model"), FLOAT)(ids).logits
        whole = load_model(str(tmp_path / "out"), FLOAT)(ids).logits
    torch.testing.assert_close(whole, answers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("gpt_oss", {"use_dora": True}, r"use_dora=true cannot .*experts\.down_proj.*\d\d% of the"),
        ("mixtral", {"lora_dropout": 0.1}, r"lora_dropout=0\.1 cannot .*target_parameters=\[\]"),
        ("gpt_oss", {"target_modules": ["q_proj", "down_proj"]}, r"name it in lora\.target_par"),
        ("gpt_oss", {"target_modules": ["q_proj", "w1"]}, r"names w1, .*k_proj, o_proj"),
        ("gpt_oss", {"target_parameters": ["experts.w1"]}, r"its stacked ones are experts\.down"),
        ("mixtral", {"target_modules": ["q_proj", "w1"]}, r"fused"),
    ],
)
def test_what_peft_does_not_do_to_experts_is_refused_by_name(kind, options, sentence):
    device_memory = DeviceMemory(
        config_of(kind), LoraSection(r=2, **options), FLOAT, Machine("a machine", float("inf"))
    )
    with pytest.raises(UserError, match=sentence):
        _ = device_memory.parameters


def test_experts_are_left_out_where_that_is_asked_for():
    lora = LoraSection(r=2, target_parameters=[], use_dora=True, lora_dropout=0.1)
    for kind in ("gpt_oss", "mixtral"):
        with torch.device("meta"):
            model = add_adapter(
                AutoModelForCausalLM.from_config(config_of(kind)), lora_config(lora)
            )
        names = {name for name, _ in adapter_coverage(model).left_out}
        assert any("Experts" in name for name in names)
        assert not any(isinstance(m, ParamWrapper) for m in model.modules())


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_mixture_is_planned_in_float32_and_bfloat16(kind, lora):
    config = config_of(kind)
    batch = lay_out([DOCUMENT], packing=True, rows="masked")
    attention = attention_for(config, "sdpa")
    adapter = lora and lora_config(lora)
    full, half = (
        step_memory(config, batch, Setup(adapter, torch.float32, compute, attention))
        for compute in (torch.float32, torch.bfloat16)
    )
    parameters = costs_of_config(config, lora=adapter).parameters
    assert full.optimizer == half.optimizer == 8 * parameters.trainable
    assert 0 <= full.weights - 4 * parameters.total < 2000
    if lora:
        assert half.weights < 0.7 * full.weights


def test_adapters_of_experts_count_for_the_experts_that_a_token_visits():
    rank, width, inner, experts, used = 2, 32, 64, 4, 2
    config = config_of("mixtral")
    plain = costs_of_config(config)
    adapted = costs_of_config(config, lora=lora_config(LoraSection(r=rank)))
    layers = config.num_hidden_layers
    stacks = (width * 2 * inner, inner * width)
    attention = rank * (2 * (width + 32) + 2 * (width + 16))
    router = rank * (width + experts) + experts * width
    of_experts = used * (rank * (width + 2 * inner) + rank * (inner + width) + sum(stacks))
    assert adapted.trained == layers * (attention + router + of_experts)
    assert adapted.frozen == adapted.parameters.attention
    assert plain.trained == adapted.parameters.attention + layers * (
        experts * width + used * sum(stacks)
    )


def test_a_preset_s_names_are_checked_before_anything_is_measured(tmp_path, capsys):
    world = build_world(tmp_path, make_tiny_tokenizer())
    made("gpt_oss").save_pretrained(world / "base")
    options = ["lora.r=2", "lora.use_dora=true", "--dry-run"]
    assert train([str(world / "preset.yaml"), *options]) == 2
    assert "lora.target_parameters=[]" in capsys.readouterr().err
