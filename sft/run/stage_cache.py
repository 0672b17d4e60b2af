"""Cache by input hash: a stage is skipped while its inputs and outputs are unchanged.

A stage writes `done.json` last, by atomic rename; the stage is finished if and only if the file
exists. It holds the hashes of what the stage read and wrote. Records of other work that is skipped
in the same way, such as measures, are read by `matching_record` too.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.run.adapters import portable_hash
from sft.system.atomic_files import (
    is_plain_name,
    read_file,
    read_json,
    read_record,
    remove,
    sweep,
    sync,
    write_record,
    write_text,
)

log = logging.getLogger(__name__)

DONE = "done.json"
DONE_KEYS = ("inputs", "outputs", "facts")


@dataclass(frozen=True)
class Stage:
    """A unit of work in its own folder, identified by the hashes of its inputs.

    `keep` names entries of the folder that a change of inputs does not remove: they have their own
    keys.
    """

    folder: Path
    inputs: dict[str, str]
    keep: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """Return the recorded facts if the inputs match and the outputs are unchanged."""
        marker = self.folder / DONE
        done = matching_record(marker, self.inputs, *DONE_KEYS)
        if done is None:
            if os.path.lexists(marker) and read_record(marker, *DONE_KEYS) is None:
                log.warning("%s: %s is damaged; doing it again", self.name, marker.name)
            return None
        for name, text in done.get("kept", {}).items():
            # The record may be from another machine: no name in it leads out of the folder.
            written = done["outputs"].get(name)
            if is_plain_name(name) and not is_unchanged(self.folder, name, written):
                log.warning("%s: %s is missing or changed; written again", self.name, name)
                if (self.folder / name).is_dir():  # a folder has taken the file's place
                    remove(self.folder / name)
                write_text(self.folder / name, text)
        if (name := first_altered(self.folder, done["outputs"])) is not None:
            log.warning("%s: %s is missing or changed; doing it again", self.name, name)
            return None
        facts: dict[str, Any] = done["facts"]
        return facts

    def begin(self) -> None:
        """Prepare the folder; work on other inputs is removed with a warning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        marker = self.folder / "begun.json"
        begun = read_record(marker, "inputs")
        if marker.is_file() and (begun is None or begun["inputs"] != self.inputs):
            before = begun["inputs"] if begun else {}
            changed = [k for k in self.inputs if before.get(k) != self.inputs[k]]
            log.warning("%s: %s changed; doing it again", self.name, ", ".join(changed))
            (self.folder / DONE).unlink(missing_ok=True)
            for entry in self.folder.iterdir():
                if entry.name not in (*self.keep, marker.name):
                    remove(entry)
        # Last, so that a kill in between leaves no work that seems to belong to these inputs.
        (self.folder / DONE).unlink(missing_ok=True)
        write_record(marker, {"inputs": self.inputs})

    def finish(
        self, *, outputs: list[str], facts: dict[str, Any], kept: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Sync and hash `outputs` (files or folders), then write the marker; return `facts`.

        Args:
            kept: small files, which may be absent, that could not be made again: the marker holds
                their text, from which `finished` restores a lost one.
        """
        kept = [name for name in kept if (self.folder / name).is_file()]
        texts = {name: read_file(self.folder / name).decode() for name in kept}
        hashes: dict[str, str] = {}
        for name in [*outputs, *kept]:
            path = self.folder / name
            below = sorted(path.rglob("*")) if path.is_dir() else []
            for file in [path, *below]:
                sync(file)
                if file.is_file():
                    written = name if file == path else str(file.relative_to(self.folder))
                    hashes[written] = portable_hash(file)
        sync(self.folder)
        record = {"inputs": self.inputs, "outputs": hashes, "facts": facts}
        write_record(self.folder / DONE, record | ({"kept": texts} if texts else {}))
        return facts


def matching_record(path: Path, inputs: Mapping[str, str], *keys: str) -> dict[str, Any] | None:
    """Return a record of finished work if it was done on these inputs; otherwise None."""
    record = read_record(path, "inputs", *keys)
    return record if record is not None and record["inputs"] == inputs else None


def is_unchanged(folder: Path, name: str, written: str | None) -> bool:
    """Return whether the output `name` of a stage still has the hash `written`."""
    # Sampled pairs are stored next to their stage's folder; a path further out is not the stage's.
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder.parent)):
        return False
    return path.is_file() and portable_hash(path) == written


def first_altered(folder: Path, outputs: Mapping[str, str]) -> str | None:
    """Return the first of these outputs that is missing or changed, or None."""
    altered = (name for name, written in outputs.items() if not is_unchanged(folder, name, written))
    return next(altered, None)


def intact_record(path: Path, *keys: str) -> dict[str, Any] | None:
    """Return a record of a run; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    record = read_record(path, *keys)
    if record is None and os.path.lexists(path):
        raise _damaged(path)
    return record


def verified_record(folder: Path, *names: str) -> dict[str, Any]:
    """Return the record of a finished stage after comparing its outputs with their hashes.

    Args:
        names: the outputs to compare, files or folders; without any: all.

    Raises:
        UserError: the record or an output is missing or damaged.
    """
    done = intact_record(folder / DONE, *DONE_KEYS)
    if done is None:
        raise _damaged(folder / DONE)
    outputs = {
        name: written
        for name, written in done["outputs"].items()
        if not names or any(name == each or name.startswith(f"{each}/") for each in names)
    }
    if (name := first_altered(folder, outputs)) is not None:
        raise _damaged(folder / name)
    return done


def verified_results(folder: Path) -> dict[str, Any] | None:
    """Return results.json of a run; None before it is written.

    Raises:
        UserError: it was changed after the run wrote it.
    """
    if os.path.lexists(folder / DONE):
        verified_record(folder)
    results: dict[str, Any] | None = read_json(folder / "results.json")
    return results


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is missing or not as it was written; start the command that wrote it again, which "
        "makes it anew"
    )
