"""TensorBoard, trackio and Weights & Biases: log lines and measures of a run (`report_to`).

Each model of the chain is a run of the tracker's, grouped under the run directory: its training by
step, and what was measured of it. accelerate's trackers do the talking, one process does, and
training never knows. The record is the run's own files. A tracker that fails is left behind, and
one that is named later is told what there is. What each has been told stands in `tracker.json`
beside, so that a run that was killed and goes on tells nothing twice.
"""

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
from sft.system.atomic_files import read_json, write_json
from sft.system.seal import unsealed_line

log = logging.getLogger(__name__)

FILE, LOG = "tracker.json", "log.jsonl"
PROJECT = "truing"  # of trackio, and of Weights & Biases where $WANDB_PROJECT names no other


def check_trackers(section: RunSection) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        UserError: which one, and how to install it.
    """
    for name in _named(section):
        try:
            version(name)
        except PackageNotFoundError:
            raise UserError(
                f"run.report_to names {name}, which is not installed; pip install {name}, or take "
                "it out"
            ) from None


def _named(section: RunSection) -> list[str]:
    return [name for name in section.report_to if name != "none"]  # upstream's word for []


@dataclass
class Trackers:
    """The trackers of a run, of which those of one model are open at a time.

    Args:
        names: which; none on all processes but the first.
        folder: the run directory.
        config: the run's options, for those that show them.
    """

    names: list[str] = field(default_factory=list)
    folder: Path = Path()
    config: dict[str, Any] = field(default_factory=dict)
    at: str | None = None  # the model whose trackers are open
    opened: dict[str, GeneralTracker] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # of that model: its tracker.json
    said: set[str] = field(default_factory=set)  # those of which the log has told where they are

    def begin(self, model: str) -> None:
        """Called before training goes on, while log.jsonl is as the start before left it."""
        if self.names:
            self._turn_to(model)

    def log_line(self, entry: Mapping[str, Any]) -> None:
        """A line of log.jsonl of the model that trains, for those that lack its step: after a kill
        the steps behind the checkpoint come again, the same as before."""
        for name in list(self.opened):
            if entry["step"] > self.record["told"][name]["last"]:
                self._send(name, _training(entry), step=entry["step"])

    def log_values(
        self, model: str, values: Mapping[str, float], *, step: int | None = None
    ) -> None:
        """What was measured of a model behind `step` (None: its last), once to each."""
        if not self.names:
            return
        if step is None:
            step = stage_facts(self.folder).get(model, {}).get("steps", 0)
        key = fingerprint([step, dict(values)])
        told = self._read(model)["told"]
        if all(name in told and key in told[name]["once"] for name in self.names):
            return
        self._turn_to(model)
        for name in list(self.opened):
            once = self.record["told"][name]["once"]
            if key not in once and self._send(name, values, step=step):
                once.append(key)
                if name == "wandb":  # whose history takes no step behind its last
                    self._attempt(name, partial(self.opened[name].tracker.summary.update, values))
        write_json(self._place(model) / FILE, self.record)

    def close(self) -> None:
        """Have them write out what they hold."""
        for name, tracker in list(self.opened.items()):
            self._attempt(name, tracker.finish)
        self.opened, self.at = {}, None

    def _turn_to(self, model: str) -> None:
        """Open the trackers of a model; one that is new to it is told the lines that there are."""
        if self.at == model:
            return
        self.close()
        record = self._read(model)
        lines = _lines(self._place(model) / LOG)
        for name in list(self.names):
            tracker = self._tracker(name, model, record["id"])
            if not self._attempt(name, tracker.start):
                continue
            self.opened[name] = tracker
            if name not in self.said:
                log.info("%s: %s", name, _where(name, self.folder))
                self.said.add(name)
            if name not in record["told"]:
                for entry in lines:
                    self._send(name, _training(entry), step=entry["step"])
            told = record["told"].setdefault(name, {"last": 0, "once": []})
            told["last"] = max([told["last"], *(entry["step"] for entry in lines)])
        self.at, self.record = model, record
        write_json(self._place(model) / FILE, record)

    def _tracker(self, name: str, model: str, key: str) -> GeneralTracker:
        if name == "tensorboard":
            return TensorBoardTracker("", self._place(model))
        shown = {"name": f"{model}-{key}", "group": self.folder.name, "config": self.config}
        if name == "trackio":
            still = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
            return TrackioTracker(PROJECT, **shown, **still, resume="allow")
        return WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            **shown,
            id=key,
            resume="allow",
            mode=_mode(),
            settings={"console": "off", "quiet": True},
        )

    def _send(self, name: str, values: Mapping[str, float], *, step: int) -> bool:
        return name in self.opened and self._attempt(
            name, partial(self.opened[name].log, dict(values), step=step)
        )

    def _attempt(self, name: str, work: Callable[[], Any]) -> bool:
        """Whether it went well; a tracker that failed is not asked again by this start."""
        try:
            work()
        except Exception as error:  # trackers' errors share no base, and none is worth the run
            log.warning(
                "%s failed and is left behind; the run goes on, its files hold everything (%s)",
                name,
                " ".join(f"{type(error).__name__}: {error}".split()),
            )
            self.names = [other for other in self.names if other != name]
            self.opened.pop(name, None)
            return False
        return True

    def _place(self, model: str) -> Path:
        return self.folder / STAGE_FOLDERS.get(model, f"eval/{model}")

    def _read(self, model: str) -> dict[str, Any]:
        """A stage that is begun anew has no tracker.json, so that its runs have other names."""
        if self.at == model:
            return self.record
        return read_json(self._place(model) / FILE) or {"id": secrets.token_hex(4), "told": {}}


@contextmanager
def reporting(preset: Preset, folder: Path) -> Iterator[Trackers]:
    """The trackers that a preset names, on the first process, and closed at the end."""
    names = list(dict.fromkeys(_named(preset.run))) if PartialState().is_main_process else []
    trackers = Trackers(names, folder, resolved(preset) if names else {})
    try:
        yield trackers
    finally:
        trackers.close()


def _mode() -> str:
    """Nothing is sent unless the environment asks for it."""
    return os.environ.get("WANDB_MODE", "offline")


def _where(name: str, folder: Path) -> str:
    if name == "tensorboard":
        return f"tensorboard --logdir {folder}"
    if name == "trackio":
        return f"trackio show --project {PROJECT}"
    here = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    if _mode() == "offline":
        return f"kept in {here}, nothing is sent; wandb sync sends it, WANDB_MODE=online at once"
    return f"WANDB_MODE={_mode()}"


def _training(entry: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line of log.jsonl, by the names that transformers' own trackers use."""
    return {
        f"train/{name}": value
        for name, value in entry.items()
        if name != "step" and isinstance(value, int | float)
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log.jsonl, if there is one; a kill may have cut the last line short."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [row for line in lines if (row := unsealed_line(line)) is not None]
