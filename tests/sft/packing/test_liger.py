"""Liger's kernels: taken where they agree, put back where they do not."""

import types

import pytest
import torch
from tiny_models import make_tiny_model
from transformers.models.llama import modeling_llama
from transformers.utils import is_liger_kernel_available

from sft.packing import liger
from sft.packing.liger import enable_liger


def exchanged(model):
    return [m for m in model.modules() if "forward" in vars(m)]


def test_off_cuda_a_model_stays_as_it_is(tiny_model):
    enable_liger(tiny_model)
    assert not exchanged(tiny_model)


@pytest.mark.parametrize("share", [1.0, 1.001, 2.0])
def test_kernels_that_differ_are_taken_out_again(share, monkeypatch, caplog):
    """A stand-in for Liger, which has no kernels for a CPU: norms times `share`."""
    caplog.set_level("INFO", logger="sft.packing.liger")
    rope = modeling_llama.apply_rotary_pos_emb
    other = lambda *args, **kwargs: rope(*args, **kwargs)  # noqa: E731

    def exchange(model, **options):
        assert options == liger.OFF
        modeling_llama.apply_rotary_pos_emb = other
        for module in model.modules():
            if type(module) is modeling_llama.LlamaRMSNorm:
                plain = module.forward
                module.forward = types.MethodType(
                    lambda self, x, plain=plain: share * plain(x), module
                )

    model = make_tiny_model()
    ids = torch.arange(12)[None]
    wanted = model(input_ids=ids).logits
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rope)  # put back after the test
    liger.replace_if_equal(model, exchange)
    said = caplog.records[-1].getMessage()
    if share == 2.0:
        assert "log-probs differ by" in said
        assert not exchanged(model) and modeling_llama.apply_rotary_pos_emb is rope
        assert torch.equal(model(input_ids=ids).logits, wanted)
    else:
        assert "agree" in said
        assert len(exchanged(model)) == 5 and modeling_llama.apply_rotary_pos_emb is other


@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_they_are_taken_and_agree(dtype, caplog):
    if not torch.cuda.is_available() or not is_liger_kernel_available():
        pytest.skip("no CUDA device, or no liger-kernel")
    caplog.set_level("INFO", logger="sft.packing.liger")
    model = make_tiny_model(hidden_size=128).cuda().to(dtype)
    ids = torch.arange(100, device="cuda")[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.float()
        enable_liger(model)
        found = model(input_ids=ids).logits.float()
    assert "agree" in caplog.records[-1].getMessage()
    assert exchanged(model)
    loose = 0.03 if dtype == torch.bfloat16 else 1e-4
    assert (found - wanted).norm() <= loose * wanted.norm()
