"""LoRA's fused passes against peft's own, and against float64."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_tiny_model

from sft.model.fused_lora import fuse_adapters

IDS = torch.arange(60).view(3, 20)


def adapted(seed=0, **options):
    """A tiny model with an adapter that does something."""
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "lora_alpha": 6} | options)
    model = get_peft_model(make_tiny_model(seed), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    return model


def reading(model, compute=None):
    """Logits and the gradients of what is trained."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=compute, enabled=compute is not None):
        logits = model(input_ids=IDS).logits
    (logits.float().log_softmax(-1)[..., 7].sum()).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach().float(), grads


def fused_layers(model):
    return [m for m in model.modules() if "forward" in vars(m) and hasattr(m, "lora_A")]


def test_logits_and_gradients_are_pefts():
    model = adapted()
    wanted, slopes = reading(model)
    fuse_adapters(model)
    assert len(fused_layers(model)) == 14  # seven matrices in each of two layers
    found, ours = reading(model)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert ours.keys() == slopes.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(ours[name], slope, rtol=1e-4, atol=1e-5)
        assert ours[name].dtype == torch.float32


def test_under_autocast_it_is_no_further_from_float64_than_peft():
    model = adapted()
    exact = reading(copy.deepcopy(model).double())
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    plain = reading(model, torch.bfloat16)
    fused = reading(fuse_adapters(model), torch.bfloat16)

    def off(found):
        logits = (found[0] - exact[0]).norm() / exact[0].norm()
        slopes = [(found[1][n] - g).norm() / g.norm() for n, g in exact[1].items()]
        return logits, sum(slopes) / len(slopes)

    for ours, theirs in zip(off(fused), off(plain), strict=True):
        assert ours <= 1.1 * theirs < 0.1


def test_the_input_is_kept_once_where_peft_keeps_a_copy_more():
    kept = {}
    for name, prepare in (("peft", lambda model: model), ("fused", fuse_adapters)):
        model = prepare(adapted().bfloat16())
        for each, parameter in model.named_parameters():
            if "lora_" in each:
                parameter.data = parameter.data.float()
        sizes = {}
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(tensor, sizes=sizes, parameters=parameters):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            output = model(input_ids=IDS).logits
        kept[name] = sum(sizes.values())
        del output
    assert kept["fused"] < 0.9 * kept["peft"]


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_what_is_not_plain_stays_pefts(options):
    assert not fused_layers(fuse_adapters(adapted(**options)))


def test_an_adapter_that_is_off_or_merged_leaves_the_base():
    model = fuse_adapters(adapted())
    with model.disable_adapter(), torch.no_grad():
        off = model(input_ids=IDS).logits
    torch.testing.assert_close(off, make_tiny_model()(input_ids=IDS).logits)
    on = reading(model)[0]
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=IDS).logits, on, rtol=1e-4, atol=1e-4)


def test_weights_that_are_spread_keep_the_calls_that_gather_them(monkeypatch):
    monkeypatch.setattr("sft.model.fused_lora.sharded", lambda: True)
    assert not fused_layers(fuse_adapters(adapted()))
