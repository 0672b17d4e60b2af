"""Prepares token rows: read, clean, mix, tokenize and check the sources, and cache the result."""

import glob
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets
from datasets.exceptions import DatasetGenerationError

from sft.chat_template.encoding import EncodedChat
from sft.chat_template.tokenizer_coverage import check_row_coverage
from sft.cleaning.decontamination import Benchmarks
from sft.cleaning.filters import (
    drop_contaminated,
    drop_near_duplicates,
    known_questions,
    questions_fingerprint,
    unchecked,
)
from sft.config.sections import DataSection
from sft.context import RunContext
from sft.data.mixture import mix
from sft.data.sources import read_sft, source_table
from sft.distributed.collectives import main_first, run_on_main
from sft.errors import UserError
from sft.packing.shared_prefix import share_prefixes
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage
from sft.system.atomic_files import (
    file_hash,
    read_json,
    read_record,
    remove,
    write_json,
    write_record,
    writing,
)
from sft.tokenization.input_hashes import source_fingerprint, tokenizer_fingerprint
from sft.tokenization.row_checks import (
    Checked,
    Rules,
    Tally,
    check_no_broken_rules,
    check_rows,
    total,
)
from sft.tokenization.tokenize import ROWS_AT_ONCE, SCHEMA, write_token_rows
from sft.tokenization.truncation import count_turns, is_text, truncate_row

log = logging.getLogger(__name__)

MAX_TRUNCATED_SHARE = 0.1  # share of rows that may be cut within an answer; chosen here
CUT_SCHEMA = SCHEMA.append(pa.field("cut", pa.bool_()))


@dataclass(frozen=True)
class Example:
    """A token row to display as it is trained; `cut`: its last answer is truncated."""

    kind: str
    origin: str
    input_ids: list[int]
    trained: list[bool]
    cut: bool


@dataclass(frozen=True)
class StageRows:
    """The rows that a stage trains on, counts of rows left out or cut, and rows of each kind."""

    rows: Dataset
    checked: Checked
    examples: tuple[Example, ...] = ()


def prepare_chats(
    section: DataSection,
    context: RunContext,
    *,
    benchmarks: Benchmarks,
    split_at: int | None = None,
) -> Dataset:
    """Return the token rows of all sources: `origin`, `kind`, `input_ids`, `trained`, `untrained`.

    With `data.too_long: split`, chats of more than `split_at` tokens are split. Rows and counts go
    to data/sft.parquet and data/data.json, evidence for dropped rows to data/duplicates.jsonl and
    data/contamination.jsonl; they are reused while sources, options, questions, tokenizer and
    template are the same. Raises UserError if `data.on_error` is stop and a row is invalid or
    contains a benchmark question, or if no row is left.
    """
    split_at = split_at if section.too_long == "split" else None
    sources = [asdict(s) for s in section.sft]
    options: list[Any] = [sources, section.on_error, section.near_duplicates]
    options += [section.turns, SCHEMA.names, split_at, context.seed]
    inputs = {
        "sources": fingerprint([source_fingerprint(s) for s in section.sft]),
        "options": fingerprint(options),
        "questions": questions_fingerprint(section, benchmarks),
        "tokenizer": tokenizer_fingerprint(context.tokenizer),
    }
    stage = Stage(context.folder / "data", inputs)

    def prepare() -> None:
        done = stage.finished()
        # Repeat also if a benchmark could not be loaded the last time.
        if done is None or done["unchecked"]:
            stage.begin()
            facts = _prepare(section, context, benchmarks, split_at, stage.folder)
            write_json(stage.folder / "data.json", facts)
            stage.finish(
                outputs=["sft.parquet", "data.json", "duplicates.jsonl", "contamination.jsonl"],
                facts={"unchecked": facts["unchecked"]},
            )

    run_on_main(prepare)
    facts = read_json(stage.folder / "data.json")
    context.show(source_table(facts["sources"], title="data.sft: rows of each source"))
    return read_shared_rows(stage.folder / "sft.parquet")


def read_shared_rows(path: Path) -> Dataset:
    """Call `read_token_rows` on all processes; the first one creates the cache."""
    with main_first():
        return read_token_rows(path)


def read_token_rows(path: Path) -> Dataset:
    """Return the rows of a Parquet file, mapped from a cache next to it, rebuilt if damaged."""
    if not pq.read_metadata(path).num_rows:  # from_parquet refuses an empty file
        return Dataset(pq.read_table(path))
    cache = path.parent / ".cache"
    made = cache / "made.json"
    with writing(cache, DatasetGenerationError):
        intact = made.is_file() and read_record(made) == _cache_hashes(cache)
        if cache.exists() and not intact:
            if made.is_file():
                log.warning("%s is damaged; making it again", cache)
            remove(cache)
        # from_parquet reads a path as a glob pattern, and resolves relative paths differently.
        rows = Dataset.from_parquet(glob.escape(str(path.resolve())), cache_dir=str(cache))
        if not intact:
            write_record(made, _cache_hashes(cache))
        return rows


def _cache_hashes(cache: Path) -> dict[str, str]:
    """Return the hashes of a cache's files, without lock files and the record of the hashes."""
    return {
        str(file.relative_to(cache)): file_hash(file)
        for file in sorted(cache.rglob("*"))
        if file.is_file() and file.suffix != ".lock" and file.name != "made.json"
    }


def _prepare(
    section: DataSection,
    context: RunContext,
    benchmarks: Benchmarks,
    split_at: int | None,
    folder: Path,
) -> dict[str, Any]:
    read = read_sft(section.sft, on_error=section.on_error)
    known = known_questions(section, benchmarks)
    read = drop_contaminated(
        read,
        known,
        on_error=section.on_error,
        evidence=folder / "contamination.jsonl",
        files=section.decontaminate,
    )
    evidence = folder / "duplicates.jsonl"
    read = drop_near_duplicates(read, threshold=section.near_duplicates, evidence=evidence)
    facts = {
        "sources": [asdict(count) for count in read.counts],
        "questions": {name: len(questions) for name, questions in known.items()},
        "unchecked": unchecked(known),
    }
    check_row_coverage(context.tokenizer, read.rows, most=context.max_unknown)
    chats = mix(read, section.sft, seed=context.seed)
    written = write_token_rows(
        chats,
        context.tokenizer,
        folder / "sft.parquet",
        turns=section.turns,
        split_at=split_at,
        on_error=section.on_error,
    )
    return facts | {"mixed": len(chats)} | written


def row_lengths(rows: Dataset) -> list[int]:
    return list(pc.list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist())


def rows_of_stage(
    rows: Dataset,
    *,
    kinds: list[str],
    max_length: int | None,
    rules: Rules,
    section: DataSection,
    where: str,
) -> StageRows:
    """Return the rows of the stage's kinds in at most `max_length` tokens, each checked.

    With `data.turns: each`, rows of one chat share their prefixes (`sft.packing.shared_prefix`).
    Raises UserError if no row is left, a row is invalid, or too many are too long.
    """
    of_rows = rows.with_format("arrow")["kind"][:].to_pylist()
    present = Counter(of_rows)
    missing = [kind for kind in kinds if kind not in present]
    if missing:
        raise UserError(
            f"{where}.kinds={kinds}: no row is of kind {', '.join(missing)}; the rows are "
            f"{', '.join(f'{n} {kind}' for kind, n in present.items())}; name one of these in "
            f"{where}.kinds, give the sources a kind, or set {where}.enabled=false"
        )
    of_kind = rows.select([i for i, k in enumerate(of_rows) if not kinds or k in kinds])
    lengths = row_lengths(of_kind)
    fitting = [i for i, n in enumerate(lengths) if max_length is None or n <= max_length]
    longer = [i for i, n in enumerate(lengths) if max_length is not None and n > max_length]
    pieces, left_out = _truncate_long_rows(
        of_kind.select(longer), max_length=max_length, too_long=section.too_long, rules=rules
    )
    chosen = of_kind.select(fitting)
    tables = chain(
        chosen.with_format("arrow").iter(ROWS_AT_ONCE),
        [pa.Table.from_pylist(pieces, CUT_SCHEMA)] if pieces else [],
    )
    checked = check_rows(tables, rules=rules)
    for row in left_out:
        checked.tally(row["origin"], row["kind"]).left_out += 1
    _check_lengths(checked, section=section, where=where, max_length=max_length)
    check_no_broken_rules(checked.broken, where=where)
    examples = _examples(chosen, pieces)
    columns = ["origin", "input_ids", "trained"]
    chosen = chosen.select_columns(columns)
    if pieces:
        cut = [{column: piece[column] for column in columns} for piece in pieces]
        chosen = concatenate_datasets([chosen, Dataset.from_list(cut, features=chosen.features)])
    if section.turns == "each":
        chosen = share_prefixes(chosen, limit=max_length or max(lengths))
    return StageRows(chosen, checked, examples)


def _truncate_long_rows(
    longer: Iterable[dict[str, Any]], *, max_length: int | None, too_long: str, rules: Rules
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the truncated rows beyond `max_length`, and the rows that are left out."""
    pieces: list[dict[str, Any]] = []
    left_out = []
    for row in longer:
        chat = EncodedChat(row["input_ids"], row["trained"])
        fitted = truncate_row(chat, max_length=max_length, too_long=too_long, bos=rules.bos)
        untrained = 0 if is_text(chat.trained) else count_turns(chat.trained)
        untrained -= sum(count_turns(piece.trained) for piece in fitted) if untrained else 0
        facts = {"untrained": row["untrained"] + untrained}
        pieces += [row | vars(piece) | facts for piece in fitted]
        left_out += [] if fitted else [row]
    return pieces, left_out


def _check_lengths(
    checked: Checked, *, section: DataSection, where: str, max_length: int | None
) -> None:
    """Stop, or warn if `on_error` is drop, if `max_length` removes or cuts too much."""
    counts = total(checked)
    rows, limit = counts.rows + counts.left_out, f"{where}.max_length={max_length}"
    without_them = "or data.on_error=drop to go on without"
    if counts.left_out and (not counts.rows or counts.left_out > rows / 2):
        other = " or ".join(way for way in ("split", "truncate") if way != section.too_long)
        sentence = (
            f"{limit}: {counts.left_out} of {rows} rows are longer; raise it (the model's context "
            f"is the limit), shorten the rows, or set data.too_long={other}"
            f"{f', {without_them}' if counts.rows else ''}"
        )
        if not counts.rows or section.on_error == "stop":
            raise UserError(sentence)
    by_source: dict[str, Tally] = {}
    for (source, _), tally in checked.tallies.items():
        found = by_source.setdefault(source, Tally())
        found.rows, found.left_out = found.rows + tally.rows, found.left_out + tally.left_out
    for source, tally in by_source.items():
        if not tally.rows:
            _stop_or_warn(
                f"{limit} leaves out all {tally.left_out} rows of {source}; raise it, set "
                f"data.too_long=split, take the source out of data.sft, {without_them}",
                section,
            )
    if section.too_long == "truncate" and counts.cut > MAX_TRUNCATED_SHARE * counts.rows:
        _stop_or_warn(
            f"{limit}: data.too_long=truncate cuts {counts.cut} of {counts.rows} rows within an "
            f"answer, which is then trained without its end (more than {MAX_TRUNCATED_SHARE:.0%}, "
            "from where a model learns not to stop); raise it, set data.too_long=split or drop, or "
            "data.on_error=drop to train them so",
            section,
        )
    if counts.left_out:
        sentence = "%s: %d of %d rows are longer than max_length=%s and left out"
        log.warning(sentence, where, counts.left_out, rows, max_length)


def _stop_or_warn(sentence: str, section: DataSection) -> None:
    if section.on_error == "stop":
        raise UserError(sentence)
    log.warning("%s", sentence)


def _examples(complete: Dataset, pieces: Sequence[dict[str, Any]]) -> tuple[Example, ...]:
    """Return the first row of each kind as it is trained, and the first truncated ones."""
    kinds = complete.with_format("arrow")["kind"][:].to_pylist() if len(complete) else []
    first = {kind: place for place, kind in reversed(list(enumerate(kinds)))}
    rows = [complete[place] for place in sorted(first.values())]
    seen: set[tuple[str, bool]] = set()
    for piece in pieces:
        key = (piece["kind"], piece["cut"])
        if key not in seen and (piece["cut"] or piece["kind"] not in first):
            seen.add(key)
            rows.append(piece)
    return tuple(
        Example(row["kind"], row["origin"], row["input_ids"], row["trained"], row.get("cut", False))
        for row in rows
    )
