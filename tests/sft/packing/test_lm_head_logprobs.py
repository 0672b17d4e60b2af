"""The projection equals log_softmax for frozen and trained heads, in any chunks."""

import pytest
import torch
from tiny_models import make_tiny_model

from sft.packing import lm_head_logprobs
from sft.packing.lm_head_logprobs import fused_kernel_mismatch, score_states, select_logprob_head

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


def slices(monkeypatch, *, rows, columns):
    monkeypatch.setattr(lm_head_logprobs, "MAX_ROWS", rows)
    monkeypatch.setattr(lm_head_logprobs, "CPU_SLICE", rows * columns)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("rows, columns", [(1, 50), (4, 50), (13, 50), (4, 7), (13, 1)])
@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_log_probs_and_gradients_are_those_of_log_softmax(
    trained, rows, columns, kept, softcap, monkeypatch
):
    slices(monkeypatch, rows=rows, columns=columns)
    monkeypatch.setattr(lm_head_logprobs, "CPU_CHUNK", rows * VOCABULARY)
    monkeypatch.setattr(lm_head_logprobs, "MAX_STORED", kept)
    layer, states, target = layer_and_states()
    layer.requires_grad_(trained)
    own = torch.randn(TOKENS, dtype=torch.float64)  # each log-prob matters differently, as in DPO
    wanted, best = expected(layer, states, target, softcap)
    inputs = [states, layer.weight] if trained else [states]
    expected_gradients = torch.autograd.grad((wanted * own).sum(), inputs)
    scores = score_states(states, layer, target, softcap=softcap)
    torch.testing.assert_close(scores.log_probs, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(scores.is_argmax, best == target)
    gradients = torch.autograd.grad((scores.log_probs * own).sum(), inputs)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)


@pytest.fixture
def through_kernel(monkeypatch):
    """Have trl's kernel score a head's tokens: in torch's operations here, compiled on CUDA."""

    def settle(layer):
        assert fused_kernel_mismatch(layer, softcap=None) is None
        monkeypatch.setattr(lm_head_logprobs, "_fused", {layer})

    return settle


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("columns", [16, 2**15])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [True, False])
def test_trls_kernel_gives_what_log_softmax_gives(
    trained, columns, softcap, bias, through_kernel, monkeypatch
):
    monkeypatch.setattr(lm_head_logprobs, "FUSED_COLUMNS", columns)
    layer, states, target = layer_and_states(torch.float32, bias=bias)
    through_kernel(layer)
    layer.requires_grad_(trained)
    own = torch.randn(TOKENS)
    wanted, best = expected(layer, states, target, softcap)
    inputs = [states, *layer.parameters()] if trained else [states]
    expected_gradients = torch.autograd.grad((wanted * own).sum(), inputs)
    scores = score_states(states, layer, target, softcap=softcap)
    torch.testing.assert_close(scores.log_probs, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(scores.is_argmax, best == target)
    gradients = torch.autograd.grad((scores.log_probs * own).sum(), inputs)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def test_a_kernel_that_differs_is_not_used(monkeypatch):
    class Off:
        @staticmethod
        def apply(hidden, weight, bias, target, *_):
            return 1.01 * hidden @ weight.T[:, target].sum(1), None, None, None, target > 0

    layer, _, _ = layer_and_states(torch.float32)
    monkeypatch.setattr(lm_head_logprobs, "ChunkedLogProbFunction", Off)
    assert "log-probs differ by" in fused_kernel_mismatch(layer, softcap=None)


def test_a_kernel_whose_gradients_are_nan_is_not_used(monkeypatch):
    class NanBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, bias, target, *_):
            ctx.width = hidden.shape[1]
            log_probs = (hidden @ weight.T).log_softmax(1).gather(1, target[:, None])[:, 0]
            return log_probs, None, None, None, target > 0

        @staticmethod
        def backward(ctx, grad, *_):
            return torch.full((32, ctx.width), torch.nan), *[None] * 8

    layer, _, _ = layer_and_states(torch.float32)
    monkeypatch.setattr(lm_head_logprobs, "ChunkedLogProbFunction", NanBackward)
    assert "gradients by nan" in fused_kernel_mismatch(layer, softcap=None)


def test_off_cuda_our_own_chunks_stay(tiny_model):
    select_logprob_head(tiny_model)
    assert tiny_model.get_output_embeddings() not in lm_head_logprobs._fused


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_trls_kernel_is_taken_and_agrees(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = make_tiny_model(vocab_size=5000).cuda().to(dtype)
    select_logprob_head(model)
    layer = model.get_output_embeddings()
    assert layer in lm_head_logprobs._fused
    states = torch.randn(300, 32, device="cuda", dtype=dtype, requires_grad=True)
    target = torch.randint(5000, (300,), device="cuda")
    found = []
    for own in (True, False):
        if not own:
            lm_head_logprobs._fused.discard(layer)
        scores = score_states(states, layer, target, softcap=None)
        gradients = torch.autograd.grad(scores.log_probs.sum(), [states, layer.weight])
        found.append([scores.log_probs.detach(), *(g.float() for g in gradients)])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= (0.02 if dtype == torch.bfloat16 else 1e-3) * b.norm()


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
def test_a_largest_logit_in_a_later_slice_is_as_good_as_one_in_the_first(trained, monkeypatch):
    """Logits change by hundreds between slices, in float32: earlier sums must not overflow."""
    slices(monkeypatch, rows=2, columns=3)
    monkeypatch.setattr(lm_head_logprobs, "MAX_STORED", 0)
    logits = torch.tensor([[-900.0, 0, 500, 499, 501, 500, -1, 88.5, 501.5, 0]] * 3)
    layer = torch.nn.Linear(3, 10, bias=False).requires_grad_(trained)
    layer.weight.data = logits.T.contiguous()
    states = torch.eye(3)[[0, 1, 2, 0]].requires_grad_()
    target = torch.tensor([8, 4, 0, 7])
    scores = score_states(states, layer, target, softcap=None)
    wanted, best = expected(layer, states, target)
    torch.testing.assert_close(scores.log_probs, wanted, rtol=1e-6, atol=1e-4)
    assert torch.equal(scores.is_argmax, best == target)
    (slope,) = torch.autograd.grad(scores.log_probs.sum(), states)
    (expected_grad,) = torch.autograd.grad(wanted.sum(), states)
    torch.testing.assert_close(slope, expected_grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
def test_of_equal_logits_the_first_is_the_choice_of_greedy_decoding(columns, monkeypatch):
    slices(monkeypatch, rows=4, columns=columns)
    layer = torch.nn.Linear(1, 6, bias=False)
    layer.weight.data = torch.tensor([[1.0], [3], [2], [3], [3], [0]])
    target = torch.tensor([1, 3, 4, 0])
    found = score_states(torch.ones(4, 1), layer, target, softcap=None)
    assert found.is_argmax.tolist() == [True, False, False, False]


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_as_large_as_the_logits_outlives_its_chunk(trained, monkeypatch):
    """With a vocabulary of 152 k, all logits of 64 tokens would be 9.7 million values."""
    slices(monkeypatch, rows=64, columns=4096)
    monkeypatch.setattr(lm_head_logprobs, "MAX_STORED", 0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(1, 152_000, bias=False).requires_grad_(trained)
    states = torch.randn(64, 1, requires_grad=True)
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
    assert largest == 64 * 4096
