"""Tokenizes chats to a Parquet file of token rows, in chunks, on all cores if that is faster."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from sft.chat_template.system_prompt import lacks_system
from sft.data.sources import MAX_PROBLEMS
from sft.distributed.workers import Workers
from sft.errors import UserError
from sft.system.atomic_files import writing
from sft.tokenization.truncation import encode_and_split

SCHEMA = pa.schema(
    {
        "origin": pa.string(),
        "kind": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "trained": pa.list_(pa.bool_()),
        "untrained": pa.int32(),  # assistant turns of the chat that no row trains
    }
)
COUNTS = ("tokens", "trained_tokens", "untrained_turns", "pieces", "without_system")
ROWS_AT_ONCE = 4096  # rows held as Python lists before they are written
# Fewer chats are tokenized faster without starting processes.
PARALLEL_FROM = 4 * ROWS_AT_ONCE

Encode = partial["TokenizedChunk"]


@dataclass(frozen=True)
class TokenizedChunk:
    """The token rows of some chats, sums over them, and messages of chats that failed."""

    rows: pa.Table
    counts: Counter[str]
    problems: list[str]


def write_token_rows(
    chats: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    turns: str,
    split_at: int | None,
    on_error: str,
) -> dict[str, Any]:
    """Write the chats' token rows, in order, to a Parquet file; return counts.

    Raises UserError if a chat cannot be tokenized and `on_error` is stop, or if none can.
    """
    problems: list[str] = []
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    encode = partial(encode_chunk, tokenizer, turns=turns, split_at=split_at)
    with writing(path), pq.ParquetWriter(path, SCHEMA) as writer:
        for part in _tokenize_chunks(encode, chats):
            if part.problems and on_error == "stop":
                raise UserError(part.problems[0])
            writer.write_table(part.rows)
            problems += part.problems
            counts += part.counts
            kinds.update(part.rows["kind"].to_pylist())
    if problems and not kinds:
        raise UserError(f"no row of data.sft could be tokenized; the first problem: {problems[0]}")
    return {
        "not_tokenised": {"count": len(problems), "problems": problems[:MAX_PROBLEMS]},
        "kinds": dict(kinds),
        **{name: counts[name] for name in COUNTS},
    }


def encode_chunk(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[dict[str, Any]],
    *,
    turns: str,
    split_at: int | None,
) -> TokenizedChunk:
    """Return the token rows of these chats (see `truncation.encode_and_split`)."""
    rows, problems = [], []
    counts: Counter[str] = Counter()
    for chat, encoded in encode_and_split(tokenizer, chats, turns=turns, split_at=split_at):
        if isinstance(encoded, UserError):
            problems.append(f"{chat['origin']}: {encoded}")
            continue
        facts = (encoded.input_ids, encoded.trained, encoded.untrained_turns)
        rows.append(dict(zip(SCHEMA.names, (chat["origin"], chat["kind"], *facts), strict=True)))
        counts["tokens"] += len(encoded.input_ids)
        counts["trained_tokens"] += sum(encoded.trained)
        counts["untrained_turns"] += encoded.untrained_turns
        counts["pieces"] += "piece" in chat
        counts["without_system"] += "messages" in chat and lacks_system(chat["messages"])
    return TokenizedChunk(pa.Table.from_pylist(rows, SCHEMA), counts, problems)


def _tokenize_chunks(encode: Encode, chats: Sequence[dict[str, Any]]) -> Iterator[TokenizedChunk]:
    # Forked processes share chats and tokenizer; forking is unsafe outside of Linux.
    starts = range(0, len(chats), ROWS_AT_ONCE)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if cores < 2 or len(chats) < PARALLEL_FROM:
        for start in starts:
            yield encode(chats[start : start + ROWS_AT_ONCE])
        return
    pool = ProcessPoolExecutor(
        min(cores, len(starts)),
        mp_context=Workers(),
        initializer=_init_worker,
        initargs=(encode, chats),
    )
    try:
        yield from pool.map(_encode_from, starts)
    finally:
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}  # arguments of a forked process


def _init_worker(encode: Encode, chats: Sequence[dict[str, Any]]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each, no fork warning
    _worker.update(encode=encode, chats=chats)


def _encode_from(start: int) -> TokenizedChunk:
    chunk: TokenizedChunk = _worker["encode"](_worker["chats"][start : start + ROWS_AT_ONCE])
    return chunk
