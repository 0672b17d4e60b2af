"""Atomic output folders outside of a run: renamed into place when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.run.stage_cache import DONE_KEYS, first_altered, matching_record
from sft.system.atomic_files import sync_and_rename, temporary_name, writing
from sft.system.file_lock import NAME as LOCK
from sft.system.file_lock import lock_folder

RECORD = "done.json"  # written by `Stage.finish`, if the command can be started again


@contextmanager
def new_folder(to: Path, *, option: str) -> Iterator[Path]:
    """Yield a folder to write into, which is renamed to `to` at the end of the block.

    If the block fails or is interrupted, `to` is unchanged. The folder lies in a working folder
    next to `to`, which one process locks at a time and which the next one reuses after a kill.

    Args:
        option: the command's option that named `to`, for error messages.

    Raises:
        UserError: `to` is a file or not empty, or the working folder is locked by another process
            or not from an export.
        WriteFailed: the disk is full or failed.
    """
    to = Path(os.path.realpath(to))  # the target of a link is filled, not the link replaced
    _refuse_taken(to, option)
    with _draft(to, option) as draft:
        with writing(draft):
            draft.mkdir()
        yield draft
        _refuse_taken(to, option)
        with writing(to):
            sync_and_rename(draft, to)


def finished_folder(to: Path, inputs: dict[str, str], *, option: str) -> dict[str, Any] | None:
    """Return the facts that `Stage.finish` recorded in a folder written by `new_folder`.

    Returns:
        None if the inputs differ, or the folder does not hold exactly the recorded outputs.

    Raises:
        UserError: another process holds the working folder.
    """
    to = Path(os.path.realpath(to))
    done = matching_record(to / RECORD, inputs, *DONE_KEYS)
    if done is None:
        return None
    files = {str(path.relative_to(to)) for path in to.rglob("*") if not path.is_dir()}
    if files != {RECORD, *done["outputs"]} or first_altered(to, done["outputs"]) is not None:
        return None
    working = temporary_name(to)
    # A command that was killed after the rename has left its working folder.
    if os.path.lexists(working) and _is_ours(working):
        with _draft(to, option):
            pass
    facts: dict[str, Any] = done["facts"]
    return facts


@contextmanager
def _draft(to: Path, option: str) -> Iterator[Path]:
    """Yield a free path in the working folder of `to`, which is locked, and removed at the end."""
    working = temporary_name(to)
    if os.path.lexists(working) and not _is_ours(working):
        raise UserError(
            f"{option} {to}: {working}, where it would be written first, is there and is not from "
            "an export; move it away"
        )
    with lock_folder(working, option=option):
        draft = working / "model"
        try:
            shutil.rmtree(draft, ignore_errors=True)  # left by a command that was killed
            yield draft
        finally:
            # The lock is removed last: it marks the working folder as an export's.
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(working, ignore_errors=True)


def _refuse_taken(to: Path, option: str) -> None:
    if os.path.lexists(to) and not (to.is_dir() and not any(to.iterdir())):
        what = "holds files already" if to.is_dir() else "is a file"
        raise UserError(f"{option} {to} {what}; give a new folder")


def _is_ours(working: Path) -> bool:
    """Return whether a killed command can have left the folder: a lock and at most a draft."""
    if working.is_symlink() or not working.is_dir():
        return False
    names = {entry.name for entry in working.iterdir()}
    return not names or (names <= {LOCK, "model"} and LOCK in names)
