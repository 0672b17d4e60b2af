"""LoRA adapters on disk: their base model, also in a run that was moved."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from sft.system.atomic_files import file_hash, read_json, write_json

CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"


def adapter_base(path: str | Path) -> str:
    """The model that an adapter is over: a directory, or a hub id with the revision it records.

    A base that lies in the adapter's own run (one with added tokens, or merged between stages) is
    looked for where the run is now.
    """
    config = read_json(Path(path) / CONFIG)
    recorded: str = config[BASE]
    if config.get("revision") and not Path(recorded).is_dir():
        return f"{recorded}@{config['revision']}"
    run = Path(path).resolve().parent.parent
    own = _place_in_run(recorded)
    if own is None or not (run / own / "config.json").is_file():
        return recorded
    # Of another run, which this one was copied from, or moved and gone.
    there = Path(recorded).parents[len(own.parts) - 1]
    stranger = Path(recorded).is_dir() and not (there / "preset.yaml").is_file()
    return recorded if stranger else str(run / own)


def tokenizer_place(path: str) -> str:
    """Where the tokenizer of a model is: with it, or with the base of an adapter that has none, as
    PEFT's `save_pretrained` leaves it."""
    folder = Path(path)
    alone = (folder / CONFIG).is_file() and not any(folder.glob("*token*"))
    return adapter_base(path) if alone else path


def _place_in_run(recorded: str) -> Path | None:
    """Where in a run a base lies that a run has made; None for any other path or hub id."""
    parts = Path(recorded).parts
    for place in (parts[-2:], parts[-3:]):
        if place == ("base", "model") or (len(place) == 3 and place[1:] == ("start", "model")):
            return Path(*place)
    return None


def name_own_bases(models: list[Path]) -> None:
    """Have the adapters of a run name their bases where the run is now, for other readers."""
    for folder in models:
        config: dict[str, Any] | None = read_json(folder / CONFIG)
        if config is None or config.get("revision"):
            continue
        if config[BASE] != (now := adapter_base(folder)):
            write_json(folder / CONFIG, config | {BASE: now})


def is_dora(path: str | Path) -> bool:
    """Whether a directory holds a DoRA adapter, which only peft reads whole (transformers 5.23)."""
    return bool((read_json(Path(path) / CONFIG) or {}).get("use_dora"))


def portable_hash(path: Path) -> str:
    """`file_hash`; of an adapter's configuration without the path of its base, which may move."""
    config = read_json(path) if path.name == CONFIG else None
    if config is None:
        return file_hash(path)
    return sha256(json.dumps(config | {BASE: None}, sort_keys=True).encode()).hexdigest()


def is_adapter(path: str) -> bool:
    """Whether a directory holds a LoRA adapter rather than a whole model."""
    return (Path(path) / CONFIG).is_file()
