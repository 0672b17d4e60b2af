"""LoRA adapters on disk: their base model, also in a run that was moved."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from sft.system.atomic_files import file_hash, read_json, write_json

CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def adapter_base(path: str | Path) -> str:
    """Return the base model of an adapter: a directory, or a hub id with the recorded revision.

    A base in the adapter's own run (with added tokens, or merged between stages) is found where the
    run is now.
    """
    config = read_json(Path(path) / CONFIG)
    recorded: str = config[BASE]
    if config.get("revision") and not Path(recorded).is_dir():
        return f"{recorded}@{config['revision']}"
    run = Path(path).resolve().parent.parent
    own = _path_in_run(recorded)
    if own is None or not (run / own / "config.json").is_file():
        return recorded
    # The recorded path is of a run that was moved, or of one that this run is a copy of; a folder
    # that is in no run is the base itself.
    there = Path(recorded).parents[len(own.parts) - 1]
    outside = Path(recorded).is_dir() and not (there / "preset.yaml").is_file()
    return recorded if outside else str(run / own)


def tokenizer_path(path: str) -> str:
    """Return where the tokenizer of a model is: its own folder, or that of an adapter's base."""
    folder = Path(path)
    # PEFT's `save_pretrained` writes no tokenizer.
    alone = (folder / CONFIG).is_file() and not any(folder.glob("*token*"))
    return adapter_base(path) if alone else path


def _path_in_run(recorded: str) -> Path | None:
    """Return the relative path of a base that a run has made; None for other paths and hub ids."""
    parts = Path(recorded).parts
    for place in (parts[-2:], parts[-3:]):
        if place == ("base", "model") or (len(place) == 3 and place[1:] == ("start", "model")):
            return Path(*place)
    return None


def update_base_paths(models: list[Path]) -> None:
    """Write the current paths of the bases into a run's adapters, for PEFT and other readers."""
    for folder in models:
        config: dict[str, Any] | None = read_json(folder / CONFIG)
        if config is None or config.get("revision"):
            continue
        if config[BASE] != (now := adapter_base(folder)):
            write_json(folder / CONFIG, config | {BASE: now})


def is_dora(path: str | Path) -> bool:
    """Return whether a directory is a DoRA adapter, of which transformers 5.23 reads a part."""
    return bool((read_json(Path(path) / CONFIG) or {}).get("use_dora"))


def portable_hash(path: Path) -> str:
    """Return `file_hash`; an adapter's config is hashed without the path of its base."""
    config = read_json(path) if path.name == CONFIG else None
    if config is None:
        return file_hash(path)
    return sha256(json.dumps(config | {BASE: None}, sort_keys=True).encode()).hexdigest()


def is_adapter(path: str) -> bool:
    """Return whether a directory is a LoRA adapter, not a full model."""
    return (Path(path) / CONFIG).is_file()
