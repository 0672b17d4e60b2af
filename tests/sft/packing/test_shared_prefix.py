"""Rows that share a prefix: what is trained, and on which context, is that of the rows alone."""

import pytest
import torch
from chat_templates import THINKING, make_tokenizer
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_tiny_model
from training import train

from sft.config.sections import SftStage, Source
from sft.data.sources import read_sft
from sft.packing.layout import lay_out, unshared
from sft.packing.logprobs import enable_scoring, log_probs, sequence_sums
from sft.packing.shared_prefix import share_prefixes
from sft.planning.budget import chats_workload
from sft.tokenization.truncation import encode_and_split
from sft.training.micro_batches import chat_document


def row(ids, answer, origin="f:1"):
    """A row of which the last `answer` tokens are trained."""
    flags = [i >= len(ids) - answer for i in range(len(ids))]
    return {"origin": origin, "input_ids": list(ids), "trained": flags}


def alone(rows):
    """The documents of a dataset as rows without branches."""
    return [
        (list(each.trunk.ids), list(each.trunk.scored))
        for one in rows
        for each in unshared(chat_document(one))
    ]


def test_the_docstring_example():
    a, b, c, d, x, y, z = range(10, 17)
    rows = [row([a, b, x], 1), row([a, b, c, y], 1), row([a, b, c, d, z], 1)]
    (shared,) = share_prefixes(Dataset.from_list(rows), limit=9)
    assert shared["input_ids"] == [a, b, x, c, y, c, d, z]
    assert shared["trained"] == [False, False, True, False, True, False, False, True]
    assert shared["branches"] == [1, 2, 3]


@st.composite
def chats(draw):
    """Rows of several chats, each of which continues the row before."""
    rows = []
    for number in range(draw(st.integers(1, 4))):
        history = draw(st.lists(st.integers(3, 6), min_size=1, max_size=8))
        for _ in range(draw(st.integers(1, 5))):
            answer = draw(st.lists(st.integers(3, 6), min_size=1, max_size=6))
            rows.append(row([*history, *answer], len(answer), f"f:{number}"))
            kept = draw(st.integers(1, len(history)))  # a template may rewrite the end
            history = history[:kept] + draw(st.lists(st.integers(3, 6), max_size=8))
    return rows


@settings(max_examples=200, deadline=None)
@given(chats(), st.integers(8, 60))
def test_every_row_is_there_once_in_order_and_no_document_is_longer_than_the_limit(rows, limit):
    shared = share_prefixes(Dataset.from_list(rows), limit=limit)
    assert alone(shared) == [(each["input_ids"], each["trained"]) for each in rows]
    longest = max(len(each["input_ids"]) for each in rows)
    assert all(len(document["input_ids"]) <= max(limit, longest) for document in shared)
    assert all(len(d["input_ids"]) <= limit for d in shared if d["branches"])
    tokens = sum(len(each["input_ids"]) for each in rows)
    assert sum(len(document["input_ids"]) for document in shared) <= tokens


@pytest.fixture
def rows(tiny_tokenizer):
    """Each turn of three chats under a template that writes history without thinking."""
    tiny_tokenizer.chat_template = THINKING
    chats = [
        {
            "messages": [
                {"role": ("user", "assistant")[i % 2], "content": f"{c}{i} " * (8 - i)}
                for i in range(2 * turns)
            ],
            "origin": f"f:{c}",
            "kind": "k",
        }
        for c, turns in (("a", 3), ("b", 1), ("c", 4))
    ]
    found = encode_and_split(tiny_tokenizer, chats, turns="each", split_at=None)
    return Dataset.from_list(
        [
            {"origin": chat["origin"], "input_ids": one.input_ids, "trained": one.trained}
            for chat, one in found
        ]
    )


@pytest.mark.parametrize(
    ("attention", "kind"),
    [("documents", "flat"), ("sdpa", "masked"), ("eager", "masked"), ("sdpa", "separate")],
)
def test_log_probs_and_gradients_are_those_of_the_rows_alone(rows, attention, kind):
    model = enable_scoring(make_tiny_model(attn_implementation=attention))
    shared = share_prefixes(rows, limit=1000)
    assert len(shared) < len(rows) == 8 and any(len(each) > 1 for each in shared["branches"])
    results = []
    for one, packing, layout in ((rows, False, "masked"), (shared, True, kind)):
        model.zero_grad()
        batch = lay_out([chat_document(each) for each in one], packing=packing, rows=layout)
        scores = log_probs(model, batch)
        (-scores.mean()).backward()
        results.append((sequence_sums(scores, batch), [p.grad.clone() for p in model.parameters()]))
    (separate, one_by_one), (together, packed) = results
    torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-4)
    for found, expected in zip(packed, one_by_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_training_on_shared_rows_ends_with_the_weights_of_separate_ones(
    rows, tiny_tokenizer, tmp_path
):
    """A step on all documents is a step on all rows."""
    options = {"num_train_epochs": 3, "max_length": 1000}
    shared = share_prefixes(rows, limit=1000)
    _, separate, model = train(rows, tiny_tokenizer, tmp_path / "a", batch=8, **options)
    size = len(shared) + 1  # one row fills up the step
    facts, together, other = train(
        shared, tiny_tokenizer, tmp_path / "b", micro=size, batch=size, **options
    )
    torch.testing.assert_close(torch.tensor(together), torch.tensor(separate), rtol=1e-4, atol=1e-5)
    for found, expected in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert facts.tokens < 3 * sum(map(len, rows["input_ids"]))


def test_the_plan_counts_shared_prefixes_once(rows):
    shared = share_prefixes(rows, limit=1000)
    separate, together = (chats_workload("sft-all", SftStage(), each) for each in (rows, shared))
    assert sum(together.scored) == sum(separate.scored)
    assert together.tokens == sum(map(len, shared["input_ids"])) < separate.tokens
    for span, document in zip(together.spans, shared, strict=True):
        whole = chat_document(document)
        assert span.trunk == len(whole.trunk.ids)
        assert span.branches == tuple(len(branch.ids) for branch in whole.branches)


@pytest.mark.real
def test_real_chats_take_fewer_tokens_and_train_the_same(real_data):
    path = str(real_data / "sft/medicalgpt_sharegpt_zh_1k.jsonl.gz")
    chats = read_sft([Source(path=path, kind="k")], on_error="drop").rows[:100]
    tokenizer = make_tokenizer(THINKING)
    found = encode_and_split(tokenizer, chats, turns="each", split_at=None)
    rows = Dataset.from_list(
        [
            {"origin": chat["origin"], "input_ids": one.input_ids, "trained": one.trained}
            for chat, one in found
            if len(one.input_ids) <= 4096
        ]
    )
    shared = share_prefixes(rows, limit=4096)
    assert alone(shared) == [(each["input_ids"], each["trained"]) for each in rows]
    before, after = (sum(map(len, each["input_ids"])) for each in (rows, shared))
    assert after < 0.85 * before
