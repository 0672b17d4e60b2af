"""Hashes of plain data, files, folders and models, which decide whether work is done again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sft.run.adapters import adapter_base, is_adapter, portable_hash


def fingerprint(value: Any) -> str:
    """Return the sha256 of plain data, or of the contents of a file or of all files of a folder."""
    digest = hashlib.sha256()
    if isinstance(value, Path):
        files = sorted(p for p in value.rglob("*") if p.is_file()) if value.is_dir() else [value]
        for file in files:
            # A single file's hash does not depend on its name.
            digest.update(str(file.relative_to(value)).encode() if file != value else b"")
            digest.update(portable_hash(file).encode())
    else:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


def model_fingerprint(path: str) -> str:
    """Return the hash of a local model's files and of an adapter's base; a hub id is its own."""
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}"
    parts = [fingerprint(folder)]
    # An adapter's weights are defined only together with its base.
    if is_adapter(path):
        parts.append(model_fingerprint(adapter_base(path)))
    return fingerprint(parts)
