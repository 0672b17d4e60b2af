"""Block masks equal the dense mask; the kernel is torch's and verified before use."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import long
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM, MistralConfig

from sft.packing.document_attention import DOCUMENTS
from sft.packing.equivalence import attention_mismatch, packing_mismatch, verify_packing
from sft.packing.flex_attention import FLEX, block_mask
from sft.packing.kv_cache import read_prefix
from sft.packing.layout import BLOCK, Document, Segment, attention_mask, lay_out, pack
from sft.packing.logprobs import (
    attention_of,
    enable_scoring,
    log_probs,
    row_layout,
    score,
    scoring_batch,
    sequence_sums,
)


def document(trunk, *branches):
    def segment(n, scored):
        return Segment([5] * n, [scored] * n)

    return Document(segment(trunk, False), tuple(segment(n, True) for n in branches))


def listed(counts, indices):
    """Blocks as a bool table [R, blocks, blocks]."""
    table = torch.zeros_like(indices[:, 0], dtype=torch.bool)
    for row, query in torch.cartesian_prod(*map(torch.arange, table.shape[:2])).tolist():
        table[row, query, indices[row, 0, query, : counts[row, 0, query]].long()] = True
    return table


def spread(table, length):
    """A table of blocks by token: [R, L, L]."""
    return table.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :length, :length]


def dense(mask):
    """Return the dense mask of a block mask: full blocks, and partial ones token by token."""
    length = mask.seq_lengths[0]
    index = torch.arange(length)
    rows = torch.arange(len(mask.kv_num_blocks))[:, None, None]
    seen = mask.mask_mod(rows, 0, index[None, :, None], index[None, None, :])
    some = spread(listed(mask.kv_num_blocks, mask.kv_indices), length)
    whole = spread(listed(mask.full_kv_num_blocks, mask.full_kv_indices), length)
    assert not (some & whole).any()
    # The backward pass goes by the lists the other way round.
    for counts, indices, forth in (
        (mask.q_num_blocks, mask.q_indices, some),
        (mask.full_q_num_blocks, mask.full_q_indices, whole),
    ):
        assert torch.equal(spread(listed(counts, indices).mT, length), forth)
    return whole | (some & seen)


LENGTHS = st.integers(1, 300)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, max_size=4)), min_size=1, max_size=5),
    st.sampled_from([0, 500, 2000]),
    st.sampled_from([8, 64, 128]),
    st.sampled_from([None, 1, 40, 129, 400]),
)
def test_what_blocks_compute_is_what_the_dense_mask_shows(lengths, row_length, bucket, window):
    documents = [document(trunk, *branches) for trunk, branches in lengths]
    batch = pack(documents, row_length=row_length, bucket=bucket)
    wanted = attention_mask(batch, window=window)[:, 0]
    assert torch.equal(dense(block_mask(batch, window)), wanted)


def test_blocks_that_no_token_sees_into_are_left_out_and_whole_ones_not_looked_at():
    documents = [document(3 * BLOCK, 2 * BLOCK, 2 * BLOCK), document(BLOCK)]
    batch = lay_out(documents, packing=True, rows="blocks")
    mask = block_mask(batch)
    some = listed(mask.kv_num_blocks, mask.kv_indices)[0].int().tolist()
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)[0].int().tolist()
    assert some == torch.eye(8, dtype=torch.int).tolist()
    assert whole == [
        [0, 0, 0, 0, 0, 0, 0, 0],  # trunk
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],  # first branch
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],  # second branch
        [1, 1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],  # the other document
    ]


def test_the_mask_follows_the_rows_it_was_made_for_and_nothing_else_compiles_in():
    """Numbers in a closure would be compiled anew for each batch; tensors are inputs."""
    cells = block_mask(pack([document(9, 4, 4)], row_length=0), 3).mask_mod.__closure__
    assert all(isinstance(cell.cell_contents, torch.Tensor) for cell in cells)


def test_a_leak_through_blocks_is_found(monkeypatch, caplog):
    """The kernel stood in for by sdpa over a mask in which branches see each other."""

    def leaky(module, query, key, value, mask, **kwargs):
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2), None

    monkeypatch.setattr("sft.packing.flex_attention.flex_attention_forward", leaky)
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX))
    with caplog.at_level("INFO"):
        verify_packing(model)
    assert attention_of(model) == "sdpa" and "across branches" in caplog.text


def exact(module, query, key, value, mask, **kwargs):
    """Flex attention by its definition: a dense mask out of the block mask."""
    if kwargs.get("dropout"):
        raise ValueError("`flex_attention` does not support `dropout`")
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=dense(mask)[:, None], enable_gqa=True
    )
    return out.transpose(1, 2), None


def test_the_proof_passes_what_computes_the_mask_and_refuses_attention_that_drops_out(monkeypatch):
    monkeypatch.setattr("sft.packing.flex_attention.flex_attention_forward", exact)
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX))
    assert attention_mismatch(model, training=torch.float32) is None
    assert attention_mismatch(model, training=torch.bfloat16) is None
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX, attention_dropout=0.1))
    assert attention_mismatch(model, training=None) is None
    assert "does not support `dropout`" in attention_mismatch(model, training=torch.float32)
    assert not model.training


def test_a_model_for_which_flex_attention_fails_is_read_by_masks_over_rows_and_it_is_said(
    monkeypatch, caplog
):
    monkeypatch.setattr("sft.packing.flex_attention.flex_attention_forward", exact)
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX, attention_dropout=0.1))
    with caplog.at_level("INFO"):
        verify_packing(model, training=torch.float32)
    assert attention_of(model) == "sdpa" and row_layout(model) == "masked"
    assert "attention: sdpa with masks over rows (flex, llama: ValueError: " in caplog.text
    assert packing_mismatch(model) is None


def test_a_gradient_that_a_branch_should_not_have_is_found(monkeypatch):
    """Right forwards, wrong backwards: the kernels of the two are not the same."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad + 1e-3 * grad.mean(2, keepdim=True)

    def leaky(module, query, key, value, mask, **kwargs):
        return exact(module, query, key, Wrong.apply(value), mask, **kwargs)

    monkeypatch.setattr("sft.packing.flex_attention.flex_attention_forward", leaky)
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX))
    assert "across branches" in attention_mismatch(model, training=torch.float32)


ROWS = [document(150, 40, 9, 60), document(70), document(3, 30, 200), document(20, 5)]


def test_behind_a_prefix_rows_are_read_by_masks():
    """Compiling torch's kernel would take a minute here, so it is not called."""
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX))
    sums = []
    with torch.no_grad():
        for attention in (FLEX, DOCUMENTS):
            model.set_attn_implementation(attention)
            prefix = read_prefix(model, range(3, 40))
            batch = scoring_batch(model, ROWS)
            found = score(model, batch, prefix=prefix)
            sums.append(sequence_sums(found.log_probs, batch))
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-4)


# Torch's compiler imports, once, a module that uses what torch deprecates (torch/utils/mkldnn.py).
compiles = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)


@compiles
@long
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="flex attention is compiled by g++ on a CPU"
)
def test_flex_attention_scores_as_documents_and_sdpa_do():
    """Upstream's kernel itself, compiled for this processor; forward only, as torch has it."""
    torch.compiler.reset()  # one shape: for any shape its code does not compile here (torch 2.13)
    model = enable_scoring(make_tiny_model(attn_implementation=FLEX))
    sums = {}
    for attention in (FLEX, DOCUMENTS, "sdpa"):
        model.set_attn_implementation(attention)
        batch = lay_out(ROWS, packing=True, rows=row_layout(model))
        with torch.no_grad():
            sums[attention] = sequence_sums(log_probs(model, batch), batch)
    torch.testing.assert_close(sums[FLEX], sums["sdpa"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sums[FLEX], sums[DOCUMENTS], rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # a warning of the compiler's would count as its failure
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 50])
def test_on_cuda_log_probs_and_gradients_are_those_of_sdpa(dtype, window, caplog):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    caplog.set_level("INFO", logger="sft")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=12,  # no power of 2, as in Qwen2.5-1.5B
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=window,
        initializer_range=0.2,
    )
    bare = AutoModelForCausalLM.from_config(config, attn_implementation=FLEX)
    model = enable_scoring(bare.eval()).cuda().to(dtype)
    verify_packing(model, training=dtype)
    said = [
        record.getMessage() for record in caplog.records if record.name == "sft.packing.equivalence"
    ]
    assert attention_of(model) == FLEX, said
    found = {}
    for attention in (FLEX, DOCUMENTS):
        model.set_attn_implementation(attention)
        model.zero_grad()
        batch = lay_out(ROWS, packing=True, rows=row_layout(model)).to("cuda")
        values = log_probs(model, batch)
        values.sum().backward()
        gradients = torch.cat([p.grad.float().flatten() for p in model.parameters()])
        found[attention] = (sequence_sums(values.detach(), batch), gradients)
    (ours, our_slope), (theirs, their_slope) = found[FLEX], found[DOCUMENTS]
    loose = dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2 if loose else 1e-4, atol=1e-3)
    assert (our_slope - their_slope).norm() < (0.05 if loose else 1e-3) * their_slope.norm()
