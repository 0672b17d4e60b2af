"""The run directory: who writes in it, what a stage read, and when it is finished.

A stage works in its folder and writes `done.json` last, by rename; its presence is the only meaning
of "finished". It holds hashes of what the stage read and the sizes of what it wrote, so that a
stage whose inputs still match is skipped and any other is done again.
"""

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import OmegaConf

from sft.config import CHECKOUT, Preset, UserError, resolved

log = logging.getLogger(__name__)

# Where each stage of the chain works, by the name that its model goes by.
STAGE_FOLDERS = {"sft-all": "1-sft-all", "sft-dialogue": "2-sft-dialogue", "dpo": "3-dpo"}

WAYS_ON = (
    "set run.dir= to a new folder, or pass --rerun to redo what these keys touch, or --fresh to "
    "start from nothing"
)
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm-eval")


@dataclass(frozen=True)
class Stage:
    """A unit of work in its own folder, known by the hashes of what it reads."""

    folder: Path
    inputs: dict[str, str]
    keep: tuple[
        str, ...
    ] = ()  # entries that outlive a change of inputs: they have keys of their own

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """The facts recorded at its end, if the inputs match and the outputs are still there."""
        done = read_json(self.folder / "done.json")
        if done is None or done["inputs"] != self.inputs:
            return None
        for name, size in done["outputs"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                log.warning("%s: %s is missing or changed; doing it again", self.name, name)
                return None
        return done["facts"]

    def begin(self) -> None:
        """Make the folder ready: work begun on other inputs is thrown away, aloud."""
        begun = read_json(self.folder / "begun.json")
        if begun is not None and begun["inputs"] != self.inputs:
            changed = [k for k in self.inputs if begun["inputs"].get(k) != self.inputs[k]]
            log.warning("%s: %s changed; doing it again", self.name, ", ".join(changed))
            for entry in self.folder.iterdir():
                if entry.name not in self.keep:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "done.json").unlink(missing_ok=True)
        write_json(self.folder / "begun.json", {"inputs": self.inputs})

    def finish(self, *, outputs: list[str], facts: dict[str, Any]) -> dict[str, Any]:
        """Record that the stage is done: sizes of `outputs` (files or folders), then the marker."""
        files: dict[str, int] = {}
        for name in outputs:
            path = self.folder / name
            if path.is_dir():
                for file in sorted(p for p in path.rglob("*") if p.is_file()):
                    files[str(file.relative_to(self.folder))] = file.stat().st_size
            else:
                files[name] = path.stat().st_size
        write_json(
            self.folder / "done.json", {"inputs": self.inputs, "outputs": files, "facts": facts}
        )
        return facts


@contextmanager
def open_run(
    preset: Preset,
    *,
    fresh: bool = False,
    rerun: bool = False,
    growing: Sequence[str] = (),
    ways_on: str = WAYS_ON,
) -> Iterator[Path]:
    """Make or re-enter `run.dir`, held by this command alone; yields the folder.

    `fresh` empties the folder first; `rerun` lets a changed preset in, and then the stages that the
    change touches are done again; keys in `growing` may always change, which takes nothing away;
    `ways_on` tells the user of these, as the command spells them.

    Raises:
        UserError: the path cannot be written, another process holds the directory, or it belongs
            to another preset (then the changed keys are named).
    """
    folder = Path(preset.run.dir).expanduser()
    state = PartialState()
    with _one_writer(folder) if state.is_main_process else _nothing():
        if state.is_main_process:
            _claim(
                *(folder, resolved(preset)),
                fresh=fresh,
                rerun=rerun,
                growing=growing,
                ways_on=ways_on,
            )
        state.wait_for_everyone()
        yield folder


def fingerprint(value: Any) -> str:
    """sha256 of plain data, or of the contents of a file or of all files under a folder."""
    digest = hashlib.sha256()
    if isinstance(value, Path):
        files = sorted(p for p in value.rglob("*") if p.is_file()) if value.is_dir() else [value]
        for file in files:
            digest.update(str(file.relative_to(value)).encode() if file != value else b"")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    else:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


def model_fingerprint(path: str) -> str:
    """The hash of a local model's weights, tokenizer and configs; a hub id stands for itself.

    An adapter's hash covers its base, which it is nothing without.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}"
    parts = [fingerprint(folder)]
    adapter = read_json(folder / "adapter_config.json")
    if adapter is not None:
        parts.append(model_fingerprint(adapter["base_model_name_or_path"]))
    return fingerprint(parts)


def is_adapter(path: str) -> bool:
    """Whether a directory holds a LoRA adapter rather than a whole model."""
    return (Path(path) / "adapter_config.json").is_file()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is whole or not there: temporary name, fsync, rename."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file is whole or not there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, whole or not there."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The file's content, or None where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every line of a file that we wrote ourselves."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def stage_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What each finished training stage of a run recorded: the `stages` of results.json."""
    done = {name: read_json(folder / place / "done.json") for name, place in STAGE_FOLDERS.items()}
    return {name: record["facts"] for name, record in done.items() if record is not None}


def last_model(folder: Path) -> Path | None:
    """The model that the last finished training stage of a run wrote; None where there is none."""
    places = [folder / place for place in STAGE_FOLDERS.values()]
    models = [place / "model" for place in places if (place / "done.json").is_file()]
    return models[-1] if models else None


def write_environment(folder: Path, preset: Preset) -> None:
    """run.json: what a reader needs to repeat the run."""
    state = PartialState()
    if not state.is_main_process:
        return
    facts = _environment(state) | {
        "seed": preset.run.seed,
        "preset_sha256": fingerprint(resolved(preset)),
    }
    write_json(folder / "run.json", facts)


def _environment(state: PartialState) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "device": gpu or str(state.device),
        "num_processes": state.num_processes,
        "git": commit.stdout.strip() or None,
    }


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(
            f"run.dir={folder} cannot be written ({error.strerror}); set run.dir= to a folder of "
            "yours"
        ) from None
    with lock:
        try:
            # The kernel frees it when the process ends, however it ends: no stale locks.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"run.dir={folder} is in use by {lock.read().strip() or 'another process'}; wait "
                "for it or set run.dir= to another folder"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def _claim(
    folder: Path,
    preset: dict[str, Any],
    *,
    fresh: bool,
    rerun: bool,
    growing: Sequence[str],
    ways_on: str,
) -> None:
    recorded = folder / "preset.yaml"
    if fresh:
        for entry in folder.iterdir():
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    elif recorded.is_file():
        before: Any = OmegaConf.to_container(OmegaConf.load(recorded))
        before["run"]["dir"] = preset["run"]["dir"]  # a run may have been moved
        changed = sorted(set(_differences(before, preset)) - set(growing))
        if changed and not rerun and _anything_done(folder):
            raise UserError(
                f"run.dir={folder} holds a run of another preset (it differs in "
                f"{', '.join(changed)}); {ways_on}"
            )
    elif any(entry.name != ".lock" for entry in folder.iterdir()):
        raise UserError(
            f"run.dir={folder} holds files that are not from a run; set run.dir= to a new folder"
        )
    write_text(recorded, OmegaConf.to_yaml(OmegaConf.create(preset)))


def _anything_done(folder: Path) -> bool:
    """Whether a run got further than a start that its own data or preset ended."""
    return any(any(folder.rglob(name)) for name in ("done.json", "checkpoint-*"))


def _differences(before: Any, now: Any, at: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            path = f"{at}.{key}" if at else key
            yield from _differences(before.get(key), now.get(key), path)
    elif before != now:
        yield at
