"""Sources to token rows: read, mixed, tokenised, checked, and kept in the run's data folder."""

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from sft.chat import EncodedChat
from sft.checks import Checked, Rules, check_prompts, check_rows, refuse_broken
from sft.config import DataSection, Source, UserError, find_path
from sft.data import read_sft
from sft.lengths import encode_within, fit_row
from sft.mix import mix
from sft.run import Stage, fingerprint, write_json
from sft.setting import Setting, tokenizer_fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageRows:
    """The rows that a stage trains on, and what its limits left out or cut."""

    rows: Dataset
    too_long: int
    checked: Checked


def prepare_chats(
    section: DataSection, setting: Setting, *, split_at: int | None = None
) -> Dataset:
    """Token rows of every source: columns `origin`, `kind`, `input_ids`, `trained`.

    With `data.too_long: split`, chats of more than `split_at` tokens come in pieces.

    Written to data/sft.parquet with the counts in data/data.json; read back where that is done
    already and no source, option, tokenizer or template has changed. One process works, the others
    read what it wrote.

    Raises:
        UserError: a row breaks a rule and `data.on_error` is stop; or nothing is left to train on.
    """
    split_at = split_at if section.too_long == "split" else None
    stage = Stage(
        setting.folder / "data",
        {
            "sources": fingerprint([source_fingerprint(s) for s in section.sft]),
            "options": fingerprint(
                [
                    [asdict(s) for s in section.sft],
                    section.on_error,
                    section.turns,
                    split_at,
                    setting.seed,
                ]
            ),
            "tokenizer": tokenizer_fingerprint(setting.tokenizer),
        },
    )
    with PartialState().main_process_first():
        if stage.finished() is None:
            stage.begin()
            rows, facts = _tokenise(
                section, setting.tokenizer, seed=setting.seed, split_at=split_at
            )
            rows.to_parquet(stage.folder / "sft.parquet")
            write_json(stage.folder / "data.json", facts)
            stage.finish(outputs=["sft.parquet", "data.json"], facts={"rows": len(rows)})
        return Dataset.from_parquet(
            str(stage.folder / "sft.parquet"), cache_dir=str(stage.folder / ".cache")
        )


def source_fingerprint(source: Source) -> str:
    """The hash of a local file, or the name of a hub data set."""
    path = find_path(source.path)
    return fingerprint(path) if path else f"hub:{source.path}:{source.split}"


def _tokenise(
    section: DataSection, tokenizer: PreTrainedTokenizerBase, *, seed: int, split_at: int | None
) -> tuple[Dataset, dict[str, Any]]:
    read = read_sft(section.sft, on_error=section.on_error)
    chats = mix(read, section.sft, seed=seed)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    context_turns = pieces = 0
    found = encode_within(tokenizer, chats, turns=section.turns, split_at=split_at)
    while batch := list(islice(found, 512)):
        whole = []
        for chat, encoded in batch:
            if isinstance(encoded, UserError):
                problem = f"{chat['origin']}: {encoded}"
                if section.on_error == "stop":
                    raise UserError(problem)
                problems.append(problem)
            else:
                whole.append((chat, encoded))
        refuse_broken(check_prompts(tokenizer, whole), where="data.sft")
        rows += [_token_row(chat, encoded) for chat, encoded in whole]
        context_turns += sum(encoded.untrained_turns for _, encoded in whole)
        pieces += sum("piece" in chat for chat, _ in whole)
    if not rows:
        raise UserError(f"no row of data.sft could be tokenised; the first problem: {problems[0]}")
    facts = {
        "sources": [asdict(count) for count in read.counts],
        "mixed": len(chats),
        "untrained_turns": context_turns,
        "pieces": pieces,
        "not_tokenised": {"count": len(problems), "problems": problems[:20]},
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "trained_tokens": sum(sum(row["trained"]) for row in rows),
    }
    return Dataset.from_list(rows), facts


def _token_row(chat: dict[str, Any], encoded: EncodedChat) -> dict[str, Any]:
    return {
        "origin": chat["origin"],
        "kind": chat["kind"],
        "input_ids": encoded.input_ids,
        "trained": encoded.trained,
    }


def rows_of_stage(
    rows: Dataset,
    *,
    kinds: list[str],
    max_length: int | None,
    rules: Rules,
    section: DataSection,
    where: str,
) -> StageRows:
    """The rows of the stage's kinds in at most `max_length` tokens, each checked.

    Raises:
        UserError: no row is left, or a row breaks a rule; or, where `on_error` is "stop", most are
            too long.
    """
    present = Counter(rows["kind"])
    missing = [kind for kind in kinds if kind not in present]
    if missing:
        raise UserError(
            f"{where}.kinds={kinds}: no row is of kind {', '.join(missing)}; the rows are "
            f"{', '.join(f'{n} {kind}' for kind, n in present.items())}"
        )
    of_kind = rows.select([i for i, k in enumerate(rows["kind"]) if not kinds or k in kinds])
    lengths = [len(ids) for ids in of_kind["input_ids"]]
    fitting = [i for i, n in enumerate(lengths) if max_length is None or n <= max_length]
    longer = [i for i, n in enumerate(lengths) if max_length is not None and n > max_length]
    pieces: list[dict[str, Any]] = []
    left_out = []
    for row in of_kind.select(longer):
        chat = EncodedChat(row["input_ids"], row["trained"])
        fitted = fit_row(chat, max_length=max_length, too_long=section.too_long, bos=rules.bos)
        pieces += [row | vars(piece) for piece in fitted]
        left_out += [] if fitted else [row]
    chosen = of_kind.select(fitting)
    checked = check_rows(chain(chosen, pieces), rules=rules)
    for row in left_out:
        checked.tally(row["origin"], row["kind"]).left_out += 1
    too_long = len(left_out)
    if too_long == len(lengths) or (section.on_error == "stop" and too_long > len(lengths) / 2):
        raise UserError(
            f"{where}.max_length={max_length}: {too_long} of {len(lengths)} rows are longer; raise "
            "it (the model's context is the limit), shorten the rows, or set data.too_long=split "
            "or truncate, or data.on_error=drop"
        )
    if too_long:
        log.warning(
            "%s: %d of %d rows are longer than max_length=%s and left out",
            where,
            too_long,
            len(lengths),
            max_length,
        )
    refuse_broken(checked.broken, where=where)
    columns = ["input_ids", "trained"]
    chosen = chosen.select_columns(columns)
    if pieces:
        cut = [{column: piece[column] for column in columns} for piece in pieces]
        chosen = concatenate_datasets([chosen, Dataset.from_list(cut, features=chosen.features)])
    return StageRows(chosen, too_long, checked)
