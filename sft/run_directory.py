"""Opening a run directory: held by one command, marked as a run's, and of one preset."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.adapters import name_own_bases
from sft.checkpoint import drop_others
from sft.config import Preset, UserError, resolved
from sft.lock import NAME as LOCK
from sft.lock import one_writer
from sft.plain_yaml import constructing, plain_text
from sft.processes import FOLDER as PROCESSES
from sft.processes import clear, watching
from sft.run import STAGE_FOLDERS, anything_done, differences, fingerprint
from sft.run_marker import DRAFT as MARKER_DRAFT
from sft.run_marker import NAME as MARKER
from sft.run_marker import Marker, new_marker, noting_writes, read_marker, restored_marker
from sft.run_place import refuse_links
from sft.storage import open_file, read_record, remove, sweep, temporary_name, write_text

log = logging.getLogger(__name__)

WAYS_ON = (
    "set run.dir= to a new folder, or pass --rerun to redo what the change touches, or --fresh to "
    "start from nothing"
)


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
        with (
            watching(folder, rank=state.process_index, count=state.num_processes),
            ExitStack() as held,
        ):
            if state.is_main_process:
                claim = _Claim(folder, resolved(preset), dict(inputs or {}), ways_on, growing)
                held.enter_context(noting_writes(claim.settle(fresh=fresh, rerun=rerun)))
                name_own_bases([folder / place / "model" for place in STAGE_FOLDERS.values()])
            state.wait_for_everyone()
            yield folder


@dataclass(frozen=True)
class _Claim:
    """A start's claim to a run directory, held against what is there."""

    folder: Path
    preset: dict[str, Any]
    inputs: dict[str, str]
    ways_on: str
    growing: Sequence[str] = ()

    def settle(self, *, fresh: bool, rerun: bool) -> Marker:
        """Let the start in, or say why not; returns the marker of the run."""
        recorded = self.folder / "preset.yaml"
        marker = read_marker(self.folder) or (self._lost_marker() if self._entries() else None)
        if not fresh:
            refuse_links(self.folder, given=f"run.dir={self.folder}")
        if marker is not None:
            if fresh:
                self._refuse_strangers(marker)
            with noting_writes(marker):
                sweep(self.folder)
        entries = self._entries()
        if fresh:
            # The draft of preset.yaml too: it may be a link, which would be written through.
            for entry in [*entries, temporary_name(recorded)]:
                if entry != recorded:
                    remove(entry)
            # preset.yaml stays until the new one takes its place, and is the run's own until then.
            marker = restored_marker(self.folder, written={recorded.name: None})
        if marker is None:
            marker = new_marker(self.folder)
        with noting_writes(marker):
            if not fresh and entries and not recorded.is_file():
                self._restore_preset(recorded, asked=rerun)
            if not fresh and recorded.is_file() and anything_done(self.folder):
                if not rerun:
                    self._refuse_changes(recorded)
                else:
                    for place in STAGE_FOLDERS.values():
                        if not (self.folder / place / "done.json").is_file():
                            drop_others(self.folder / place)
            self._write(recorded)
        return marker

    def _entries(self) -> list[Path]:
        """What is in the folder, but for what every start writes before it has a marker."""
        draft = temporary_name(self.folder / "preset.yaml").name
        early = {LOCK, PROCESSES, MARKER, MARKER_DRAFT, draft}
        return [entry for entry in self.folder.iterdir() if entry.name not in early]

    def _write(self, recorded: Path) -> None:
        write_text(recorded, OmegaConf.to_yaml(OmegaConf.create(self.preset)))

    def _lost_marker(self) -> Marker:
        """The marker of a run that was begun before runs had one, or that lost it, written anew:
        its list names what the run's own records name.

        Raises:
            UserError: the files are not from a run.
        """
        record = read_record(self.folder / "run.json", "preset_sha256")
        recorded = self.folder / "preset.yaml"
        known = {record["preset_sha256"]} if record else set()
        if not known & {fingerprint(recorded_preset(recorded) or self.preset)}:
            raise UserError(
                f"run.dir={self.folder} holds files that are not from a run; set run.dir= to a new "
                "folder"
            )
        refuse_links(self.folder, given=f"run.dir={self.folder}")
        log.warning(
            "%s has no whole %s, the list of what a run wrote; it is made anew from the run's "
            "records, and what they do not name counts as not from this run",
            *(self.folder, MARKER),
        )
        return restored_marker(self.folder, written=_recorded_files(self.folder))

    def _refuse_strangers(self, marker: Marker) -> None:
        """Before the folder is emptied.

        Raises:
            UserError: something in it is not from the run.
        """
        strangers = [str(p.relative_to(marker.folder)) for p in marker.strangers(marker.folder)]
        if strangers:
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            raise UserError(
                f"run.dir={self.folder}: --fresh would remove what is not from this run "
                f"({', '.join(strangers[:3])}{more}); move it away, or set run.dir= to a new folder"
            )

    def _restore_preset(self, recorded: Path, *, asked: bool) -> None:
        """Write what a run has lost, if this is known to be it, or a way on was `asked` for.

        Raises:
            UserError: it is another.
        """
        record = read_record(self.folder / "run.json", "preset_sha256")
        if not asked and (record is None or record["preset_sha256"] != fingerprint(self.preset)):
            raise UserError(
                f"{recorded} is gone, and this is not the preset that the run began with; "
                f"{self.ways_on}"
            )
        log.warning("%s is gone; it is written again", recorded)
        self._write(recorded)

    def _refuse_changes(self, recorded: Path) -> None:
        before = recorded_preset(recorded)
        if not isinstance(before, dict) or not isinstance(before.get("run"), dict):
            raise UserError(f"{recorded} is damaged; {self.ways_on}")
        before["run"]["dir"] = self.preset["run"]["dir"]  # a run may have been moved
        old, new = (_with_defaults(p, resolved(Preset())) for p in (before, self.preset))
        changed_keys = {key for key, _, _ in differences(old, new)}
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


def _with_defaults(recorded: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A recorded preset with the keys that it lacks: those that came after the version that wrote
    it, and those of sections that only some commands have."""
    filled = defaults | recorded
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled[key], dict):
            filled[key] = _with_defaults(filled[key], default)
    return filled


def recorded_preset(recorded: Path) -> Any:
    """What a preset.yaml holds; None where it is missing or damaged."""
    try:
        with open_file(recorded) as stream:
            text = plain_text(stream)
        with constructing():
            return OmegaConf.to_container(OmegaConf.create(text))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        log.warning("%s: %s", recorded, " ".join(str(error).split()))
        return None


def _recorded_files(folder: Path) -> dict[str, set[str] | None]:
    """The files that records of stages and checkpoints name, and these records."""
    names = [Path(name) for name in ("preset.yaml", "run.json", "results.json", "decisions.json")]
    for record, listed in (("done.json", "outputs"), ("manifest.json", "files")):
        for path in folder.rglob(record):
            files = (read_record(path) or {}).get(listed)
            if isinstance(files, dict):
                names += [path, path.with_name("begun.json"), *(path.parent / f for f in files)]
    inside = [os.path.relpath(folder / name, folder) for name in names]
    return {name: None for name in inside if (folder / name).is_file()}
