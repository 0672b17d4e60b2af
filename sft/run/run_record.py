"""The record `run.json`: the versions, hardware, seed, date and inputs that a run was made with."""

import logging
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sft.config.preset import CHECKOUT, resolved
from sft.config.sections import Preset
from sft.distributed.collectives import run_on_main
from sft.run.earlier_versions import HASH_RULES
from sft.run.fingerprint import fingerprint
from sft.run.stage_folders import anything_done
from sft.system.atomic_files import read_record, write_record

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm-eval")
# Keys of the record that can change the last digits of a resumed run.
_COMPARED = ("python", "versions", "platform", "cpu_threads", "device", "git")


def write_run_record(
    folder: Path,
    preset: Preset,
    *,
    inputs: Mapping[str, str] | None = None,
    revisions: Mapping[str, str] | None = None,
) -> None:
    """Write run.json; warn where a resumed run finds another machine or other versions.

    Args:
        revisions: the commit of each hub repository that is read
            (`sft.run.revisions.pin_revisions`).
    """
    state = PartialState()
    if not state.is_main_process:
        return
    libraries = (*LIBRARIES, *["bitsandbytes"] * preset.model.load_in_4bit)
    record = _machine(state, libraries) | {
        "seed": preset.run.seed,
        "date": preset.run.date,
        "preset_sha256": fingerprint(resolved(preset)),
        "inputs": dict(inputs or {}),
        "hash_rules": HASH_RULES,
        "revisions": dict(revisions or {}),
    }
    before = read_record(folder / "run.json")
    if before is not None and anything_done(folder):
        changed = {
            key: (old, new)
            for name in _COMPARED
            for key, old, new in differences(before.get(name), record[name], name)
        }
        for key, (old, new) in sorted(changed.items()):
            log.warning(
                "%s: %s in the last start of this run, now %s; the results may differ in the last "
                "digits",
                *(key.removeprefix("versions."), old, new),
            )
    write_record(folder / "run.json", record)


def _machine(state: PartialState, libraries: Sequence[str]) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "device": gpu or str(state.device),
        "num_processes": state.num_processes,
        "git": commit.stdout.strip() or None,
    }


def differences(before: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values of each difference of two nested mappings."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            path = f"{at}.{key}" if at else key
            yield from differences(before.get(key), now.get(key), path)
    elif before != now:
        yield at, before, now


def with_date(preset: Preset, *, models: Sequence[str] = (), fresh: bool = False) -> Preset:
    """Return the preset with `run.date` filled in, the same on all processes.

    A resumed run keeps its date. A new one that measures models of another run takes the date of
    that run, so that its prompts are those of the training; any other takes today's.

    Args:
        models: directories of models, which may lie in a run.
        fresh: the run begins again, so the date in `run.dir` does not count.
    """

    def day() -> str:
        own = [] if fresh else [Path(preset.run.dir).expanduser()]
        # The directory of a model is run/1-sft-all/model.
        runs = [*own, *(Path(path).parent.parent for path in models if Path(path).is_dir())]
        return next(filter(None, map(recorded_date, runs)), date.today().isoformat())

    return replace(preset, run=replace(preset.run, date=preset.run.date or run_on_main(day)))


def recorded_date(folder: Path) -> str | None:
    """Return the date in a run's run.json; None where there is none."""
    record = read_record(folder / "run.json", "date")
    return record["date"] if record else None
