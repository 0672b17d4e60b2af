"""Compatibility with runs of earlier versions: their files and hashes."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.config.sections import Preset
from sft.errors import UserError
from sft.run.stage_folders import STAGE_FOLDERS
from sft.system.atomic_files import read_record

# Version of the hashes in `inputs` of run.json. In version 1, which a run.json without `hash_rules`
# has, the hash of a model's weights covers fewer files
# (`sft.tokenization.input_hashes.READ_BEFORE`).
HASH_RULES = 2

# Sections whose hash is an input of a training stage: a new key changes it.
_HASHED = ("lora", "pairs", "sft_all", "sft_dialogue", "dpo")

# Files that runs wrote without listing them in a record, before `.run.jsonl` listed all files.
_UNRECORDED = (
    *("report.html", "report.md", "data/checks.json"),
    *("eval/*/begun.json", "eval/*/scores.json", "eval/*/kept/**/*.json"),
    *("eval/*/samples/*.jsonl", "eval/*/samples-*/*.jsonl", "eval/*/generations.jsonl"),
    *("eval/*/generations-*.jsonl", "eval/*/safety.jsonl"),
    *(
        f"{place}/{name}"
        for place in STAGE_FOLDERS.values()
        for name in (
            *("begun.json", "log.jsonl", "loops.jsonl", "epochs.jsonl", "bad_steps.jsonl"),
            *("loops/*/generations.jsonl", "epochs/*/generations.jsonl"),
            *("epochs/*/samples/*.jsonl", "reference/*/shard-*.json"),
        )
    ),
)


def recorded_files(folder: Path) -> dict[str, set[str] | None]:
    """Return the files of a run without `.run.jsonl`, as `sft.system.run_marker.Marker.written`.

    These are the records of stages and checkpoints, the files that they list, and the files that
    earlier versions wrote without listing them.
    """
    names = [Path(name) for name in ("preset.yaml", "run.json", "results.json", "decisions.json")]
    for record, listed in (("done.json", "outputs"), ("manifest.json", "files")):
        for path in folder.rglob(record):
            files = (read_record(path) or {}).get(listed)
            if isinstance(files, dict):
                names += [path, path.with_name("begun.json"), *(path.parent / f for f in files)]
    for pattern in _UNRECORDED:
        names += folder.glob(pattern)
    inside = [os.path.relpath(folder / name, folder) for name in names]
    return {name: None for name in inside if (folder / name).is_file()}


def refuse_incomparable(
    folder: Path, *, before: Mapping[str, Any], now: Mapping[str, Any], ways_on: str
) -> None:
    """Check that this version can compare the hashes of a run that it continues.

    Args:
        before, now: the recorded preset and that of this start, as plain data.
        ways_on: the remedies, as the command spells them.

    Raises:
        UserError: a later version used the run; or an earlier one trained it, and its preset lacks
            keys that the hashes of stages cover now, so that finished stages would be done again.
    """
    record = read_record(folder / "run.json") or {}
    rules = record.get("hash_rules", 1)
    if type(rules) is not int or rules > HASH_RULES:
        raise UserError(
            f"run.dir={folder} was last used by a later version of truing, whose hashes this "
            f"version cannot compare; continue with that version, or {ways_on}"
        )
    begun = (p for place in STAGE_FOLDERS.values() for p in (folder / place).glob("*"))
    if not any(p.name == "done.json" or p.name.startswith("checkpoint-") for p in begun):
        return
    if lacking := _lacking(before, now):
        by = f" (git {record['git']})" if isinstance(record.get("git"), str) else ""
        raise UserError(
            f"run.dir={folder} was begun by an earlier version of truing{by}, which did not record "
            f"{', '.join(lacking)}: its hashes cannot be compared, and this version would train "
            f"its stages again; continue with the version that began it, or {ways_on}"
        )


def _lacking(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    required = {"run": {"date"}}
    preset = Preset()
    for section in _HASHED:
        required[section] = {f.name for f in dataclasses.fields(getattr(preset, section))} - {"trl"}
    return [
        f"{section}.{key}"
        for section, keys in required.items()
        for key in sorted(keys & (now.get(section) or {}).keys())
        if key not in (before.get(section) or {})
    ]
