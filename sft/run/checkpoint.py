"""Atomic checkpoints: written to a draft folder, sealed by a manifest, then renamed into place.

transformers' `Trainer._save_checkpoint` writes into `checkpoint-N` in place and rotates by
modification time. Here it writes into `.saving/`; all files are synced and hashed before the
manifest is written, and the rename comes last. Only then are older checkpoints removed.
"""

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from sft.distributed.sharding import sharding_strategy
from sft.errors import UserError
from sft.system.atomic_files import (
    file_hash,
    read_record,
    remove,
    sweep,
    sync,
    sync_tree,
    write_record,
)

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DRAFTS = ".saving"


def draft_folder(folder: Path) -> Path:
    """Return the folder in which checkpoints of a stage are written before the rename."""
    return folder / DRAFTS


def commit_checkpoint(draft: Path, folder: Path, *, keep: int | None) -> None:
    """Seal a written checkpoint, move it into `folder` and remove all but the newest `keep`.

    An intact checkpoint of the same step is kept instead: it holds the same state, and a kill
    while it is replaced would leave none.
    """
    target = folder / draft.name
    if target.exists() and flaw(target) is None:
        remove(draft)
    else:
        seal(draft)
        if target.exists():
            remove(target)
        draft.rename(target)
        sync(folder)
    if keep:  # corrupt checkpoints do not count
        intact = [c for c in newest_first(folder) if flaw(c, read=False) is None]
        for checkpoint in intact[keep:]:
            remove(checkpoint)


def seal(checkpoint: Path) -> None:
    """Sync every file, then write the manifest: sizes, hashes, processes and sharding."""
    # The manifest comes last: a checkpoint without one is unfinished and never resumed from.
    sync_tree(checkpoint)
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {
        "processes": PartialState().num_processes,
        "spread": sharding_strategy(),
        "files": {
            str(p.relative_to(checkpoint)): {"size": p.stat().st_size, "sha256": file_hash(p)}
            for p in files
        },
    }
    write_record(checkpoint / MANIFEST, manifest)


def flaw(checkpoint: Path, *, read: bool = True) -> str | None:
    """Return why a checkpoint cannot be used, or None if every file matches its manifest.

    Args:
        read: compare hashes; otherwise only sizes, for which no file is read.
    """
    manifest = read_record(checkpoint / MANIFEST)
    if manifest is None or not isinstance(manifest.get("files"), dict):
        damaged = (checkpoint / MANIFEST).is_file()
        return f"{MANIFEST} is damaged" if damaged else "it was never finished"
    for name, facts in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['size']}"
    for name, facts in manifest["files"].items():
        if read and file_hash(checkpoint / name) != facts["sha256"]:
            return f"{name} is altered"
    return None


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, intact or not, by descending step."""
    numbered = [p for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    return sorted(numbered, key=lambda p: int(p.name.split("-")[1]), reverse=True)


def last_good(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a stage; corrupt ones are deleted with a warning."""
    sweep(folder)
    if draft_folder(folder).exists():
        remove(draft_folder(folder))
    for checkpoint in newest_first(folder):
        reason = flaw(checkpoint)
        if reason is None:
            return checkpoint
        log.warning("%s is passed over: %s", checkpoint, reason)
        remove(checkpoint)
    return None


def drop_others(folder: Path) -> None:
    """Remove checkpoints that another number of processes or another sharding has written.

    Training cannot resume from them. Those without a valid manifest are left to `last_good`.
    """
    now = PartialState().num_processes
    for checkpoint in newest_first(folder):
        if (manifest := read_record(checkpoint / MANIFEST)) is None:
            continue
        if manifest.get("processes", now) != now or _sharding(manifest) != sharding_strategy():
            log.warning("%s is of another number of processes or sharding; removed", checkpoint)
            remove(checkpoint)


def _sharding(manifest: dict[str, Any]) -> Any:
    return manifest.get("spread", "nothing")  # checkpoints of earlier versions lack the key


def resume_point(folder: Path) -> Path | None:
    """Return the checkpoint to resume from; the main process searches and broadcasts it.

    Raises:
        UserError: another number of processes, which add gradients in another order, or another
            sharding has written it.
    """
    state = PartialState()
    found = [last_good(folder) if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(found)
    checkpoint = found[0]
    if checkpoint is None:
        return None
    manifest = read_record(checkpoint / MANIFEST)
    assert manifest is not None, "last_good checks it"
    if _sharding(manifest) != sharding_strategy():
        raise UserError(
            f"{checkpoint} has weights sharded by {_sharding(manifest)} and this start shards them "
            f"by {sharding_strategy()}; start it with the previous configuration, or pass "
            "--rerun to begin the stage anew"
        )
    processes = manifest["processes"]
    if processes != state.num_processes:
        raise UserError(
            f"{checkpoint} was written by {processes} process(es) and this start has "
            f"{state.num_processes}, which would not give the same weights; start it with "
            f"--num_processes {processes}, or pass --rerun to begin the stage anew"
        )
    log.info("%s: resuming from step %s", folder.name, checkpoint.name.split("-")[1])
    return checkpoint
