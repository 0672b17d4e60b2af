"""Checkpoints that are whole or not there: a manifest, written last, seals each one."""

import logging
import shutil
from pathlib import Path

from sft.run import fingerprint, read_json, write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def seal(checkpoint: Path) -> None:
    """Write sizes and hashes of every file; until then a checkpoint counts for nothing."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)
    manifest = {
        str(p.relative_to(checkpoint)): {"size": p.stat().st_size, "sha256": fingerprint(p)}
        for p in files
    }
    write_json(checkpoint / MANIFEST, manifest)


def flaw(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was sealed."""
    manifest = read_json(checkpoint / MANIFEST)
    if manifest is None:
        return "it was never finished"
    for name, facts in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['size']}"
        if fingerprint(path) != facts["sha256"]:
            return f"{name} is altered"
    return None


def last_good(folder: Path) -> Path | None:
    """The newest intact checkpoint of a stage; broken ones are removed, aloud."""
    newest_first = sorted(
        folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True
    )
    for checkpoint in newest_first:
        reason = flaw(checkpoint)
        if reason is None:
            return checkpoint
        log.warning("%s is passed over: %s", checkpoint, reason)
        shutil.rmtree(checkpoint)
    return None
