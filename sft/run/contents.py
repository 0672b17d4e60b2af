"""Stages of a run directory: what a stage read, and when it is finished.

A stage works in its folder and writes `done.json` last, by rename; its presence is the only meaning
of "finished". It holds hashes of what the stage read and wrote, so that a stage whose inputs still
match and whose outputs are whole is skipped and any other is done again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.preset import find_path
from sft.errors import UserError
from sft.run.adapters import adapter_base, is_adapter, settled_hash
from sft.run.run_place import refuse_links
from sft.system.atomic_files import (
    read_json,
    read_record,
    remove,
    write_text,
)

log = logging.getLogger(__name__)

DONE_KEYS = ("inputs", "outputs", "facts")  # of done.json, which `Stage.finish` writes
DECISIONS = "decisions.json"  # of stages that run or are kept by evidence

# Where each stage of the chain works, by the name that its model goes by.
STAGE_FOLDERS = {"sft-all": "1-sft-all", "sft-dialogue": "2-sft-dialogue", "dpo": "3-dpo"}


def is_unchanged(folder: Path, name: str, written: str | None) -> bool:
    """Return whether the output `name` of a stage still has the hash `written`."""
    # Sampled pairs are kept in the folder that their stage's lies in; further out is another's.
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder.parent)):
        return False
    return path.is_file() and settled_hash(path) == written


def restore_text(path: Path, text: str) -> None:
    """Write `text` to `path` again, also where a folder has taken its place."""
    if path.is_dir():
        remove(path)
    write_text(path, text)


def first_altered(folder: Path, outputs: Mapping[str, str]) -> str | None:
    """Return the first of these outputs that is missing or changed, or None."""
    altered = (name for name, written in outputs.items() if not is_unchanged(folder, name, written))
    return next(altered, None)


def verified(folder: Path, *names: str) -> dict[str, Any]:
    """The record of a finished stage, whose outputs are as they were written.

    Args:
        names: the outputs that are read, files or folders; absent: all.

    Raises:
        UserError: the record or an output is missing or damaged.
    """
    done = whole_record(folder / "done.json", *DONE_KEYS)
    if done is None:
        raise _damaged(folder / "done.json")
    read = {
        name: written
        for name, written in done["outputs"].items()
        if not names or any(name == each or name.startswith(f"{each}/") for each in names)
    }
    if (name := first_altered(folder, read)) is not None:
        raise _damaged(folder / name)
    return done


def whole_record(path: Path, *keys: str) -> dict[str, Any] | None:
    """`sft.system.atomic_files.read_record` of a record of a run; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    record = read_record(path, *keys)
    if record is None and os.path.lexists(path):
        raise _damaged(path)
    return record


def verified_results(folder: Path) -> dict[str, Any] | None:
    """results.json of a run, as it was written; None before there is one.

    Raises:
        UserError: it was changed since then.
    """
    if os.path.lexists(folder / "done.json"):
        verified(folder)
    results: dict[str, Any] | None = read_json(folder / "results.json")
    return results


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is missing or not as it was written; start the command that wrote it again, which "
        "makes it anew"
    )


def fingerprint(value: Any) -> str:
    """sha256 of plain data, or of the contents of a file or of all files under a folder."""
    digest = hashlib.sha256()
    if isinstance(value, Path):
        files = sorted(p for p in value.rglob("*") if p.is_file()) if value.is_dir() else [value]
        for file in files:
            digest.update(str(file.relative_to(value)).encode() if file != value else b"")
            digest.update(settled_hash(file).encode())
    else:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


def model_fingerprint(path: str) -> str:
    """The hash of a local model's weights, tokenizer and configs; a hub id stands for itself.

    An adapter's hash covers its base, which it is nothing without.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}"
    parts = [fingerprint(folder)]
    if is_adapter(path):
        parts.append(model_fingerprint(adapter_base(path)))
    return fingerprint(parts)


def stage_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What each finished training stage of a run recorded: the `stages` of results.json.

    Raises:
        UserError: a record is damaged.
    """
    done = {
        name: whole_record(folder / place / "done.json", *DONE_KEYS)
        for name, place in STAGE_FOLDERS.items()
    }
    return {name: record["facts"] for name, record in done.items() if record is not None}


def set_aside(folder: Path) -> set[str]:
    """The stages of a run whose models its gates did not keep: nothing after them began there."""
    decisions = read_json(folder / DECISIONS) or []
    return {each["stage"] for each in decisions if each["verdict"] == "set aside"}


def last_model(folder: Path) -> Path | None:
    """The model of the last finished training stage of a run that was kept; None without one."""
    places = [place for name, place in STAGE_FOLDERS.items() if name not in set_aside(folder)]
    models = [folder / place / "model" for place in places]
    finished = [model for model in models if (model.parent / "done.json").is_file()]
    return finished[-1] if finished else None


def find_local_model(name_or_path: str) -> Path | None:
    """A local model as users name it: a model's directory, or a run's, which means the last model
    that the run kept; None for a path that is not on this machine.

    Raises:
        UserError: the directory is a run's, and no stage of it is finished, its model is not as it
            was written, or a link in it leads out of it.
    """
    found = find_path(name_or_path)
    if found is None or not (found / "preset.yaml").is_file():
        if found is not None and found.parent.name in STAGE_FOLDERS.values():
            _verify_stage_model(found)
        return found
    if (found / "config.json").is_file():  # an export, which carries the preset of its run
        return found
    refuse_links(found, given=name_or_path)
    if (model := last_model(found)) is None:
        raise UserError(
            f"{name_or_path} is the directory of a run with no finished stage that was kept; start "
            "its command again, or name a model's directory"
        )
    verified(model.parent, "model")
    return model


def _verify_stage_model(model: Path) -> None:
    """Where a directory is the model of a finished stage: that it is as it was written."""
    if model.name == "model" and os.path.lexists(model.parent / "done.json"):
        verified(model.parent, "model")


def anything_done(folder: Path) -> bool:
    """Whether a run got further than a start that its own data or preset ended: prepared rows are
    no more than that, and are prepared again where they changed."""
    found = (p for name in ("done.json", "checkpoint-*") for p in folder.rglob(name))
    return any(path.relative_to(folder).parts[0] != "data" for path in found)


def differences(before: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places where two nested mappings differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            path = f"{at}.{key}" if at else key
            yield from differences(before.get(key), now.get(key), path)
    elif before != now:
        yield at, before, now
