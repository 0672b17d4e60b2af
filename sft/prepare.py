"""Sources to token rows: read, mixed, tokenised, checked, and kept in the run's data folder."""

import logging
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.chat import encode_chats
from sft.config import DataSection, Source, UserError, find_path
from sft.data import read_sft
from sft.mix import mix
from sft.run import Stage, fingerprint, write_json
from sft.setting import Setting, tokenizer_fingerprint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageRows:
    """The rows that a stage trains on, and what its limits left out."""

    rows: Dataset
    too_long: int
    tokens: int
    trained_tokens: int


def prepare_chats(section: DataSection, setting: Setting) -> Dataset:
    """Token rows of every source: columns `origin`, `kind`, `input_ids`, `trained`.

    Written to data/sft.parquet with the counts in data/data.json; read back where that is done
    already and no source, option, tokenizer or template has changed. One process works, the others
    read what it wrote.

    Raises:
        UserError: a row breaks a rule and `data.on_error` is stop; or nothing is left to train on.
    """
    stage = Stage(
        setting.folder / "data",
        {
            "sources": fingerprint([source_fingerprint(s) for s in section.sft]),
            "options": fingerprint(
                [[asdict(s) for s in section.sft], section.on_error, setting.seed]
            ),
            "tokenizer": tokenizer_fingerprint(setting.tokenizer),
        },
    )
    with PartialState().main_process_first():
        if stage.finished() is None:
            stage.begin()
            rows, facts = _tokenise(section, setting.tokenizer, seed=setting.seed)
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
    section: DataSection, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> tuple[Dataset, dict[str, Any]]:
    read = read_sft(section.sft, on_error=section.on_error)
    chats = mix(read, section.sft, seed=seed)
    rows, problems = [], []
    for chat, encoded in zip(chats, encode_chats(tokenizer, chats), strict=True):
        if isinstance(encoded, UserError):
            problem = f"{chat['origin']}: {encoded}"
            if section.on_error == "stop":
                raise UserError(problem)
            problems.append(problem)
        else:
            place = {"origin": chat["origin"], "kind": chat["kind"]}
            rows.append(place | {"input_ids": encoded.input_ids, "trained": encoded.trained})
    if not rows:
        raise UserError(f"no row of data.sft could be tokenised; the first problem: {problems[0]}")
    facts = {
        "sources": [asdict(count) for count in read.counts],
        "mixed": len(chats),
        "not_tokenised": {"count": len(problems), "problems": problems[:20]},
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "trained_tokens": sum(sum(row["trained"]) for row in rows),
    }
    return Dataset.from_list(rows), facts


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
    lengths = [len(ids) for ids in rows["input_ids"]]
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
    return StageRows(
        chosen, too_long, sum(lengths[i] for i in fitting), sum(map(sum, chosen["trained"]))
    )
