"""Measures of a base model's readiness, against a model whose costs are known."""

import math

import pytest
import torch
from files import ROOT
from tiny_models import make_tiny_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recipes.quickstart.generate import readiness

BASE = ROOT / "recipes" / "quickstart" / "base"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def uniform(tokenizer):
    """A model to which every token is equally likely."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    base = object.__new__(readiness.Base)
    base.tokenizer, base.model = tokenizer, model
    return base


def test_a_uniform_model_copies_nothing(uniform, monkeypatch):
    monkeypatch.setattr(readiness, "SEQUENCES", 3)
    assert readiness.copied_share(uniform, 0) == pytest.approx(1.0)
    nats = math.log(len(uniform.tokenizer))
    costs = readiness.name_costs(uniform, 0, tales=6)
    # A name has a whole number of tokens, in the mean over the names a fraction.
    assert all(2 * nats < cost < 12 * nats for cost in costs)
    monkeypatch.setattr(readiness, "PAGES", 4)
    assert readiness.text_cost(uniform, 0) == pytest.approx(nats)


def test_costs_do_not_depend_on_the_padding_of_a_batch():
    base = object.__new__(readiness.Base)
    base.tokenizer, base.model = None, make_tiny_model().eval()
    rows = [[5, 9, 4, 7], [3, 8, 6, 2, 11, 5, 4, 9, 10]]
    together = base.costs(rows)
    for row, cost in zip(rows, together, strict=True):
        logits = base.model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        expected = [0.0, *(-logits[i, token].item() for i, token in enumerate(row[1:]))]
        assert cost.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "word"), [("Nel met Nelu. So Nelu went.", "Nelu"), ("尼卢遇见尼卢。", "尼卢")]
)
def test_the_tokens_of_each_occurrence_hold_the_word(tokenizer, text, word):
    encoded = tokenizer(text, return_offsets_mapping=True)
    found = readiness.occurrences(encoded, text, word)
    assert len(found) == text.count(word)
    for places in found:
        assert word in tokenizer.decode([encoded.input_ids[i] for i in places])


def test_measures_keep_their_bounds():
    keeps = [("x", 0.3, 0.3, False), ("x", 0.8, 0.8, True), ("x", 5.0, None, False)]
    assert all(readiness.Measure(*values).kept for values in keeps)
    misses = [("x", 0.31, 0.3, False), ("x", 0.79, 0.8, True), ("x", math.nan, 0.3, False)]
    assert not any(readiness.Measure(*values).kept for values in misses)
