"""Record of what a run was made with: `run.json` with versions, hardware, seeds and inputs."""

import logging
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from sft.config.preset import CHECKOUT, resolved
from sft.config.sections import Preset
from sft.run.contents import anything_done, differences, fingerprint
from sft.run.earlier_versions import HASH_RULES
from sft.system.atomic_files import read_record, write_record

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm-eval")


def write_environment(
    folder: Path,
    preset: Preset,
    *,
    inputs: Mapping[str, str] | None = None,
    revisions: Mapping[str, str] | None = None,
) -> None:
    """run.json: what a reader needs to repeat the run; says what of it is not as it was.

    Args:
        revisions: the commit of each hub repository that is read
            (`sft.run.revisions.pin_revisions`).
    """
    state = PartialState()
    if not state.is_main_process:
        return
    libraries = (*LIBRARIES, *["bitsandbytes"] * preset.model.load_in_4bit)
    facts = _environment(state, libraries) | {
        "seed": preset.run.seed,
        "date": preset.run.date,
        "preset_sha256": fingerprint(resolved(preset)),
        "inputs": dict(inputs or {}),
        "hash_rules": HASH_RULES,
        "revisions": dict(revisions or {}),
    }
    before = read_record(folder / "run.json")
    if before is not None and anything_done(folder):
        told = ("python", "versions", "platform", "cpu_threads", "device", "git")
        pairs = {
            key: (old, new)
            for name in told
            for key, old, new in differences(before.get(name), facts[name], name)
        }
        for key, (old, new) in sorted(pairs.items()):
            log.warning(
                "%s: %s when this run was last here, now %s; what it goes on with may differ in "
                "the last digits",
                key.removeprefix("versions."),
                old,
                new,
            )
    write_record(folder / "run.json", facts)


def _environment(state: PartialState, libraries: Sequence[str]) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "device": gpu or str(state.device),
        "num_processes": state.num_processes,
        "git": commit.stdout.strip() or None,
    }
