"""Records with their own hash in them, so that a damaged one is detected when it is read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"  # the key of the hash


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with its own hash in it."""
    return {**record, SEAL: _seal(record)}


def unsealed(record: Any, *keys: str) -> dict[str, Any] | None:
    """What was `sealed`, or has no seal but `keys`; None for anything else, or where it differs."""
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
    """Of what is read again, in which every key is a text."""
    plain = json.loads(json.dumps(record))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
