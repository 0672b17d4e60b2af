"""The projection is right when it equals log_softmax, whatever is frozen, chunked or kept."""

import pytest
import torch

from sft import head
from sft.head import score_states

TOKENS, WIDTH, VOCABULARY = 13, 8, 50


def layer_and_states(dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = torch.nn.Linear(WIDTH, VOCABULARY, dtype=dtype, **{"bias": False} | options)
    states = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    return layer, states, torch.randint(VOCABULARY, (TOKENS,))


def expected(layer, states, target, softcap=None):
    logits = layer(states)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_probs = logits.float() if logits.dtype == torch.bfloat16 else logits
    return log_probs.log_softmax(1).gather(1, target[:, None]).squeeze(1), logits.argmax(1)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("rows", [1, 4, 13])
@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_log_probs_and_gradients_are_those_of_log_softmax(
    trained, rows, kept, softcap, monkeypatch
):
    monkeypatch.setattr(head, "CPU_CHUNK", rows * VOCABULARY)
    monkeypatch.setattr(head, "KEPT", kept)
    layer, states, target = layer_and_states()
    layer.requires_grad_(trained)
    own = torch.randn(TOKENS, dtype=torch.float64)  # each log-prob matters differently, as in DPO
    wanted, best = expected(layer, states, target, softcap)
    inputs = [states, layer.weight] if trained else [states]
    wanted_gradients = torch.autograd.grad((wanted * own).sum(), inputs)
    scores = score_states(states, layer, target, softcap=softcap)
    torch.testing.assert_close(scores.log_probs, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(scores.is_argmax, best == target)
    gradients = torch.autograd.grad((scores.log_probs * own).sum(), inputs)
    torch.testing.assert_close(gradients, wanted_gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_bfloat16_and_autocast_stay_within_its_rounding_with_float32_sums(trained):
    layer, states, target = layer_and_states(torch.bfloat16)
    layer.requires_grad_(trained)
    scores = score_states(states, layer, target, softcap=None)
    wanted, _ = expected(layer, states, target)
    assert scores.log_probs.dtype == torch.float32
    torch.testing.assert_close(scores.log_probs, wanted, rtol=0, atol=1e-5)
    inputs = [states, layer.weight] if trained else [states]
    ours = torch.autograd.grad(scores.log_probs.sum(), inputs)
    theirs = torch.autograd.grad(wanted.sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    whole = layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = score_states(states.float(), whole, target, softcap=None).log_probs
    torch.testing.assert_close(cast, wanted, rtol=0, atol=1e-5)


def test_a_head_with_a_bias_or_a_hook_is_called_as_the_model_calls_it():
    layer, states, target = layer_and_states(bias=True)
    wanted, _ = expected(layer, states, target)
    torch.testing.assert_close(score_states(states, layer, target, softcap=None).log_probs, wanted)
    layer, states, target = layer_and_states()
    layer.register_forward_hook(lambda *call: call[-1] * 2)
    wanted, _ = expected(layer, states, target)
    torch.testing.assert_close(score_states(states, layer, target, softcap=None).log_probs, wanted)


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_as_large_as_the_logits_outlives_its_chunk(trained, monkeypatch):
    """With a vocabulary of 152 k, all logits of 64 tokens would be 9.7 million values."""
    monkeypatch.setattr(head, "CPU_CHUNK", 4 * 152_000)
    monkeypatch.setattr(head, "KEPT", 0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 152_000, bias=False).requires_grad_(trained)
    states = torch.randn(64, 2, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.untyped_storage().nbytes() // 4)
            return result

    with Watch():
        target = torch.arange(64)
        score_states(states, layer, target, softcap=None).log_probs.sum().backward()
    assert largest == 4 * 152_000
