"""The run directory: who writes in it, what a stage read, and when it is finished.

A stage works in its folder and writes `done.json` last, by rename; its presence is the only meaning
of "finished". It holds hashes of what the stage read and wrote, so that a stage whose inputs still
match and whose outputs are whole is skipped and any other is done again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.adapters import CONFIG, adapter_base, name_own_bases, settled_hash
from sft.checkpoint import drop_others
from sft.config import Preset, UserError, find_path, resolved
from sft.lock import NAME as LOCK
from sft.lock import one_writer
from sft.plain_yaml import refuse_bomb
from sft.processes import FOLDER as PROCESSES
from sft.processes import clear, watching
from sft.storage import (
    is_inside,
    read_json,
    read_jsonl,
    read_record,
    remove,
    sweep,
    sync,
    temporary_name,
    write_json,
    write_jsonl,
    write_record,
    write_text,
)

__all__ = [
    "STAGE_FOLDERS",
    "Stage",
    "fingerprint",
    "is_adapter",
    "model_fingerprint",
    "open_run",
    "read_json",
    "read_jsonl",
    "stage_facts",
    "write_json",
    "write_jsonl",
    "write_text",
]

log = logging.getLogger(__name__)

DECISIONS = "decisions.json"  # of stages that run or are kept by evidence

# Where each stage of the chain works, by the name that its model goes by.
STAGE_FOLDERS = {"sft-all": "1-sft-all", "sft-dialogue": "2-sft-dialogue", "dpo": "3-dpo"}

WAYS_ON = (
    "set run.dir= to a new folder, or pass --rerun to redo what the change touches, or --fresh to "
    "start from nothing"
)


@dataclass(frozen=True)
class Stage:
    """A unit of work in its own folder, known by the hashes of what it reads."""

    folder: Path
    inputs: dict[str, str]
    # Entries that outlive a change of inputs: they have keys of their own.
    keep: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> dict[str, Any] | None:
        """The facts recorded at its end, if the inputs match and the outputs are as written."""
        marker = self.folder / "done.json"
        done = read_record(marker, "inputs", "outputs", "facts")
        if done is None and marker.is_file():
            log.warning("%s: %s is damaged; doing it again", self.name, marker.name)
        if done is None or done["inputs"] != self.inputs:
            return None
        for name, written in done["outputs"].items():
            path = self.folder / name
            if not path.is_file() or settled_hash(path) != written:
                log.warning("%s: %s is missing or changed; doing it again", self.name, name)
                return None
        return done["facts"]

    def begin(self) -> None:
        """Make the folder ready: work begun on other inputs is thrown away, aloud."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        marker = self.folder / "begun.json"
        begun = read_record(marker, "inputs")
        if marker.is_file() and (begun is None or begun["inputs"] != self.inputs):
            before = begun["inputs"] if begun else {}
            changed = [k for k in self.inputs if before.get(k) != self.inputs[k]]
            log.warning("%s: %s changed; doing it again", self.name, ", ".join(changed))
            (self.folder / "done.json").unlink(missing_ok=True)
            for entry in self.folder.iterdir():
                if entry.name not in (*self.keep, marker.name):
                    remove(entry)
        # Last, so that a kill in between leaves nothing that looks as if it were of these inputs.
        (self.folder / "done.json").unlink(missing_ok=True)
        write_record(marker, {"inputs": self.inputs})

    def finish(self, *, outputs: list[str], facts: dict[str, Any]) -> dict[str, Any]:
        """Record that the stage is done: hashes of `outputs` (files or folders) once the disk holds
        them, then the marker."""
        files: dict[str, str] = {}
        for name in outputs:
            path = self.folder / name
            below = sorted(path.rglob("*")) if path.is_dir() else []
            for file in [path, *below]:
                sync(file)
                if file.is_file():
                    written = name if file == path else str(file.relative_to(self.folder))
                    files[written] = settled_hash(file)
        sync(self.folder)
        write_record(
            self.folder / "done.json", {"inputs": self.inputs, "outputs": files, "facts": facts}
        )
        return facts


@contextmanager
def open_run(
    preset: Preset,
    *,
    inputs: Mapping[str, str] | None = None,
    fresh: bool = False,
    rerun: bool = False,
    growing: Sequence[str] = (),
    ways_on: str = WAYS_ON,
) -> Iterator[Path]:
    """Make or re-enter `run.dir`, held by this command alone; yields the folder.

    `fresh` empties the folder first; `rerun` lets a changed preset or input in, and then the stages
    that the change touches are done again; keys in `growing`, or below them, may always change,
    which takes nothing away; `ways_on` tells the user of these, as the command spells them.

    Args:
        inputs: what the run reads beside its preset: a hash by the name to say when it has changed.

    Raises:
        UserError: the path cannot be written, another process holds the directory, or it belongs
            to another preset, other inputs (then what changed is named) or another number of
            processes.
    """
    folder = Path(preset.run.dir).expanduser()
    state = PartialState()
    with one_writer(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            clear(folder)
        state.wait_for_everyone()
        with watching(folder, rank=state.process_index, count=state.num_processes):
            if state.is_main_process:
                claim = _Claim(folder, resolved(preset), dict(inputs or {}), ways_on, growing)
                claim.settle(fresh=fresh, rerun=rerun)
                name_own_bases([folder / place / "model" for place in STAGE_FOLDERS.values()])
            state.wait_for_everyone()
            yield folder


def fingerprint(value: Any) -> str:
    """sha256 of plain data, or of the contents of a file or of all files under a folder."""
    digest = hashlib.sha256()
    if isinstance(value, Path):
        files = sorted(p for p in value.rglob("*") if p.is_file()) if value.is_dir() else [value]
        for file in files:
            digest.update(str(file.relative_to(value)).encode() if file != value else b"")
            digest.update(settled_hash(file).encode())
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
    if is_adapter(path):
        parts.append(model_fingerprint(adapter_base(path)))
    return fingerprint(parts)


def is_adapter(path: str) -> bool:
    """Whether a directory holds a LoRA adapter rather than a whole model."""
    return (Path(path) / CONFIG).is_file()


def stage_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What each finished training stage of a run recorded: the `stages` of results.json."""
    done = {name: read_json(folder / place / "done.json") for name, place in STAGE_FOLDERS.items()}
    return {name: record["facts"] for name, record in done.items() if record is not None}


def set_aside(folder: Path) -> set[str]:
    """The stages of a run whose models its gates did not keep: nothing after them began there."""
    decisions = read_json(folder / DECISIONS) or []
    return {each["stage"] for each in decisions if each["verdict"] == "set aside"}


def last_model(folder: Path) -> Path | None:
    """The model of the last finished training stage of a run that was kept; None without one."""
    places = [place for name, place in STAGE_FOLDERS.items() if name not in set_aside(folder)]
    models = [folder / place / "model" for place in places]
    finished = [model for model in models if (model.parent / "done.json").is_file()]
    return finished[-1] if finished else None


def find_local_model(name_or_path: str) -> Path | None:
    """A local model as users name it: a model's directory, or a run's, which means the last model
    that the run kept; None for a path that is not on this machine.

    Raises:
        UserError: the directory is a run's, and no stage of it is finished.
    """
    found = find_path(name_or_path)
    if found is None or not (found / "preset.yaml").is_file():
        return found
    if (found / "config.json").is_file():  # an export, which carries the preset of its run
        return found
    if (model := last_model(found)) is None:
        raise UserError(
            f"{name_or_path} is the directory of a run with no finished stage that was kept; start "
            "its command again, or name a model's directory"
        )
    return model


@dataclass(frozen=True)
class _Claim:
    """A start's claim to a run directory, held against what is there."""

    folder: Path
    preset: dict[str, Any]
    inputs: dict[str, str]
    ways_on: str
    growing: Sequence[str] = ()

    def settle(self, *, fresh: bool, rerun: bool) -> None:
        """Let the start in, or say why not."""
        recorded = self.folder / "preset.yaml"
        ours = {LOCK, PROCESSES, temporary_name(recorded).name}
        entries = [entry for entry in self.folder.iterdir() if entry.name not in ours]
        if entries and not recorded.is_file():
            self._restore_preset(recorded, asked=fresh or rerun)
        if not fresh:
            self._refuse_links()
        if fresh:
            # The draft of preset.yaml too: it may be a link, which would be written through.
            for entry in [*entries, temporary_name(recorded)]:
                if entry != recorded:
                    remove(entry)
        elif recorded.is_file() and anything_done(self.folder):
            if not rerun:
                self._refuse_changes(recorded)
            else:
                for place in STAGE_FOLDERS.values():
                    if not (self.folder / place / "done.json").is_file():
                        drop_others(self.folder / place)
        self._write(recorded)

    def _write(self, recorded: Path) -> None:
        write_text(recorded, OmegaConf.to_yaml(OmegaConf.create(self.preset)))

    def _restore_preset(self, recorded: Path, *, asked: bool) -> None:
        """Write what a run has lost, if this is known to be it, or a way on was `asked` for.

        Raises:
            UserError: it is another, or the files are of no run.
        """
        record = read_record(self.folder / "run.json", "preset_sha256")
        if record is None:
            raise UserError(
                f"run.dir={self.folder} holds files that are not from a run; set run.dir= to a new "
                "folder"
            )
        if not asked and record["preset_sha256"] != fingerprint(self.preset):
            raise UserError(
                f"{recorded} is gone, and this is not the preset that the run began with; "
                f"{self.ways_on}"
            )
        log.warning("%s is gone; it is written again", recorded)
        self._write(recorded)

    def _refuse_links(self) -> None:
        """What is written to a link is written to where it leads."""
        for path in self.folder.rglob("*"):
            if path.is_symlink() and not is_inside(path, self.folder):
                raise UserError(
                    f"run.dir={self.folder}: {path.relative_to(self.folder)} is a link that leads "
                    f"out of it, to {path.resolve()}; put what it leads to there, or remove it"
                )

    def _refuse_changes(self, recorded: Path) -> None:
        before: Any = None
        try:
            text = recorded.read_text(encoding="utf-8")
            refuse_bomb(text)
            before = OmegaConf.to_container(OmegaConf.create(text))
        except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
            log.warning("%s: %s", recorded, " ".join(str(error).split()))
        if not isinstance(before, dict) or not isinstance(before.get("run"), dict):
            raise UserError(f"{recorded} is damaged; {self.ways_on}")
        before["run"]["dir"] = self.preset["run"]["dir"]  # a run may have been moved
        changed_keys = {key for key, _, _ in differences(before, self.preset)}
        keys = sorted(
            key
            for key in changed_keys
            if not any(f"{key}.".startswith(f"{free}.") for free in self.growing)
        )
        if keys:
            raise UserError(
                f"run.dir={self.folder} holds a run of another preset (it differs in "
                f"{', '.join(keys)}); {self.ways_on}"
            )
        kept = self.folder / "run.json"
        record = read_record(kept) or {}
        if not record and kept.is_file():
            log.warning("%s is damaged; stages alone tell what has changed since then", kept)
        read = record.get("inputs", {})
        changed = [name for name, value in self.inputs.items() if read.get(name, value) != value]
        if changed:
            raise UserError(
                f"run.dir={self.folder}: changed since the run began: {', '.join(changed)}; "
                f"{self.ways_on}"
            )
        processes, now = record.get("num_processes"), PartialState().num_processes
        if processes not in (None, now) and not (self.folder / "results.json").is_file():
            raise UserError(
                f"run.dir={self.folder} was begun by {processes} process(es) and this start has "
                f"{now}, which would not give the same weights; start it with --num_processes "
                f"{processes}, or {self.ways_on}"
            )


def anything_done(folder: Path) -> bool:
    """Whether a run got further than a start that its own data or preset ended: prepared rows are
    no more than that, and are prepared again where they changed."""
    found = (p for name in ("done.json", "checkpoint-*") for p in folder.rglob(name))
    return any(path.relative_to(folder).parts[0] != "data" for path in found)


def differences(before: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places where two nested mappings differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            path = f"{at}.{key}" if at else key
            yield from differences(before.get(key), now.get(key), path)
    elif before != now:
        yield at, before, now
