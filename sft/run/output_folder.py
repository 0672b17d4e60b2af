"""Atomic output folders outside of a run: renamed into place when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.run.stage_cache import DONE_KEYS, first_altered
from sft.system.atomic_files import read_record, sync_and_rename, temporary_name, writing
from sft.system.file_lock import NAME as LOCK
from sft.system.file_lock import lock_folder

RECORD = "done.json"  # of `Stage.finish`, in a folder whose command can be started again


@contextmanager
def new_folder(to: Path, *, option: str) -> Iterator[Path]:
    """A folder to write into, which becomes `to` at the end; where that fails or is interrupted,
    `to` is as it was.

    It is written in a working folder beside `to`, which one process holds at a time and which a
    killed one leaves to the next.

    Args:
        option: of the command that named `to`, for its sentences.

    Raises:
        UserError: `to` is a file or holds files, the working folder is somebody else's or is held
            by another process, or neither can be made.
        WriteFailed: the disk did not take it.
    """
    to = Path(os.path.realpath(to))  # where `to` is a link, what it leads to is filled
    _refuse_taken(to, option)
    with _draft(to, option) as draft:
        with writing(draft):
            draft.mkdir()
        yield draft
        _refuse_taken(to, option)
        with writing(to):
            sync_and_rename(draft, to)


def finished_folder(to: Path, inputs: dict[str, str], *, option: str) -> dict[str, Any] | None:
    """The facts that `Stage.finish` recorded in a folder written by `new_folder`, where its inputs
    were these and it holds what was written then and nothing else; otherwise None.

    A command that was killed after `to` got its name left its working folder, which is removed.

    Raises:
        UserError: another process holds the working folder.
    """
    to = Path(os.path.realpath(to))
    done = read_record(to / RECORD, *DONE_KEYS)
    if done is None or done["inputs"] != inputs:
        return None
    files = {str(path.relative_to(to)) for path in to.rglob("*") if not path.is_dir()}
    if files != {RECORD, *done["outputs"]} or first_altered(to, done["outputs"]) is not None:
        return None
    working = temporary_name(to)
    if os.path.lexists(working) and _is_ours(working):
        with _draft(to, option):
            pass
    facts: dict[str, Any] = done["facts"]
    return facts


@contextmanager
def _draft(to: Path, option: str) -> Iterator[Path]:
    """The path, still free, of a folder inside the working folder of `to`, which this process holds
    and which is removed at the end."""
    working = temporary_name(to)
    if os.path.lexists(working) and not _is_ours(working):
        raise UserError(
            f"{option} {to}: {working}, where it would be written first, is there and is not from "
            "an export; move it away"
        )
    with lock_folder(working, option=option):
        draft = working / "model"
        try:
            shutil.rmtree(draft, ignore_errors=True)  # of a command that was killed
            yield draft
        finally:
            # The lock last: without it the next command does not know the folder as an export's.
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(working, ignore_errors=True)


def _refuse_taken(to: Path, option: str) -> None:
    if os.path.lexists(to) and not (to.is_dir() and not any(to.iterdir())):
        what = "holds files already" if to.is_dir() else "is a file"
        raise UserError(f"{option} {to} {what}; give a new folder")


def _is_ours(working: Path) -> bool:
    """Whether a killed command can have left it: a lock and no more than a draft."""
    if working.is_symlink() or not working.is_dir():
        return False
    names = {entry.name for entry in working.iterdir()}
    return not names or (names <= {LOCK, "model"} and LOCK in names)
