"""The marker of a run directory: the id of the run and the list of all files that it wrote there.

The first line of `.run.jsonl` has the id. Each further line names a path before the run writes it
for the first time; for a folder that a library fills, a second line lists the files in it. Each
line has its own hash. Files that are not listed belong to others, and no command removes them.
"""

import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.system.record_hash import SEAL, sealed, unsealed_line

log = logging.getLogger(__name__)

NAME = ".run.jsonl"
DRAFT = f".{NAME}.tmp"  # its name until it is complete
ASIDE = "not-from-this-run"  # receives foreign files of folders that the run removes
# Working files, created and removed without a record: folders at the top of the run directory;
# folders and TensorBoard event files in a subfolder in which the run wrote other files.
_WORKING_AT_TOP = frozenset({".processes", ".vllm"})
_WORKING_BELOW = re.compile(r"\.cache|\.saving|events\.out\.tfevents\..+")
# Names of incomplete files, and of folders that are being removed (`sft.system.atomic_files`).
_RENAMED = re.compile(r"\.(?P<new>.+)\.tmp|\.gone-(?P<old>.+)")
_OF_THE_SYSTEM = re.compile(r"\.DS_Store|\.nfs[0-9a-f]{16,}")  # created by the Finder and by NFS
_OWN_NAMES = frozenset({NAME, ".lock"})


class Marker:
    """The id of a run and the files that it wrote, as stored in `.run.jsonl`."""

    def __init__(self, folder: Path, *, run: str, written: dict[str, set[str] | None]) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.run = run
        # By relative path: the files below it, or None if it belongs to the run completely.
        self.written = written

    def save(self) -> None:
        """Write the marker to its folder and replace one that is there."""
        entries = [
            {"path": name} if files is None else {"path": name, "files": sorted(files)}
            for name, files in self.written.items()
        ]
        draft = self.folder / DRAFT
        draft.unlink(missing_ok=True)  # it may be a link, which would be written through
        with draft.open("xb") as stream:
            for entry in [{"run": self.run}, *entries]:
                stream.write(_line(entry))
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self.folder / NAME)

    def add(self, path: Path) -> None:
        """Record that the run is about to write `path`, or into the folder `path`."""
        name = self._name(path)
        if name is not None and self.written.get(name, set()) is not None:
            self._append({"path": name})
            self.written[name] = None

    def close(self, path: Path) -> None:
        """Record the files of a folder after it was written; does nothing for a file."""
        name = self._name(path)
        if name is None or path.is_symlink() or not path.is_dir():
            return
        files = sorted(str(file.relative_to(path)) for file in _files(path))
        self._append({"path": name, "files": files})
        self.written[name] = set(files)

    def owns(self, path: Path) -> bool:
        """Return whether the run wrote a file of its folder."""
        name = _settled(path.relative_to(self.folder))
        parts = name.parts
        if self._is_working(parts):
            return True
        for depth in range(1, len(parts) + 1):
            top = str(Path(*parts[:depth]))
            files = self.written.get(top, set())
            if files is None or str(name.relative_to(top)) in files:
                return True
        return False

    def foreign_files(self, path: Path) -> list[Path]:
        """Return the files at or below `path` that the run did not write."""
        below = [path] if path.is_symlink() or not path.is_dir() else _files(path)
        return [file for file in below if os.path.lexists(file) and not self.owns(file)]

    def move_foreign_files(self, path: Path) -> None:
        """Move the files that the run did not write out of a folder before it is removed."""
        path = Path(os.path.abspath(path))
        if not path.is_relative_to(self.folder):
            return
        for file in self.foreign_files(path):
            target = self.folder / ASIDE / file.relative_to(self.folder)
            while os.path.lexists(target):
                target = target.with_name(f"{target.name}.1")
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
            log.warning("%s is not from this run; moved to %s", file, target)

    def _name(self, path: Path) -> str | None:
        """Return a path as the list has it; None outside the folder and for working files."""
        absolute = Path(os.path.abspath(path))
        if not absolute.is_relative_to(self.folder):
            absolute = absolute.resolve()
            if not absolute.is_relative_to(self.folder.resolve()):
                return None
            absolute = self.folder / absolute.relative_to(self.folder.resolve())
        parts = _settled(absolute.relative_to(self.folder)).parts
        if not parts or self._is_working(parts):
            return None
        return str(Path(*parts))

    def _is_working(self, parts: tuple[str, ...]) -> bool:
        """Return whether a path is a working file, the list itself or a file of the system."""
        if parts[0] in _OWN_NAMES | _WORKING_AT_TOP or _OF_THE_SYSTEM.fullmatch(parts[-1]):
            return True
        below = next((i for i in range(1, len(parts)) if _WORKING_BELOW.fullmatch(parts[i])), None)
        if below is None:
            return False
        folder = f"{Path(*parts[:below])}{os.sep}"
        return any(name.startswith(folder) for name in self.written)

    def _append(self, entry: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(self.folder / NAME, flags), "ab", 0) as stream:
            stream.write(_line(entry))
            os.fsync(stream.fileno())


def new_marker(folder: Path, *, written: Mapping[str, set[str] | None] | None = None) -> Marker:
    """Return a marker with a new id; `Marker.save` writes it. For `written` see `Marker`."""
    return Marker(folder, run=secrets.token_hex(16), written=dict(written or {}))


def read_marker(folder: Path) -> Marker | None:
    """Return the marker of a folder; None if it is missing or its first line is damaged."""
    path = folder / NAME
    if path.is_symlink() or not path.is_file():
        return None
    content = path.read_bytes()
    first, *lines = content.split(b"\n")
    head = unsealed_line(first, SEAL)
    if head is None or not isinstance(head.get("run"), str):
        return None
    marker = Marker(folder, run=head["run"], written={})
    for line in lines:
        entry = unsealed_line(line, SEAL)
        if entry is not None and isinstance(entry.get("path"), str):
            files = entry.get("files")
            marker.written[entry["path"]] = None if files is None else set(files)
        elif line and line is not lines[-1]:
            log.warning("%s: a line is damaged; its path counts as foreign", path)
    if lines and lines[-1]:  # a kill cut the last one off
        with path.open("ab") as stream:
            stream.write(b"\n")
    return marker


_marker: Marker | None = None  # of the run that this process has open for writing


@contextmanager
def record_writes_in(marker: Marker) -> Iterator[None]:
    """Record the writes of the block (see `recording`) in this marker."""
    global _marker
    before, _marker = _marker, marker
    try:
        yield
    finally:
        _marker = before


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Record in the marker of the open run, if any, that the block writes `path`."""
    marker = _marker
    if marker is not None:
        marker.add(path)
    yield
    if marker is not None:
        marker.close(path)


def move_foreign_files(path: Path) -> None:
    """Move the files that the open run did not write from `path` to `ASIDE` of its folder."""
    if _marker is not None:
        _marker.move_foreign_files(path)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(sealed(entry)).encode() + b"\n"


def _settled(name: Path) -> Path:
    """Return a path in which working names (`.model.tmp`, `.gone-model`) are the final names."""
    parts = []
    for part in name.parts:
        match = _RENAMED.fullmatch(part)
        parts.append((match["new"] or match["old"]) if match else part)
    return Path(*parts)


def _files(folder: Path) -> list[Path]:
    """Return all files and links below a folder; links are not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
