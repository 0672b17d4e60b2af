"""A stage of a run directory: skipped when its inputs are unchanged, sealed when it is done."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.run.adapters import settled_hash
from sft.run.contents import DONE_KEYS, first_altered, is_unchanged, restore_text
from sft.system.atomic_files import (
    is_plain_name,
    read_file,
    read_record,
    remove,
    sweep,
    sync,
    write_record,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A unit of work in its own folder, known by the hashes of what it reads."""

    folder: Path
    inputs: dict[str, str]
    # Entries that outlive a change of inputs: they have keys of their own.
    keep: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """The facts recorded at its end, if the inputs match and the outputs are as written."""
        marker = self.folder / "done.json"
        done = read_record(marker, *DONE_KEYS)
        if done is None and os.path.lexists(marker):
            log.warning("%s: %s is damaged; doing it again", self.name, marker.name)
        if done is None or done["inputs"] != self.inputs:
            return None
        for name, text in done.get("kept", {}).items():
            # The record may be another's: no name of it leads out of the folder.
            if is_plain_name(name) and not is_unchanged(
                self.folder, name, done["outputs"].get(name)
            ):
                log.warning("%s: %s is missing or changed; written again", self.name, name)
                restore_text(self.folder / name, text)
        if (name := first_altered(self.folder, done["outputs"])) is not None:
            log.warning("%s: %s is missing or changed; doing it again", self.name, name)
            return None
        facts: dict[str, Any] = done["facts"]
        return facts

    def begin(self) -> None:
        """Prepare the folder; work begun on other inputs is removed with a warning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        marker = self.folder / "begun.json"
        begun = read_record(marker, "inputs")
        if marker.is_file() and (begun is None or begun["inputs"] != self.inputs):
            before = begun["inputs"] if begun else {}
            changed = [k for k in self.inputs if before.get(k) != self.inputs[k]]
            log.warning("%s: %s changed; doing it again", self.name, ", ".join(changed))
            (self.folder / "done.json").unlink(missing_ok=True)
            for entry in self.folder.iterdir():
                if entry.name not in (*self.keep, marker.name):
                    remove(entry)
        # Last, so that a kill in between leaves nothing that looks as if it were of these inputs.
        (self.folder / "done.json").unlink(missing_ok=True)
        write_record(marker, {"inputs": self.inputs})

    def finish(
        self, *, outputs: list[str], facts: dict[str, Any], kept: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Record that the stage is done: hashes of `outputs` (files or folders) once the disk holds
        them, then the marker.

        Args:
            kept: small files, which may be absent, that could not be made again: the marker holds
                their text, from which a lost one is written again.
        """
        kept = [name for name in kept if (self.folder / name).is_file()]
        texts = {name: read_file(self.folder / name).decode() for name in kept}
        outputs = [*outputs, *kept]
        files: dict[str, str] = {}
        for name in outputs:
            path = self.folder / name
            below = sorted(path.rglob("*")) if path.is_dir() else []
            for file in [path, *below]:
                sync(file)
                if file.is_file():
                    written = name if file == path else str(file.relative_to(self.folder))
                    files[written] = settled_hash(file)
        sync(self.folder)
        record = {"inputs": self.inputs, "outputs": files, "facts": facts}
        write_record(self.folder / "done.json", record | ({"kept": texts} if texts else {}))
        return facts
