"""The marker of a run directory: the id of the run and the list of all that it wrote there.

`.run.jsonl` is what makes a folder a run's. Its first line has the id of the run. Each further line
names a path before the run writes there for the first time; for a folder that a library fills, a
second line lists the files that the library left in it. Each line has its own hash. What the list
does not name belongs to somebody else: no command removes it.
"""

import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sft.system.seal import SEAL, sealed, unsealed_line

log = logging.getLogger(__name__)

NAME = ".run.jsonl"
DRAFT = f".{NAME}.tmp"  # what it is called until it is whole
ASIDE = "not-from-this-run"  # takes what was in a folder that the run had to remove
# Working files, which a run makes and removes as it likes: folders at its top; folders, and event
# files of TensorBoard, in a folder below it in which the run wrote something else.
_WORKING_AT_TOP = frozenset({".processes", ".vllm"})
_WORKING_BELOW = re.compile(r"\.cache|\.saving|events\.out\.tfevents\..+")
# A file or folder before it is renamed to its name, or on its way to be removed
# (`sft.system.atomic_files`).
_RENAMED = re.compile(r"\.(?P<new>.+)\.tmp|\.gone-(?P<old>.+)")
_OF_THE_SYSTEM = re.compile(r"\.DS_Store|\.nfs[0-9a-f]{16,}")  # what the Finder and NFS leave
_OWN_NAMES = frozenset({NAME, ".lock"})


class Marker:
    """A run's id and what it wrote, as `.run.jsonl` of its folder holds them.

    Attributes:
        written: by path, relative to the folder: the files below it, or None for a file and for a
            folder all of which is the run's.
    """

    def __init__(self, folder: Path, *, run: str, written: dict[str, set[str] | None]) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.run = run
        self.written = written

    def save(self) -> None:
        """Write the marker to its folder, in place of one that is there."""
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
        """Note that the run is about to write `path`, or into the folder `path`."""
        name = self._name(path)
        if name is not None and not self._is_open(name):
            self._append({"path": name})
            self.written[name] = None

    def close(self, path: Path) -> None:
        """List the files of a folder that is written; of a file nothing more is to be said."""
        name = self._name(path)
        if name is None or path.is_symlink() or not path.is_dir():
            return
        files = sorted(str(file.relative_to(path)) for file in _files(path))
        self._append({"path": name, "files": files})
        self.written[name] = set(files)

    def owns(self, path: Path) -> bool:
        """Whether the run wrote a file of its folder."""
        name = _settled(path.relative_to(self.folder))
        parts = name.parts
        if self._is_working(parts):
            return True
        for depth in range(1, len(parts) + 1):
            top = str(Path(*parts[:depth]))
            if top in self.written:
                files = self.written[top]
                if files is None or str(name.relative_to(top)) in files:
                    return True
        return False

    def foreign_files(self, path: Path) -> list[Path]:
        """Files of the run's folder, at or below `path`, that the run did not write."""
        below = [path] if path.is_symlink() or not path.is_dir() else _files(path)
        return [file for file in below if os.path.lexists(file) and not self.owns(file)]

    def move_foreign_files(self, path: Path) -> None:
        """Move what the run did not write out of a folder that is about to be removed."""
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
        """A path as the list has it; None outside the folder and for working files."""
        whole = Path(os.path.abspath(path))
        if not whole.is_relative_to(self.folder):
            whole = whole.resolve()
            if not whole.is_relative_to(self.folder.resolve()):
                return None
            whole = self.folder / whole.relative_to(self.folder.resolve())
        parts = _settled(whole.relative_to(self.folder)).parts
        if not parts or self._is_working(parts):
            return None
        return str(Path(*parts))

    def _is_working(self, parts: tuple[str, ...]) -> bool:
        """Whether a path is that of a working file, of the list itself or of the system."""
        if parts[0] in _OWN_NAMES | _WORKING_AT_TOP or _OF_THE_SYSTEM.fullmatch(parts[-1]):
            return True
        below = next((i for i in range(1, len(parts)) if _WORKING_BELOW.fullmatch(parts[i])), None)
        if below is None:
            return False
        folder = f"{Path(*parts[:below])}{os.sep}"
        return any(name.startswith(folder) for name in self.written)

    def _is_open(self, name: str) -> bool:
        return name in self.written and self.written[name] is None

    def _append(self, entry: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(self.folder / NAME, flags), "ab", 0) as stream:
            stream.write(_line(entry))
            os.fsync(stream.fileno())


def new_marker(
    folder: Path, *, written: Mapping[str, set[str] | None] = MappingProxyType({})
) -> Marker:
    """A marker with a new id, not yet written to the folder (`Marker.save`).

    Args:
        written: what the folder holds of the run already, as `Marker.written`; nothing else that is
            there by now is the run's.
    """
    return Marker(folder, run=secrets.token_hex(16), written=dict(written))


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder; None where there is none or its first line is damaged."""
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
            log.warning("%s: a line is damaged; what it names counts as not from this run", path)
    if lines and lines[-1]:  # a kill cut the last one off
        with path.open("ab") as stream:
            stream.write(b"\n")
    return marker


_marker: Marker | None = None  # of the run that this process has open for writing


@contextmanager
def record_writes_in(marker: Marker) -> Iterator[None]:
    """Record writes (see `recording`) in this marker."""
    global _marker
    before, _marker = _marker, marker
    try:
        yield
    finally:
        _marker = before


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Within, `path` or the files of the folder `path` are written; the open run's marker names
    them. Without an open run, and outside its folder, nothing is recorded."""
    marker = _marker
    if marker is None:
        yield
        return
    marker.add(path)
    yield
    marker.close(path)


def move_foreign_files(path: Path) -> None:
    """Before a folder or file of the open run is removed: move what the run did not write out of
    it, to `ASIDE` of the run's folder."""
    if _marker is not None:
        _marker.move_foreign_files(path)


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(sealed(entry)).encode() + b"\n"


def _settled(name: Path) -> Path:
    """A path in which working names (`.model.tmp`, `.gone-model`) are the names they are for."""
    parts = []
    for part in name.parts:
        match = _RENAMED.fullmatch(part)
        parts.append((match["new"] or match["old"]) if match else part)
    return Path(*parts)


def _files(folder: Path) -> list[Path]:
    """Everything below a folder but folders; links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [Path(place) / name for name in (*files, *links)]
    return sorted(found)
