"""Write and read `manifest.json`: the command, the seed and the hash of every generated file."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from recipes.quickstart.generate.gazetteer import make_gazetteer
from recipes.quickstart.generate.pages import pages

COMMAND = "python recipes/quickstart/generate/pretrain.py"
PAGES_HASHED = 1000


def pages_hash(seed: int) -> str:
    """Return the hash of the first thousand pre-training pages."""
    digest = hashlib.sha256()
    for page in itertools.islice(pages(seed, make_gazetteer(seed)), PAGES_HASHED):
        digest.update(page.encode() + b"\0")
    return digest.hexdigest()


def write_manifest(folder: Path, *, seed: int, tokens: int) -> None:
    """Write the hashes of all files in base/ and data/ to manifest.json."""
    paths = sorted(p for sub in ("base", "data") for p in (folder / sub).iterdir())
    files = {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
    }
    manifest = {
        "command": f"{COMMAND} --seed {seed} --tokens {tokens}",
        "seed": seed,
        "pretraining_tokens": tokens,
        "pages_sha256": pages_hash(seed),
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the folder."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
