"""Linear layers that put the weight first give what torch's give, and are put back afterwards."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_tiny_model

from eval.generation.generate import GenerationSettings, generate
from sft.model import cpu_linear
from sft.model.fused_lora import fuse_adapters


@pytest.fixture
def on_amd(monkeypatch):
    monkeypatch.setattr(cpu_linear, "_mkl_on_amd", lambda: True)


@pytest.mark.parametrize("rows", range(cpu_linear.FEW + 2))
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_rows_gives_the_product(rows, bias, on_amd):
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80, bias=bias)
    x = torch.randn(rows, 48)
    out = cpu_linear.linear(x, layer.weight, layer.bias)
    assert out.is_contiguous()
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-6)


def test_within_layers_of_any_shape_give_what_they_gave_and_afterwards_are_as_they_were(on_amd):
    model = make_tiny_model().eval()
    tokens = torch.randint(200, (3, 1))
    wanted = model(tokens).logits
    firsts = []
    model.lm_head.register_forward_hook(lambda *call: firsts.append(1))
    with cpu_linear.weight_first_layers(model):
        assert "forward" in vars(model.lm_head)
        torch.testing.assert_close(model(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
    assert firsts == [1]  # hooks see the layer
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_whose_forward_another_has_replaced_is_left_to_it(on_amd):
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    layer[0].forward = lambda x: x
    with cpu_linear.weight_first_layers(layer):
        assert layer(torch.ones(1, 4)).tolist() == [[1, 1, 1, 1]]
    assert layer(torch.ones(1, 4)).tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("adapters", [True, False])
def test_a_model_writes_the_same_answers(adapters, on_amd, tiny_tokenizer, monkeypatch):
    """Also where a fused adapter reads the layer's weight itself."""
    model = make_tiny_model(initializer_range=0.5)
    if adapters:
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = fuse_adapters(get_peft_model(model, lora))
    prompts = [[5, 6, 7], [9, 8], [30, 31, 32, 33]]

    def answers():
        written = generate(
            model, tiny_tokenizer, prompts, GenerationSettings(max_new_tokens=24, stop_ids=[])
        )
        return [one.token_ids for one in written]

    calls = []
    product = cpu_linear.linear
    monkeypatch.setattr(cpu_linear, "linear", lambda *args: calls.append(1) or product(*args))
    ours = answers()
    assert calls
    monkeypatch.setattr(cpu_linear, "_mkl_on_amd", lambda: False)
    assert ours == answers()


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(cpu_linear, "_mkl_on_amd", lambda: False)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with cpu_linear.weight_first_layers(layer):
        assert "forward" not in vars(layer[0])
    monkeypatch.setattr(cpu_linear, "_mkl_on_amd", lambda: True)
    layer.to(torch.bfloat16)
    with cpu_linear.weight_first_layers(layer):
        assert "forward" not in vars(layer[0])
