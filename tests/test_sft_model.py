"""What a machine is given, and what is refused before weights are read. Devices are faked."""

import json

import pytest
import torch
from conftest import make_tiny_model

from sft import model as model_module
from sft.config import LoraSection, ModelSection, UserError
from sft.model import Placement, check_model, choose_placement, load_model, load_trainable


@pytest.fixture
def on_device(monkeypatch):
    """Pretend to be on a device; nothing is allocated there."""

    def pretend(kind, *, chip="", bf16=False, capabilities=None):
        class State:
            device = torch.device(kind)
            num_processes = 1

        monkeypatch.setattr(model_module, "PartialState", State)
        monkeypatch.setattr(model_module, "_apple_chip", lambda: chip)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities or {})

    return pretend


@pytest.mark.parametrize(
    ("device", "compute"),
    [
        ({"kind": "cuda", "bf16": True}, torch.bfloat16),
        ({"kind": "cuda", "bf16": False}, torch.float32),
        ({"kind": "mps", "chip": "Apple M1 Max"}, torch.float32),
        ({"kind": "mps", "chip": "Apple M2"}, torch.float32),
        ({"kind": "mps", "chip": "Apple M3 Pro"}, torch.bfloat16),
        ({"kind": "cpu", "capabilities": {"avx512_bf16": True}}, torch.bfloat16),
        ({"kind": "cpu", "capabilities": {"amx_bf16": True}}, torch.bfloat16),
        ({"kind": "cpu", "capabilities": {"avx2": True}}, torch.float32),
    ],
)
def test_bfloat16_is_used_only_where_the_hardware_has_it(on_device, device, compute):
    on_device(**device)
    placement = choose_placement(ModelSection())
    assert placement.compute == compute
    assert placement.weights == torch.float32
    named = [line.split(":")[0] for line in placement.reasons]
    assert named == ["device", "dtype", "attention", "compile"]


def test_a_dtype_that_would_be_emulated_is_refused_by_name(on_device):
    on_device("mps", chip="Apple M1")
    with pytest.raises(UserError, match=r"model\.dtype=bfloat16 is not native on mps .*M1"):
        choose_placement(ModelSection(dtype="bfloat16"))


PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.bfloat16, "sdpa", ())


def test_under_lora_frozen_weights_are_bf16_and_trained_ones_float32(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    model = load_trainable(
        str(tmp_path), PLACEMENT, lora=LoraSection(r=4), seed=0, trust_remote_code=False
    )
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)


def test_an_adapter_is_gone_on_with_and_loads_over_its_base(tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "base")
    options = {"lora": LoraSection(r=4), "seed": 0, "trust_remote_code": False}
    first = load_trainable(str(tmp_path / "base"), PLACEMENT, **options)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    first.save_pretrained(tmp_path / "adapter")
    again = load_trainable(str(tmp_path / "adapter"), PLACEMENT, **options)
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad == b.requires_grad, name
    measured = load_model(str(tmp_path / "adapter"), PLACEMENT)
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        adapted = measured(tokens).logits
        with measured.disable_adapter():
            assert not torch.allclose(measured(tokens).logits, adapted)


def test_models_that_cannot_be_used_are_refused_before_loading(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "ok")
    assert check_model(ModelSection(str(tmp_path / "ok"))) == str(tmp_path / "ok")

    config = json.loads((tmp_path / "ok" / "config.json").read_text())
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps(config))
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    (tmp_path / "file").touch()
    for name, words in (
        ("bert", "not a causal language model"),
        ("pickled", "pytorch_model.bin, a pickle, which is not loaded; convert it once"),
        ("file", "is a file"),
        ("missing", "no such directory"),
    ):
        with pytest.raises(UserError, match=words):
            check_model(ModelSection(str(tmp_path / name)))


def test_a_hub_id_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(UserError, match="no model could be read there") as caught:
        check_model(ModelSection("some-org/some-model"))
    assert "\n" not in str(caught.value)
