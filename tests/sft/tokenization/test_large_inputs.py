"""Large and long inputs: reading and tokenizing hold what they must keep, and no more."""

import json
import tracemalloc

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from launching import long
from tiny_models import make_tiny_model, make_tiny_tokenizer
from training import make_context

from sft.chat_template.encoding import encode_chat
from sft.chat_template.template import ensure_template
from sft.config.sections import SftStage, Source
from sft.data.sources import read_sft
from sft.packing.logprobs import enable_scoring
from sft.tokenization import tokenize
from sft.tokenization.tokenize import write_token_rows
from sft.training.trainer import train_sft


@pytest.fixture(scope="module")
def tokenizer():
    made = make_tiny_tokenizer()
    ensure_template(made)
    return made


def write_rows(path, count):
    with path.open("w") as stream:
        for i in range(count):
            said = [
                {"role": "user", "content": f"{i} times {i}, and what is said of it?"},
                {"role": "assistant", "content": f"It is {i * i}: {'so ' * 20}{i}."},
            ]
            stream.write(json.dumps({"messages": said}) + "\n")
    return path


def held(run):
    """Bytes that `run` holds at its peak and when it is done, and what it returns."""
    tracemalloc.start()
    try:
        result = run()
        now, peak = tracemalloc.get_traced_memory()
        return peak, now, result
    finally:
        tracemalloc.stop()


def test_reading_holds_the_rows_and_nothing_that_grows_faster(tmp_path):
    rates = []
    for count in (500, 4_000):
        path = write_rows(tmp_path / f"{count}.jsonl", count)
        peak, now, read = held(lambda: read_sft([Source(str(path))]))  # noqa: B023
        assert len(read.rows) == count
        # Of the peak only the digests of duplicates are let go again.
        assert peak < 1.5 * now
        rates.append(now / count)
    assert rates[1] < 1.2 * rates[0] and rates[1] < 3_000, "bytes a row of 200"


def test_tokenizing_holds_some_rows_at_once_however_many_there_are(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenize, "ROWS_AT_ONCE", 128)
    rows = read_sft([Source(str(write_rows(tmp_path / "r.jsonl", 1024)))]).rows
    peaks = []
    for count in (128, 1024):
        options = {"turns": "all", "split_at": None, "on_error": "stop"}
        file = tmp_path / f"{count}.parquet"
        peak, _, facts = held(
            lambda: write_token_rows(rows[:count], tokenizer, file, **options)  # noqa: B023
        )
        assert pq.read_metadata(file).num_rows == facts["kinds"]["other"] == count
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0]


def test_a_chat_of_five_hundred_turns_trains_every_answer(tokenizer):
    chat = [
        {"role": ("user", "assistant")[i % 2], "content": f"turn {i} of a long evening"}
        for i in range(500)
    ]
    encoded = encode_chat(tokenizer, chat)
    assert encoded.untrained_turns == 0
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pairs = zip(encoded.input_ids, encoded.trained, strict=True)
    assert sum(trained and token == end for token, trained in pairs) == 250
    text = tokenizer.decode(
        [t for t, on in zip(encoded.input_ids, encoded.trained, strict=True) if on]
    )
    assert text == "".join(f"{m['content']}<|im_end|>" for m in chat[1::2])


def peak_of_a_step(tokens, tokenizer, folder):
    """Bytes of the largest tensor that one step on a row of `tokens` makes (CPU, documents)."""
    folder.mkdir()
    ids = [5 + i % 200 for i in range(tokens)]
    rows = Dataset.from_list([{"input_ids": ids, "trained": [i > 3 for i in range(tokens)]}])
    options = {"per_device_train_batch_size": 1, "max_steps": 1, "max_length": None}
    section = SftStage(train_batch_size=1, trl=SftStage().trl | options)
    model = enable_scoring(
        make_tiny_model(attn_implementation="documents", max_position_embeddings=40_000)
    )
    largest = _Largest()
    with largest:
        train_sft(
            model,
            rows,
            section=section,
            context=make_context(tokenizer, folder),
            folder=folder,
            label="sft",
        )
    return largest.bytes


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches the size of every tensor that an operation gives back."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@pytest.mark.parametrize("tokens", [4_096, pytest.param(32_768, marks=long)])
def test_memory_of_a_long_row_grows_with_its_length_and_not_its_square(tokens, tokenizer, tmp_path):
    short = peak_of_a_step(tokens // 4, tokenizer, tmp_path / "short")
    whole = peak_of_a_step(tokens, tokenizer, tmp_path / "whole")
    assert whole < 6 * short


@long
def test_a_million_rows_are_read_in_memory_that_their_text_explains(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", 1_000_000)
    _, now, read = held(lambda: read_sft([Source(str(path))]))
    assert len(read.rows) == 1_000_000 and now < 12 * path.stat().st_size
