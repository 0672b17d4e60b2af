"""Attention by tiles is right when it is that of a dense mask: exactly in float64, and in bfloat16
no less exact than torch's own kernel, for tiles of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_tiny_model
from torch.nn.functional import scaled_dot_product_attention

from sft.packing import tiled_attention as tiled_attention_module
from sft.packing.document_attention import DOCUMENTS, document_attention
from sft.packing.equivalence import attention_mismatch
from sft.packing.layout import Document, Segment, Span, attention_mask, pack
from sft.packing.logprobs import enable_scoring, log_probs
from sft.packing.tiled_attention import pieces, tiled_attention


def spans_of(lengths):
    """One row's documents: (trunk, branch, branch, ...) each."""
    found, at = [], 0
    for trunk, *branches in lengths:
        found.append(Span(0, at, trunk, tuple(branches)))
        at += trunk + sum(branches)
    return found, at


def seen_by(spans, *, before, length):
    """The dense mask [length, before + length]; padding sees nothing."""
    mask = torch.zeros(length, before + length, dtype=torch.bool)
    mask[: sum(s.trunk + sum(s.branches) for s in spans), :before] = True
    for span in spans:
        at, trunk = span.start, slice(before + span.start, before + span.start + span.trunk)
        for number, size in enumerate((span.trunk, *span.branches)):
            own = torch.ones(size, size, dtype=torch.bool).tril()
            mask[at : at + size, before + at : before + at + size] = own
            if number:
                mask[at : at + size, trunk] = True
            at += size
    return mask


def drawn(length, before, *, heads=6, groups=2, width=8, values=None, dtype=torch.float64):
    """Queries, keys and values as a model's projections lay them out, and a gradient."""
    torch.manual_seed(0)

    def states(heads, length, width):
        found = torch.randn(1, length, heads, width, dtype=dtype)
        return found.transpose(1, 2).requires_grad_()

    total, own = before + length, values or width
    inputs = [states(heads, length, width), states(groups, total, width)]
    return [*inputs, states(groups, total, own)], torch.randn(1, heads, length, own, dtype=dtype)


def with_gradients(output, inputs, grad):
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


documents = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    documents,
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(1, 6),
    st.sampled_from([1, 200]),
    st.sampled_from([8, 5]),
)
def test_any_documents_in_any_tiles_are_those_of_a_dense_mask(
    lengths, before, padding, tile, scores, values
):
    """Also where values are of another width than keys, as in latent attention."""
    spans, length = spans_of(lengths)
    length += padding
    inputs, grad = drawn(length, before, values=values)
    mask = seen_by(spans, before=before, length=length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_attention_module, "MAX_QUERIES", tile)
        patch.setattr(tiled_attention_module, "MAX_SCORES", scores)
        patch.setattr(tiled_attention_module, "MIN_QUERIES", 2)
        found = tiled_attention(*inputs, pieces(spans, before=before), scale=0.3)
        ours = with_gradients(found, inputs, grad)
    dense = scaled_dot_product_attention(
        *inputs, attn_mask=mask | ~mask.any(1, keepdim=True), enable_gqa=True, scale=0.3
    )
    dense = dense * mask.any(1)[:, None]  # padding gets zeros
    torch.testing.assert_close(ours, with_gradients(dense, inputs, grad), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("width", [64, 80, 128])
def test_in_bfloat16_it_is_as_near_to_exact_attention_as_torchs_own_kernel(width):
    spans, length = spans_of([(200, 150, 90), (300,)])
    inputs, grad = drawn(length, 0, heads=4, groups=2, width=width, dtype=torch.bfloat16)
    mask = seen_by(spans, before=0, length=length)

    def kernel(inputs):
        return scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)

    doubles = [t.detach().double().requires_grad_() for t in inputs]
    exact = with_gradients(kernel(doubles), doubles, grad.double())
    ours = with_gradients(tiled_attention(*inputs, pieces(spans, before=0)), inputs, grad)
    theirs = with_gradients(kernel(inputs), inputs, grad)
    off, kernel_off = (
        [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]
        for found in (ours, theirs)
    )
    for value, of_kernel in zip(off[:2], kernel_off[:2], strict=True):
        assert value < 2 * of_kernel < 0.01  # scores are rounded too
    for value, of_kernel in zip(off[2:], kernel_off[2:], strict=True):
        assert value < 1.1 * of_kernel < 0.01


def test_a_model_in_bfloat16_learns_in_tiles_what_it_learns_in_torchs_kernel(monkeypatch):
    """Under autocast, whose rotary positions leave queries in float32."""
    model = enable_scoring(make_tiny_model(attn_implementation=DOCUMENTS))
    generator = torch.Generator().manual_seed(1)

    def segment(size, scored):
        return Segment(torch.randint(200, (size,), generator=generator).tolist(), [scored] * size)

    branches = (segment(150, True), segment(40, True))
    batch = pack([Document(segment(170, False), branches)] * 2, row_length=800)
    calls = []
    monkeypatch.setattr(
        "sft.packing.document_attention.tiled_attention",
        lambda *args, **options: calls.append(1) or tiled_attention(*args, **options),
    )

    def learnt(*, tiled, compute):
        monkeypatch.setattr("sft.packing.document_attention._tiles_are_faster", lambda query: tiled)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute == torch.bfloat16):
            values = log_probs(model, batch)
        values.sum().backward()
        return [values.detach(), *(p.grad.clone() for p in model.parameters())]

    exact = learnt(tiled=False, compute=torch.float32)
    assert not calls
    ours = learnt(tiled=True, compute=torch.bfloat16)
    assert len(calls) == model.config.num_hidden_layers
    theirs = learnt(tiled=False, compute=torch.bfloat16)
    for wanted, own, kernel in zip(exact, ours, theirs, strict=True):
        assert (own - wanted).norm() <= 1.5 * (kernel - wanted).norm()


@pytest.mark.parametrize(
    ("options", "tiled"),
    [
        ({}, True),
        ({"sliding_window": 8}, True),
        ({"sliding_window": 3}, False),
        ({"dropout": 0.5}, False),
    ],
)
def test_windows_and_dropout_are_left_to_torchs_kernel(options, tiled, monkeypatch):
    called = []
    monkeypatch.setattr(
        "sft.packing.document_attention.tiled_attention",
        lambda query, *rest, **more: called.append(1) or query,
    )
    states = torch.zeros(1, 2, 8, 4, dtype=torch.bfloat16)
    document_attention(None, states, states, states, None, documents=[Span(0, 0, 8, ())], **options)
    assert bool(called) == tiled


def test_a_wrong_gradient_is_found_at_the_start_of_a_run(monkeypatch):
    """A branch's gradient that reaches its neighbour: right forwards, wrong backwards."""
    model = enable_scoring(make_tiny_model(attn_implementation=DOCUMENTS))
    assert attention_mismatch(model, training=torch.bfloat16) is None
    scatter = tiled_attention_module._scatter

    def leaky(total, piece, gradient):
        scatter(total, piece, gradient)
        total += 1e-3 * gradient.mean()

    monkeypatch.setattr(tiled_attention_module, "_scatter", leaky)
    assert "across branches" in attention_mismatch(model, training=torch.bfloat16)


def test_attention_mask_and_dense_mask_here_agree():
    """The oracle above against the layout's own mask."""
    lengths = [(3, 2, 1), (4,)]
    spans, length = spans_of(lengths)
    rows = [
        Document(
            Segment([1] * trunk, [False] * trunk),
            tuple(Segment([1] * n, [True] * n) for n in branches),
        )
        for trunk, *branches in lengths
    ]
    mask = attention_mask(pack(rows, row_length=length, bucket=1))[0, 0]
    assert torch.equal(mask, seen_by(spans, before=0, length=length))
