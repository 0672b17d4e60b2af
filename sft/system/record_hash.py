"""Records that contain their own hash, so that damage is detected when they are read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"  # the key of the hash


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with its own hash added."""
    return {**record, SEAL: _seal(record)}


def unsealed(record: Any, *keys: str) -> dict[str, Any] | None:
    """Return a `sealed` mapping without its hash; None if it differs or lacks one of `keys`."""
    if not isinstance(record, dict) or not set(keys) <= set(record):
        return None
    seal = record.pop(SEAL, None)
    return record if seal in (None, _seal(record)) else None


def unsealed_line(line: str | bytes, *keys: str) -> dict[str, Any] | None:
    """Return `unsealed` of a line of JSON; None where a kill cut it short or it is damaged."""
    try:
        return unsealed(json.loads(line), *keys)
    except (ValueError, RecursionError):
        return None


def _seal(record: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # keys become text, as in the file
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
