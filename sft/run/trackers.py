"""TensorBoard, trackio and Weights & Biases: log lines and measures of a run (`report_to`).

Each model of the chain is a run of the tracker, grouped under the run directory. The main process
writes through accelerate's trackers, and training does not depend on them: one that fails is
disabled. `tracker.json` of a model records what each tracker has received, so that a resumed run
repeats nothing and a tracker that is added later receives the earlier lines.
"""

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from sft.config.preset import resolved
from sft.config.sections import Preset, RunSection
from sft.errors import UserError
from sft.run.fingerprint import fingerprint
from sft.run.stage_folders import STAGE_FOLDERS, stage_facts
from sft.schema import TrackerRecord
from sft.system.atomic_files import read_json, write_json

log = logging.getLogger(__name__)

FILE, LOG = "tracker.json", "log.jsonl"
PROJECT = "truing"  # of trackio, and of Weights & Biases unless $WANDB_PROJECT is set


def check_trackers(section: RunSection) -> None:
    """Check that the trackers are installed."""
    for name in _names(section):
        try:
            version(name)
        except PackageNotFoundError:
            raise UserError(
                f"run.report_to names {name}, which is not installed; pip install {name}, or take "
                "it out"
            ) from None


def _names(section: RunSection) -> list[str]:
    return [name for name in section.report_to if name != "none"]  # transformers' name for []


@dataclass
class Trackers:
    """The trackers of a run; those of one model are open at a time."""

    names: list[str] = field(default_factory=list)  # empty on all processes but the main one
    folder: Path = Path()  # the run directory
    config: dict[str, Any] = field(default_factory=dict)  # the preset, for trackers that show it
    model: str | None = None  # whose trackers are open
    opened: dict[str, GeneralTracker] = field(default_factory=dict)
    record: TrackerRecord = field(default_factory=lambda: TrackerRecord(id="", told={}))
    announced: set[str] = field(default_factory=set)  # trackers whose place was logged

    def log_line(self, entry: Mapping[str, Any]) -> None:
        """Log a line of log.jsonl to the trackers that lack its step.

        After a kill the steps since the last checkpoint are logged again, with the same values.
        """
        for name in list(self.opened):
            if entry["step"] > self.record["told"][name]["last"]:
                self._send(name, _numbers(entry), step=entry["step"])

    def log_values(
        self, model: str, values: Mapping[str, float], *, step: int | None = None
    ) -> None:
        """Log the measures of a model after `step` (None: its last), once to each tracker."""
        if not self.names:
            return
        if step is None:
            step = stage_facts(self.folder).get(model, {}).get("steps", 0)
        key = fingerprint([step, dict(values)])
        received = self._read(model)["told"]
        if all(name in received and key in received[name]["once"] for name in self.names):
            return
        self.begin(model)
        for name in list(self.opened):
            once = self.record["told"][name]["once"]
            if key not in once and self._send(name, values, step=step):
                once.append(key)
                if name == "wandb":  # its history accepts no step before the last one
                    self._try(name, partial(self.opened[name].tracker.summary.update, values))
        write_json(self._place(model) / FILE, self.record)

    def close(self) -> None:
        for name, tracker in list(self.opened.items()):
            self._try(name, tracker.finish)
        self.opened, self.model = {}, None

    def begin(self, model: str) -> None:
        """Open the trackers of a model, before its training resumes and changes log.jsonl; one that
        is new receives the earlier lines."""
        if self.model == model or not self.names:
            return
        self.close()
        record = self._read(model)
        lines = _complete_lines(self._place(model) / LOG)
        for name in list(self.names):
            tracker = self._tracker(name, model, record["id"])
            if not self._try(name, tracker.start):
                continue
            self.opened[name] = tracker
            if name not in self.announced:
                log.info("%s: %s", name, _location(name, self.folder))
                self.announced.add(name)
            if name not in record["told"]:
                for entry in lines:
                    self._send(name, _numbers(entry), step=entry["step"])
            progress = record["told"].setdefault(name, {"last": 0, "once": []})
            progress["last"] = max([progress["last"], *(entry["step"] for entry in lines)])
        self.model, self.record = model, record
        write_json(self._place(model) / FILE, record)

    def _tracker(self, name: str, model: str, key: str) -> GeneralTracker:
        if name == "tensorboard":
            return TensorBoardTracker("", self._place(model))
        shown = {"name": f"{model}-{key}", "group": self.folder.name, "config": self.config}
        if name == "trackio":
            quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            return TrackioTracker(PROJECT, **shown, **quiet, resume="allow")
        return WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            **shown,
            id=key,
            resume="allow",
            mode=_wandb_mode(),
            settings={"console": "off", "quiet": True},
        )

    def _send(self, name: str, values: Mapping[str, float], *, step: int) -> bool:
        return name in self.opened and self._try(
            name, partial(self.opened[name].log, dict(values), step=step)
        )

    def _try(self, name: str, work: Callable[[], Any]) -> bool:
        """Return whether `work` succeeded; a tracker that fails is disabled for this start."""
        try:
            work()
        except Exception as error:  # the trackers' errors share no base class
            log.warning(
                "%s failed and is disabled; the run continues, its files hold everything (%s)",
                name,
                " ".join(f"{type(error).__name__}: {error}".split()),
            )
            self.names = [other for other in self.names if other != name]
            self.opened.pop(name, None)
            return False
        return True

    def _place(self, model: str) -> Path:
        return self.folder / STAGE_FOLDERS.get(model, f"eval/{model}")

    def _read(self, model: str) -> TrackerRecord:
        """Return the record of a model; a stage that begins again has none and gets a new id."""
        if self.model == model:
            return self.record
        stored: TrackerRecord | None = read_json(self._place(model) / FILE)
        return stored or {"id": secrets.token_hex(4), "told": {}}


@contextmanager
def open_trackers(preset: Preset, folder: Path) -> Iterator[Trackers]:
    """Yield the trackers of a preset, with none on other processes; close them at the end."""
    names = list(dict.fromkeys(_names(preset.run))) if PartialState().is_main_process else []
    trackers = Trackers(names, folder, resolved(preset) if names else {})
    try:
        yield trackers
    finally:
        trackers.close()


def _wandb_mode() -> str:
    return os.environ.get("WANDB_MODE", "offline")  # nothing is uploaded by default


def _location(name: str, folder: Path) -> str:
    if name == "tensorboard":
        return f"tensorboard --logdir {folder}"
    if name == "trackio":
        return f"trackio show --project {PROJECT}"
    here = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    if _wandb_mode() == "offline":
        return f"kept in {here}, nothing is sent; wandb sync sends it, WANDB_MODE=online at once"
    return f"WANDB_MODE={_wandb_mode()}"


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a log line under the names that transformers' trackers use."""
    return {
        f"train/{name}": value
        for name, value in entry.items()
        if name != "step" and isinstance(value, int | float)
    }


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """Read a log.jsonl, if there is one, without a last line that a kill cut short."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
