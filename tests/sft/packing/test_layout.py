"""The layout is right when nothing outside a token's trunk and branch can move its score."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILY, make_tiny_model

from sft.errors import UserError
from sft.model.architecture import window_of
from sft.packing.document_attention import document_attention
from sft.packing.equivalence import packing_mismatch, verify_packing
from sft.packing.layout import Document, Segment, attention_mask, best_fit, lay_out, pack, unshared
from sft.packing.logprobs import (
    enable_scoring,
    log_probs,
    row_layout,
    score,
    sequence_sums,
)


def scored(ids):
    return Segment(list(ids), [True] * len(ids))


def silent(ids):
    return Segment(list(ids), [False] * len(ids))


def chat(ids):
    return Document(Segment(list(ids), [False] + [True] * (len(ids) - 1)))


def test_the_docstring_example():
    a, b, c, d, e, f, g = 11, 12, 13, 14, 15, 16, 17
    batch = pack(
        [Document(silent([a, b]), (scored([c]), scored([d, e]))), chat([f, g])],
        row_length=8,
        bucket=8,
    )
    assert batch.input_ids.tolist() == [[a, b, c, d, e, f, g, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 0]]
    assert batch.document.tolist() == [[0, 0, 0, 0, 0, 1, 1, -1]]
    assert batch.branch.tolist() == [[0, 0, 1, 2, 2, 0, 0, 0]]
    assert batch.source.tolist() == [1, 1, 3, 5]
    assert batch.target.tolist() == [c, d, e, g]
    assert batch.sequence.tolist() == [0, 1, 1, 2]
    assert batch.num_sequences == 3
    assert batch.num_tokens == 7


def test_the_mask_shows_own_trunk_and_own_branch_only():
    batch = pack(
        [Document(silent([1, 2]), (scored([3]), scored([4]))), chat([5, 6])],
        row_length=7,
        bucket=7,
    )
    seen = [
        [column for column in range(7) if row[column]]
        for row in attention_mask(batch)[0, 0].tolist()
    ]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [4], [4, 5], [6]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 64))
def test_best_fit_places_every_document_once_and_overfills_no_row(lengths, row_length):
    bins = best_fit(lengths, row_length=row_length)
    assert sorted(i for row in bins for i in row) == list(range(len(lengths)))
    for row in bins:
        assert len(row) == 1 or sum(lengths[i] for i in row) <= row_length
    # Never two rows that would have fitted in one.
    sums = sorted(sum(lengths[i] for i in row) for row in bins)
    assert len(sums) < 2 or sums[0] + sums[1] > row_length


DOCUMENTS = [
    chat(range(10, 22)),
    Document(silent(range(30, 37)), (scored(range(40, 45)), scored(range(50, 52)))),
    chat(range(60, 70)),
]


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
@pytest.mark.parametrize("row_length", [0, 16, 64])
def test_packed_log_probs_equal_the_models_own_on_each_sequence(attention, row_length):
    model = enable_scoring(make_tiny_model(attn_implementation=attention))
    batch = pack(DOCUMENTS, row_length=row_length)
    packed = sequence_sums(log_probs(model, batch), batch)
    plain = []
    for prompt, completion in [
        ([10], range(11, 22)),
        (range(30, 37), range(40, 45)),
        (range(30, 37), range(50, 52)),
        ([60], range(61, 70)),
    ]:
        tokens = torch.tensor([[*prompt, *completion]])
        logits = model(input_ids=tokens).logits[0, len(prompt) - 1 : -1]
        picked = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])
        plain.append(picked.sum())
    torch.testing.assert_close(packed, torch.stack(plain), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_gradients_are_those_of_unpacked_rows(attention):
    model = enable_scoring(make_tiny_model(attn_implementation=attention))
    gradients = []
    for row_length in (0, 64):
        model.zero_grad()
        batch = pack(DOCUMENTS, row_length=row_length)
        (-log_probs(model, batch).mean()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for alone, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_changing_one_branch_moves_no_other_sequence(attention):
    model = enable_scoring(make_tiny_model(attn_implementation=attention))
    changed = list(DOCUMENTS)
    changed[1] = Document(DOCUMENTS[1].trunk, (scored(range(90, 95)), DOCUMENTS[1].branches[1]))
    with torch.no_grad():
        before, after = (
            sequence_sums(log_probs(model, b), b)
            for b in (pack(DOCUMENTS, row_length=64), pack(changed, row_length=64))
        )
    assert before[1] != after[1]
    assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])


def test_chunks_of_the_vocabulary_projection_change_nothing(tiny_model, monkeypatch):
    model = enable_scoring(tiny_model)
    batch = pack(DOCUMENTS, row_length=64)
    results = []
    for rows, budget in ((1024, 2**21), (4, 4 * 100)):
        monkeypatch.setattr("sft.packing.lm_head_logprobs.MAX_ROWS", rows)
        monkeypatch.setattr("sft.packing.lm_head_logprobs.CPU_SLICE", budget)
        model.zero_grad()
        scores = score(model, batch)
        scores.log_probs.sum().backward()
        results.append((scores, model.model.embed_tokens.weight.grad.clone()))
    (whole, whole_grad), (chunked, chunked_grad) = results
    torch.testing.assert_close(chunked.log_probs, whole.log_probs, rtol=0, atol=1e-6)
    torch.testing.assert_close(chunked_grad, whole_grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(chunked.is_argmax, whole.is_argmax)


# Layers with a window of three tokens (Mistral), also next to layers that attend to all tokens, in
# the ways that transformers configures them.
WINDOWED = {
    "Mistral": {},
    "Gemma3Text": {"layer_types": ["sliding_attention", "full_attention"]},
    "Qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "Olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
}


def windowed_model(name, attention):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=3,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **WINDOWED[name],
    )
    kind = transformers.AutoModelForCausalLM
    return enable_scoring(kind.from_config(config, attn_implementation=attention).eval())


@pytest.mark.parametrize("attention", ["sdpa", "eager", "documents"])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_layer_sees_no_further_in_packed_rows_than_alone(name, attention):
    model = windowed_model(name, attention)
    assert packing_mismatch(model) is None
    rng = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 260, (n,), generator=rng) for n in (40, 9, 23)]
    batch = pack([chat(text.tolist()) for text in texts], row_length=80)
    with torch.no_grad():
        sums = sequence_sums(log_probs(model, batch), batch)
        for text, total in zip(texts, sums, strict=True):
            logits = model(input_ids=text[None]).logits[0, :-1].float()
            alone = logits.log_softmax(-1).gather(1, text[1:, None]).sum()
            torch.testing.assert_close(total, alone, rtol=0, atol=1e-4 * len(text))
        model.config.sliding_window = 1000
        wide = model(input_ids=texts[0][None]).logits[0, :-1].float()
        wide = wide.log_softmax(-1).gather(1, texts[0][1:, None]).sum()
    assert abs(wide - sums[0]) > 0.1, "the window must matter for this test to say anything"


def test_sequences_are_no_longer_than_the_chunks_that_layers_attend_in():
    """Llama 4's layers see their own chunk of a sequence alone, which packed rows do not know."""
    torch.manual_seed(0)
    chunks = {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 12}
    config = transformers.Llama4TextConfig(
        **FAMILY | chunks | {"moe_layers": [], "intermediate_size_mlp": 64, "head_dim": 8},
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="documents")
    model = enable_scoring(model.eval())
    assert window_of(config) == 12
    assert window_of(make_tiny_model(max_position_embeddings=64).config) == 64

    def error(length):
        """How far a sequence's log-prob in a packed row lies from the model's own."""
        rng = torch.Generator().manual_seed(length)
        text = torch.randint(3, 260, (length,), generator=rng)
        batch = pack([chat(text.tolist()), chat([5, 6, 7])], row_length=80)
        with torch.no_grad():
            logits = model(input_ids=text[None]).logits[0, :-1].log_softmax(-1)
            alone = logits.gather(1, text[1:, None]).sum()
            sums = sequence_sums(log_probs(model, batch), batch)
        return min((total - alone).abs().item() for total in sums)

    assert error(12) < 1e-4 < 0.01 < error(30)


# A convolution, a linear attention, a state space with attention, and one without.
CARRYING = {
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "head_dim": 8,
        "num_experts": 2,
        "mlp_only_layers": [0, 1],
    },
    "Bamba": {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
}


@pytest.mark.parametrize("name", ["DeepseekV2", "DeepseekV3"])
def test_values_of_another_width_than_keys_go_by_document(name):
    torch.manual_seed(0)
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    heads = {"num_key_value_heads": 4, "v_head_dim": 8, "head_dim": 8, "first_k_dense_replace": 2}
    config = getattr(transformers, f"{name}Config")(**FAMILY | ranks | heads)
    kind = transformers.AutoModelForCausalLM
    model = enable_scoring(kind.from_config(config, attn_implementation="documents").eval())
    verify_packing(model, training=torch.float32)
    assert row_layout(model) == "flat"
    model.config._attn_implementation = "sdpa"  # what it is held against reads masks over rows
    batch = lay_out(DOCUMENTS, packing=True, rows="masked")
    over_rows = sequence_sums(log_probs(model, batch), batch)
    model.config._attn_implementation = "documents"
    batch = lay_out(DOCUMENTS, packing=True, rows="flat")
    torch.testing.assert_close(sequence_sums(log_probs(model, batch), batch), over_rows)


def test_a_model_that_takes_no_mask_over_rows_gets_a_row_for_each_sequence():
    """Bloom builds its biases from a mask of padding."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4)
    kind = transformers.AutoModelForCausalLM
    model = enable_scoring(kind.from_config(config, attn_implementation="eager").eval())
    verify_packing(model)
    assert row_layout(model) == "separate" and packing_mismatch(model) is None


def test_a_model_whose_tokens_see_what_follows_is_refused_by_name():
    config = transformers.BertGenerationConfig(**FAMILY, is_decoder=False)
    model = enable_scoring(transformers.AutoModelForCausalLM.from_config(config))
    with pytest.raises(UserError, match=r"a 'bert-generation' model sees the tokens that follow"):
        verify_packing(model)


@pytest.mark.parametrize("name", CARRYING)
def test_layers_that_carry_something_over_get_a_row_for_each_sequence(name, caplog):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**FAMILY | CARRYING[name])
    model = enable_scoring(transformers.AutoModelForCausalLM.from_config(config).eval())
    with caplog.at_level("INFO"):
        verify_packing(model)
    assert row_layout(model) == "separate" and "packing: off" in caplog.text
    batch = lay_out(DOCUMENTS, packing=True, rows="separate")
    sums = sequence_sums(log_probs(model, batch), batch)
    sums[1].backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    alone = [Document(chat(range(10, 22)).trunk), *unshared(DOCUMENTS[1]), DOCUMENTS[2]]
    for i, document in enumerate(alone):
        model.zero_grad(set_to_none=True)
        segment = document.trunk
        tokens = torch.tensor([segment.ids])
        logits = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        own = logits.gather(1, tokens[0, 1:, None]).squeeze(1)[torch.tensor(segment.scored[1:])]
        torch.testing.assert_close(sums[i], own.sum(), rtol=1e-5, atol=1e-4)
        if i == 1:
            own.sum().backward()
            for got, parameter in zip(gradients, model.parameters(), strict=True):
                if got is not None or parameter.grad is not None:
                    torch.testing.assert_close(got, parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_proof_refuses_a_layer_that_sees_what_is_not_there():
    model = make_tiny_model()
    verify_packing(enable_scoring(model))
    assert row_layout(model) == "masked"

    def mix(module, inputs, output):
        return output + 0.1 * output.mean(0, keepdim=True)  # over rows

    model.model.layers[0].mlp.register_forward_hook(mix)
    with pytest.raises(ValueError, match="rows do not score as single sequences"):
        verify_packing(model)


def test_attention_that_cannot_go_by_document_is_refused_by_name(tiny_model):
    states = torch.zeros(1, 1, 4, 8)
    spans = pack([chat(range(4))], row_length=0).spans
    with pytest.raises(ValueError, match="attention with softcap is not computed"):
        document_attention(tiny_model, states, states, states, None, documents=spans, softcap=5.0)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (Document(silent([])), "empty trunk"),
        (Document(scored([1, 2])), "first token"),
        (Document(silent([1]), (scored([]),)), "empty branch"),
    ],
)
def test_what_nothing_could_predict_is_refused(document, words):
    with pytest.raises(ValueError, match=words):
        pack([document], row_length=8)
