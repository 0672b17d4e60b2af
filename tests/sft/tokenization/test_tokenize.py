"""Token rows come out the same, in the same order, however many processes make them."""

import os
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

import sft.tokenization.tokenize
from sft.chat_template.encoding import encode_chat
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.tokenization.tokenize import encode_chunk, write_token_rows

OPTIONS = {"turns": "all", "split_at": None}


def chat(number, answer="yo"):
    asked = "hi " * (number % 7 + 1)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "origin": f"f:{number}", "kind": f"k{number % 2}"}


@pytest.fixture
def tokenizer(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    return tiny_tokenizer


def share(monkeypatch):
    """Parts of five chats each, by two processes."""
    if sys.platform != "linux":
        pytest.skip("processes are forked on Linux alone")
    monkeypatch.setattr(sft.tokenization.tokenize, "PARALLEL_FROM", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


@pytest.fixture(params=["alone", "shared"])
def processes(request, monkeypatch):
    monkeypatch.setattr(sft.tokenization.tokenize, "ROWS_AT_ONCE", 5)
    if request.param == "shared":
        share(monkeypatch)
    return request.param


def test_rows_and_sums_are_those_of_each_chat_alone(processes, tokenizer, tmp_path):
    chats = [chat(i, answer="yo " * (i % 5 + 1)) for i in range(23)]
    facts = write_token_rows(chats, tokenizer, tmp_path / "a", on_error="stop", **OPTIONS)
    rows = pq.read_table(tmp_path / "a").to_pylist()
    alone = [encode_chat(tokenizer, c["messages"]) for c in chats]
    assert [(r["input_ids"], r["trained"]) for r in rows] == [
        (a.input_ids, a.trained) for a in alone
    ]
    assert [(r["origin"], r["kind"]) for r in rows] == [(c["origin"], c["kind"]) for c in chats]
    assert facts["kinds"] == Counter(c["kind"] for c in chats)
    assert facts["tokens"] == sum(len(a.input_ids) for a in alone)
    assert facts["trained_tokens"] == sum(sum(a.trained) for a in alone)
    assert facts["pieces"] == facts["untrained_turns"] == 0


def test_the_first_problem_in_order_stops_or_all_are_counted(processes, tokenizer, tmp_path):
    bad = {3, 11, 12}
    chats = [chat(i, answer="<|im_end|>" if i in bad else "yo") for i in range(20)]
    with pytest.raises(UserError, match=r"^f:3: .*<\|im_end\|>"):
        write_token_rows(chats, tokenizer, tmp_path / "a", on_error="stop", **OPTIONS)
    facts = write_token_rows(chats, tokenizer, tmp_path / "b", on_error="drop", **OPTIONS)
    assert facts["not_tokenised"]["count"] == 3
    assert [p.split()[0] for p in facts["not_tokenised"]["problems"]] == ["f:3:", "f:11:", "f:12:"]
    kept = [r["origin"] for r in pq.read_table(tmp_path / "b").to_pylist()]
    assert kept == [f"f:{i}" for i in range(20) if i not in bad]
    with pytest.raises(UserError, match=r"no row of data\.sft could be tokenized.*f:3"):
        write_token_rows([chats[3]], tokenizer, tmp_path / "c", on_error="drop", **OPTIONS)


def test_other_processes_do_the_work_where_it_is_shared(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sft.tokenization.tokenize, "ROWS_AT_ONCE", 5)
    share(monkeypatch)
    workers = tmp_path / "workers"
    workers.mkdir()

    def encode(*args, **kwargs):
        (workers / str(os.getpid())).touch()
        return encode_chunk(*args, **kwargs)

    monkeypatch.setattr(sft.tokenization.tokenize, "encode_chunk", encode)
    chats = [chat(i) for i in range(30)]
    write_token_rows(chats, tokenizer, tmp_path / "a", on_error="stop", **OPTIONS)
    assert {p.name for p in workers.iterdir()}.isdisjoint({str(os.getpid())})
