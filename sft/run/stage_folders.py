"""Stage folders of a run: the facts and the models of its finished stages."""

import os
from pathlib import Path
from typing import Any

from sft.config.preset import find_path
from sft.errors import UserError
from sft.run.directory_checks import refuse_links
from sft.run.stage_cache import DONE, DONE_KEYS, intact_record, verified_record
from sft.system.atomic_files import read_json

DECISIONS = "decisions.json"  # on stages with `enabled: auto`

# The folder of each stage, by the name of its model.
STAGE_FOLDERS = {"sft-all": "1-sft-all", "sft-dialogue": "2-sft-dialogue", "dpo": "3-dpo"}


def stage_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of each finished training stage: the `stages` of results.json.

    Raises:
        UserError: a record is damaged.
    """
    done = {
        name: intact_record(folder / place / DONE, *DONE_KEYS)
        for name, place in STAGE_FOLDERS.items()
    }
    return {name: record["facts"] for name, record in done.items() if record is not None}


def rejected_stages(folder: Path) -> set[str]:
    """Return the stages whose models the run set aside; no later stage began with them."""
    decisions = read_json(folder / DECISIONS) or []
    return {each["stage"] for each in decisions if each["verdict"] == "set aside"}


def last_model(folder: Path) -> Path | None:
    """Return the model of the last finished stage that was not set aside; None without one."""
    rejected = rejected_stages(folder)
    places = [folder / place for name, place in STAGE_FOLDERS.items() if name not in rejected]
    finished = [place / "model" for place in places if (place / DONE).is_file()]
    return finished[-1] if finished else None


def find_local_model(name_or_path: str) -> Path | None:
    """Return the directory of a local model, or of the last kept model of a run's directory.

    Returns:
        None for a path that is not on this machine.

    Raises:
        UserError: the directory is a run's, and it has no finished stage, its model was changed,
            or a link in it leads out of it.
    """
    found = find_path(name_or_path)
    if found is None:
        return None
    if not (found / "preset.yaml").is_file():
        in_stage = found.name == "model" and found.parent.name in STAGE_FOLDERS.values()
        if in_stage and os.path.lexists(found.parent / DONE):
            verified_record(found.parent, "model")
        return found
    if (found / "config.json").is_file():  # an export, which contains the preset of its run
        return found
    refuse_links(found, given=name_or_path)
    if (model := last_model(found)) is None:
        raise UserError(
            f"{name_or_path} is the directory of a run with no finished stage that was kept; start "
            "its command again, or name a model's directory"
        )
    verified_record(model.parent, "model")
    return model


def anything_done(folder: Path) -> bool:
    """Return whether a run has a checkpoint or a finished stage.

    Prepared rows do not count: they are prepared again when the preset or the data change.
    """
    found = (p for name in (DONE, "checkpoint-*") for p in folder.rglob(name))
    return any(path.relative_to(folder).parts[0] != "data" for path in found)
