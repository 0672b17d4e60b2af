"""QLoRA on bitsandbytes' own CPU kernels, and what is refused where 4-bit weights cannot train."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tiny_models import make_tiny_model, make_tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.trainer import train_dpo
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset
from sft.config.sections import DpoStage, LoraSection, ModelSection, SftStage
from sft.context import RunContext
from sft.errors import UserError
from sft.export.merge import export_weights, merge_before_stage
from sft.export.merge_check import TrainedModel, compare_with_4bit
from sft.model import placement as placement_module
from sft.model.loading import check_model, load_model, load_trainable, save_model
from sft.model.lora_targets import lora_config
from sft.model.placement import Placement, choose_placement
from sft.packing.layout import Document, Segment, lay_out
from sft.packing.logprobs import log_probs
from sft.planning.step_memory import Setup, _LiveBytes, nf4_bytes, step_memory
from sft.system.atomic_files import read_json, read_jsonl
from sft.training.trainer import train_sft

FLOAT = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
IN_4BIT = replace(FLOAT, load_in_4bit=True)
OPTIONS = {"seed": 0, "trust_remote_code": False}
IDS = list(range(4, 60))


def pretend(monkeypatch, kind):
    class State:
        device = torch.device(kind)
        num_processes = 1

    monkeypatch.setattr(placement_module, "PartialState", State)
    monkeypatch.setattr(placement_module, "_apple_chip", lambda: "Apple M3")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


def installed(monkeypatch, there):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cpu", r"needs an NVIDIA GPU \(CUDA\) and this command runs on cpu; set .*=false"),
        ("mps", r"bitsandbytes does not train on a Mac; .*smollm2_1\.7b_lora_mac\.yaml"),
        ("cuda", r"needs bitsandbytes, which is not installed; run .*\[qlora\]"),
    ],
)
def test_4_bits_are_refused_by_device_with_the_alternative(monkeypatch, kind, words):
    pretend(monkeypatch, kind)
    installed(monkeypatch, False)
    with pytest.raises(UserError, match=words):
        choose_placement(ModelSection(load_in_4bit=True))


def test_on_cuda_4_bits_are_chosen_and_not_spread_over_devices(monkeypatch):
    pretend(monkeypatch, "cuda")
    installed(monkeypatch, True)
    placement = choose_placement(ModelSection(load_in_4bit=True))
    assert placement.load_in_4bit and placement.compute == torch.bfloat16
    assert placement.weights == torch.float32  # the adapter's
    assert any("NF4" in reason for reason in placement.reasons)
    assert not choose_placement(ModelSection()).load_in_4bit
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP shards it"):
        choose_placement(ModelSection(load_in_4bit=True))


def test_keys_of_an_adapter_without_one_are_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("model: {name_or_path: m, load_in_4bit: true}")
    keys = ["lora.use_dora=true", "lora.use_rslora=true", "lora.between_stages=merge"]
    with pytest.raises(UserError) as caught:
        load_preset(tmp_path / "p.yaml", overrides=[*keys, "dpo.enabled=false"])
    for words in (*keys, "model.load_in_4bit=true freezes the weights"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match=r"between_stages='fuse' is not one of continue, merge"):
        load_preset(tmp_path / "p.yaml", overrides=["lora.between_stages=fuse"])


def test_a_base_that_is_quantised_already_is_refused(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is quantized already"):
        check_model(ModelSection(str(tmp_path)))


def test_the_bytes_of_4_bit_weights_are_the_paper_s():
    """QLoRA, section 3: 4 bits a weight and 0.127 bits of scales, not 0.5."""
    assert 8 * nf4_bytes(2**24) / 2**24 == pytest.approx(4 + 0.127, abs=1e-3)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", num_hidden_layers=2, vocab_size=512, **shape)
    batch = lay_out([Document(Segment(IDS, [False] + [True] * 55))], packing=True, rows="masked")
    half = Setup(lora_config(LoraSection(r=4)), torch.float32, torch.bfloat16, "sdpa")
    whole, less = (step_memory(config, batch, replace(half, load_in_4bit=x)) for x in (False, True))
    matrices = [256 * 256] * 4 + [256 * 512] * 3
    assert whole.weights - less.weights == 2 * sum(2 * n - nf4_bytes(n) for n in matrices)
    assert less.activations - whole.activations == 256 * 512 * 2 + 256 * 512 // 16
    assert (less.gradients, less.optimizer) == (whole.gradients, whole.optimizer)


@pytest.fixture
def base(tmp_path):
    pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not installed: pip install -e '.[qlora]'"
    )
    make_tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    tokenizer = make_tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    ensure_template(tokenizer)
    return str(tmp_path / "base"), tokenizer


def rows():
    return Dataset.from_list(
        [{"input_ids": IDS[i : i + 20], "trained": [False] * 3 + [True] * 17} for i in range(16)]
    )


def section(kind=SftStage, **options):
    given = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "num_train_epochs": 2.0}
    return kind(train_batch_size=8, trl=kind().trl | given | options)


def fit(model, placement, folder, tokenizer):
    folder.mkdir()
    context = RunContext(folder, tokenizer, placement, LoraSection(r=4), 0, False)
    train_sft(model, rows(), section=section(), context=context, folder=folder, label="a")
    return [entry["loss"] for entry in read_jsonl(folder / "log.jsonl")]


def dequantised(base, folder):
    """The base with the values that its 4-bit weights stand for, as a whole model."""
    from bitsandbytes.functional import dequantize_4bit

    model = load_model(base, IN_4BIT)
    whole = make_tiny_model(hidden_size=64, intermediate_size=128)
    state = whole.state_dict()
    for name, parameter in model.named_parameters():
        packed = getattr(parameter, "quant_state", None)
        state[name] = dequantize_4bit(parameter.data, packed) if packed else parameter.data
    whole.load_state_dict(state)
    whole.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dora", [False, True])
def test_training_over_4_bits_is_lora_over_the_values_that_they_stand_for(base, tmp_path, dora):
    path, tokenizer = base
    lora = LoraSection(r=4, use_dora=dora)
    packed = load_trainable(path, IN_4BIT, lora=lora, **OPTIONS)
    kinds = {(p.requires_grad, p.dtype) for p in packed.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.float32), (False, torch.uint8)}
    whole = load_trainable(dequantised(path, tmp_path / "w"), FLOAT, lora=lora, **OPTIONS)
    ours = fit(packed, IN_4BIT, tmp_path / "a", tokenizer)
    assert ours == pytest.approx(fit(whole, FLOAT, tmp_path / "b", tokenizer), rel=1e-3)
    assert ours[-1] < ours[0] - 0.3
    # trl rounds such an adapter to bfloat16 where it is let.
    assert {p.dtype for p in packed.parameters() if p.requires_grad} == {torch.float32}


def test_merging_goes_into_the_unquantised_weights_and_the_difference_is_told(base, tmp_path):
    path, tokenizer = base
    model = load_trainable(path, IN_4BIT, lora=LoraSection(r=4), tokens=[5, 6], **OPTIONS)
    fit(model, IN_4BIT, tmp_path / "a", tokenizer)
    adapter = str(tmp_path / "adapter")
    save_model(model, tokenizer, tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    trained = TrainedModel(adapter, path, [IDS], FLOAT)
    check = export_weights(
        trained,
        tokenizer,
        folder=tmp_path / "whole",
        dtype=torch.float32,
    )
    assert check.share < 1e-4
    base_model = AutoModelForCausalLM.from_pretrained(path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    expected = PeftModel.from_pretrained(base_model, adapter).merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)
    found = compare_with_4bit(trained, str(tmp_path / "whole"), in_4bit=IN_4BIT, use=FLOAT)
    # Here 4 bits are coarse: far more than rounding, and no reason to refuse.
    assert found.lost > 100 * check.lost and found.changed > 0
    again = RunContext(tmp_path, tokenizer, IN_4BIT, LoraSection(r=4), 0, False)
    start = merge_before_stage(adapter, again, folder=tmp_path / "start", rows=[IDS])
    assert load_model(start, FLOAT).config.to_dict().get("quantization_config") is None
    facts = read_json(tmp_path / "start" / "done.json")["facts"]
    assert facts["lost"] < 1e-4 < facts["quantised"]["lost"]
    assert again.weights_key(adapter) != replace(again, placement=FLOAT).weights_key(adapter)


def test_the_reference_of_a_preference_stage_is_the_adapter_over_4_bits(base, tmp_path):
    path, tokenizer = base
    model = load_trainable(path, IN_4BIT, lora=LoraSection(r=4), **OPTIONS)
    fit(model, IN_4BIT, tmp_path / "a", tokenizer)
    save_model(model, tokenizer, tmp_path / "adapter")
    policy = load_trainable(str(tmp_path / "adapter"), IN_4BIT, lora=LoraSection(r=4), **OPTIONS)
    pairs = [
        {
            "prompt_ids": IDS[i : i + 9],
            "chosen_ids": IDS[i : i + 5],
            "chosen_scored": [True] * 5,
            "rejected_ids": IDS[i + 20 : i + 24],
            "rejected_scored": [True] * 4,
        }
        for i in range(8)
    ]
    folder = tmp_path / "dpo"
    folder.mkdir()
    train_dpo(
        policy,
        Dataset.from_list(pairs),
        section=section(DpoStage, num_train_epochs=3.0),
        context=RunContext(folder, tokenizer, IN_4BIT, LoraSection(r=4), 0, False),
        folder=folder,
        cache=folder / "reference",
    )
    log = read_jsonl(folder / "log.jsonl")
    assert abs(log[0]["rewards/margins"]) < 1e-4 < log[-1]["rewards/margins"]
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}


def test_planned_weights_are_those_that_bitsandbytes_keeps(base, tmp_path):
    path, _ = base
    model = load_trainable(path, IN_4BIT, lora=LoraSection(r=4), **OPTIONS)
    kept = sum(p.numel() * p.itemsize for p in model.parameters())
    for parameter in model.parameters():
        if packed := getattr(parameter, "quant_state", None):
            kept += packed.absmax.numel() + 4 * packed.state2.absmax.numel()
    setup = Setup(
        lora_config(LoraSection(r=4)), torch.float32, torch.float32, "sdpa", load_in_4bit=True
    )
    batch = lay_out([Document(Segment(IDS, [False] + [True] * 55))], packing=True, rows="masked")
    planned = step_memory(AutoConfig.from_pretrained(path), batch, setup)
    assert 0 <= planned.weights - kept < 1000  # rotary frequencies
    alive = _LiveBytes(model, vocabulary=260)
    alive.missing = len(alive.trained)
    with alive:
        (-log_probs(model, batch).sum()).backward()
    counted = max(peak["activations"] + peak["logits"] + peak["gradients"] for peak in alive.peaks)
    expected = planned.activations + planned.logits + planned.gradients
    assert counted == pytest.approx(expected, rel=0.25)
