"""Sources to token rows: read, cleaned, mixed, tokenised, checked, kept in the data folder."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.chat import encode_chats
from sft.clean import (
    known_questions,
    questions_fingerprint,
    unchecked,
    without_contaminated,
    without_near_duplicates,
)
from sft.config import DataSection, Source, UserError, find_path
from sft.data import read_sft
from sft.decontaminate import Benchmarks
from sft.mix import mix
from sft.run import Stage, fingerprint, write_json
from sft.setting import Setting, tokenizer_fingerprint

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "origin": pa.string(),
        "kind": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "trained": pa.list_(pa.bool_()),
    }
)
ROWS_AT_ONCE = 4096  # held as Python lists before they go to the file


@dataclass(frozen=True)
class StageRows:
    """The rows that a stage trains on, and what its limits left out."""

    rows: Dataset
    too_long: int
    tokens: int
    trained_tokens: int


def prepare_chats(section: DataSection, setting: Setting, *, benchmarks: Benchmarks) -> Dataset:
    """Token rows of every source: columns `origin`, `kind`, `input_ids`, `trained`.

    Written to data/sft.parquet with the counts in data/data.json, and what was left out with its
    evidence in data/duplicates.jsonl and data/contamination.jsonl; read back where that is done
    already and no source, option, question, tokenizer or template has changed. One process works,
    the others read what it wrote.

    Raises:
        UserError: a row breaks a rule or holds a question of a benchmark and `data.on_error` is
            stop; or nothing is left to train on.
    """
    stage = Stage(
        setting.folder / "data",
        {
            "sources": fingerprint([source_fingerprint(s) for s in section.sft]),
            "options": fingerprint(
                [
                    [asdict(s) for s in section.sft],
                    section.on_error,
                    section.near_duplicates,
                    setting.seed,
                ]
            ),
            "questions": questions_fingerprint(section, benchmarks),
            "tokenizer": tokenizer_fingerprint(setting.tokenizer),
        },
    )
    state = PartialState()
    with state.main_process_first():
        done = stage.finished()
        # Again, too, where a benchmark could not be loaded the last time.
        if done is None or (done["unchecked"] and state.is_main_process):
            stage.begin()
            facts = _prepare(section, setting, benchmarks=benchmarks, folder=stage.folder)
            write_json(stage.folder / "data.json", facts)
            stage.finish(
                outputs=["sft.parquet", "data.json", "duplicates.jsonl", "contamination.jsonl"],
                facts={"unchecked": facts["unchecked"]},
            )
        path = stage.folder / "sft.parquet"
        if not pq.read_metadata(path).num_rows:  # which from_parquet refuses
            return Dataset(pq.read_table(path))
        return Dataset.from_parquet(str(path), cache_dir=str(stage.folder / ".cache"))


def source_fingerprint(source: Source) -> str:
    """The hash of a local file, or the name of a hub data set."""
    path = find_path(source.path)
    return fingerprint(path) if path else f"hub:{source.path}:{source.split}"


def _prepare(
    section: DataSection, setting: Setting, *, benchmarks: Benchmarks, folder: Path
) -> dict[str, Any]:
    """Write the token rows and the evidence; returns the facts of data.json."""
    read = read_sft(section.sft, on_error=section.on_error)
    known = known_questions(section, benchmarks)
    read = without_contaminated(
        read, known, on_error=section.on_error, evidence=folder / "contamination.jsonl"
    )
    read = without_near_duplicates(
        read, threshold=section.near_duplicates, evidence=folder / "duplicates.jsonl"
    )
    facts = {
        "sources": [asdict(count) for count in read.counts],
        "questions": {name: len(questions) for name, questions in known.items()},
        "unchecked": unchecked(known),
    }
    chats = mix(read, section.sft, seed=setting.seed)
    written = _tokenise(
        chats, setting.tokenizer, on_error=section.on_error, path=folder / "sft.parquet"
    )
    return facts | {"mixed": len(chats)} | written


def _tokenise(
    chats: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, *, on_error: str, path: Path
) -> dict[str, Any]:
    """Token rows straight to the file, some at a time; returns what they come to."""
    problems: list[str] = []
    kinds: Counter[str] = Counter()
    tokens = trained_tokens = 0

    def rows() -> Iterator[dict[str, Any]]:
        for chat, encoded in zip(chats, encode_chats(tokenizer, chats), strict=True):
            if not isinstance(encoded, UserError):
                place = {"origin": chat["origin"], "kind": chat["kind"]}
                yield place | {"input_ids": encoded.input_ids, "trained": encoded.trained}
                continue
            problem = f"{chat['origin']}: {encoded}"
            if on_error == "stop":
                raise UserError(problem)
            problems.append(problem)

    encoded_rows = rows()
    with pq.ParquetWriter(path, SCHEMA) as writer:
        while some := list(islice(encoded_rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, SCHEMA))
            kinds.update(row["kind"] for row in some)
            tokens += sum(len(row["input_ids"]) for row in some)
            trained_tokens += sum(sum(row["trained"]) for row in some)
    if problems and not kinds:
        raise UserError(f"no row of data.sft could be tokenised; the first problem: {problems[0]}")
    return {
        "not_tokenised": {"count": len(problems), "problems": problems[:20]},
        "kinds": dict(kinds),
        "tokens": tokens,
        "trained_tokens": trained_tokens,
    }


def rows_fingerprint(rows: Dataset) -> str:
    """The hash of token rows, however they are cut and stored."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        for name, column in zip(table.column_names, table.columns, strict=True):
            digest.update(name.encode())
            for values in (pc.list_value_length(column), pc.list_flatten(column)):
                digest.update(values.to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()


def rows_of_stage(
    rows: Dataset, *, kinds: list[str], max_length: int | None, on_error: str, where: str
) -> StageRows:
    """The rows of the stage's kinds that fit into `max_length` tokens; longer ones are left out.

    Raises:
        UserError: none is left; or, where `on_error` is "stop", most are too long.
    """
    present = Counter(rows["kind"])
    missing = [kind for kind in kinds if kind not in present]
    if missing:
        raise UserError(
            f"{where}.kinds={kinds}: no row is of kind {', '.join(missing)}; the rows are "
            f"{', '.join(f'{n} {kind}' for kind, n in present.items())}"
        )
    lengths = pc.list_value_length(rows.data["input_ids"]).to_pylist()
    of_kind = [i for i, kind in enumerate(rows["kind"]) if not kinds or kind in kinds]
    fitting = [i for i in of_kind if max_length is None or lengths[i] <= max_length]
    too_long = len(of_kind) - len(fitting)
    if not fitting or (on_error == "stop" and too_long > len(of_kind) / 2):
        raise UserError(
            f"{where}.max_length={max_length}: {too_long} of {len(of_kind)} rows are longer; raise "
            "it (the model's context is the limit), shorten the rows, or set data.on_error=drop"
        )
    if too_long:
        log.warning(
            "%s: %d of %d rows are longer than max_length=%s and left out",
            where,
            too_long,
            len(of_kind),
            max_length,
        )
    chosen = rows.select(fitting).select_columns(["input_ids", "trained"])
    trained = sum(
        pc.sum(pc.list_flatten(table["trained"])).as_py()
        for table in chosen.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)
    )
    return StageRows(chosen, too_long, sum(lengths[i] for i in fitting), trained)
