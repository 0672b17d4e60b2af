"""Opening a run directory: locked by one command, marked as a run's, and of one preset."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.config.preset import resolved
from sft.config.safe_yaml import constructor_errors, read_yaml_text
from sft.config.sections import Preset, Source
from sft.distributed.watchdog import FOLDER as PROCESSES
from sft.distributed.watchdog import clear, watching
from sft.errors import UserError
from sft.run.adapters import update_base_paths
from sft.run.checkpoint import drop_others
from sft.run.directory_checks import refuse_links
from sft.run.earlier_versions import HASH_RULES, recorded_files, refuse_incomparable
from sft.run.fingerprint import fingerprint
from sft.run.run_record import differences
from sft.run.stage_cache import intact_record
from sft.run.stage_folders import STAGE_FOLDERS, anything_done
from sft.system.atomic_files import (
    GONE,
    open_file,
    read_record,
    remove,
    sweep,
    temporary_name,
    write_text,
)
from sft.system.file_lock import NAME as LOCK
from sft.system.file_lock import lock_folder
from sft.system.run_marker import DRAFT as MARKER_DRAFT
from sft.system.run_marker import NAME as MARKER
from sft.system.run_marker import Marker, new_marker, read_marker, record_writes_in

log = logging.getLogger(__name__)

WAYS_ON = (
    "set run.dir= to a new folder, or pass --rerun to redo what the change touches, or --fresh to "
    "start from nothing"
)

_SOURCE = asdict(Source(""))


@contextmanager
def open_run(
    preset: Preset,
    *,
    inputs: Mapping[str, str] | None = None,
    fresh: bool = False,
    rerun: bool = False,
    growing: Sequence[str] = (),
    ways_on: str = WAYS_ON,
    earlier: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Create or re-enter `run.dir`, locked by this command; yield the folder.

    Args:
        inputs: hashes of what the run reads in addition to its preset, by the input's name.
        fresh: empty the folder first.
        rerun: accept a changed preset or input; the stages that it affects are done again.
        growing: keys that may change, with those below them, without affecting finished stages.
        ways_on: the remedies for a changed preset, as the command spells them.
        earlier: hashes of `inputs` that earlier versions computed in another way.

    Raises:
        UserError: the path cannot be written, another process holds the lock, or the folder
            belongs to another preset, other inputs or another number of processes.
    """
    folder = Path(preset.run.dir).expanduser()
    state = PartialState()
    with lock_folder(folder) if state.is_main_process else nullcontext():
        if state.is_main_process:
            clear(folder)
        state.wait_for_everyone()
        with (
            watching(folder, rank=state.process_index, count=state.num_processes),
            ExitStack() as held,
        ):
            if state.is_main_process:
                start = _Start(
                    *(folder, resolved(preset), dict(inputs or {}), dict(earlier or {})),
                    ways_on=ways_on,
                    growing=growing,
                )
                held.enter_context(record_writes_in(start.admit(fresh=fresh, rerun=rerun)))
                update_base_paths([folder / place / "model" for place in STAGE_FOLDERS.values()])
            state.wait_for_everyone()
            yield folder


@dataclass(frozen=True)
class _Start:
    """A start of a command, compared with the run in its folder."""

    folder: Path
    preset: dict[str, Any]
    inputs: dict[str, str]
    earlier: dict[str, str]
    ways_on: str
    growing: Sequence[str]

    def admit(self, *, fresh: bool, rerun: bool) -> Marker:
        """Write preset.yaml and return the marker of the run, unless the start is refused."""
        recorded = self.folder / "preset.yaml"
        entries = self._entries()
        marker = read_marker(self.folder)
        lost = marker is None and bool(entries)
        if lost:
            marker = new_marker(self.folder, written=self._written())
        # Every check precedes the first write, so that a refused start changes nothing.
        begun = any(not entry.name.startswith(GONE) for entry in entries)
        if not fresh:
            refuse_links(self.folder, given=f"run.dir={self.folder}")
            if begun and not rerun:
                self._refuse_changes(recorded)
        elif marker is not None:
            self._refuse_foreign_files(marker, listed=not lost)
        if marker is not None:
            if lost:
                log.warning(
                    "%s has no intact %s, the list of the run's files; it is made again from the "
                    "run's records, and files that they do not name count as foreign",
                    *(self.folder, MARKER),
                )
                marker.save()
            with record_writes_in(marker):
                sweep(self.folder)
        if fresh:
            # Also the temporary file of preset.yaml: it could be a link that is written through.
            for entry in [*self._entries(), temporary_name(recorded)]:
                if entry != recorded:
                    remove(entry)
        if fresh or marker is None:
            # preset.yaml is kept until it is replaced, so the new marker lists it.
            marker = new_marker(self.folder, written={recorded.name: None} if fresh else {})
            marker.save()
        with record_writes_in(marker):
            if begun and not fresh and not recorded.is_file():
                log.warning("%s is gone; it is written again", recorded)
            if rerun and anything_done(self.folder):
                for place in STAGE_FOLDERS.values():
                    if not (self.folder / place / "done.json").is_file():
                        drop_others(self.folder / place)
            write_text(recorded, OmegaConf.to_yaml(OmegaConf.create(self.preset)))
        return marker

    def _entries(self) -> list[Path]:
        """List the folder, without the files that a start writes before its marker."""
        draft = temporary_name(self.folder / "preset.yaml").name
        early = {LOCK, PROCESSES, MARKER, MARKER_DRAFT, draft}
        return [entry for entry in self.folder.iterdir() if entry.name not in early]

    def _written(self) -> dict[str, set[str] | None]:
        """Return the files of a run without a marker: an early one, or one that lost it."""
        record = read_record(self.folder / "run.json", "preset_sha256")
        before = recorded_preset(self.folder / "preset.yaml") or self.preset
        if not record or record["preset_sha256"] != fingerprint(before):
            raise UserError(
                f"run.dir={self.folder} holds files that are not from a run; set run.dir= to a new "
                "folder"
            )
        refuse_links(self.folder, given=f"run.dir={self.folder}")
        return recorded_files(self.folder)

    def _refuse_foreign_files(self, marker: Marker, *, listed: bool) -> None:
        """Check that `fresh` removes only files of the run; `listed`: its marker was not lost."""
        foreign = [str(p.relative_to(marker.folder)) for p in marker.foreign_files(marker.folder)]
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            why = "" if listed else ", which has lost its list of files and whose records lack them"
            raise UserError(
                f"run.dir={self.folder}: --fresh would remove what is not from this run "
                f"({', '.join(foreign[:3])}{more}){why}; move it away, or set run.dir= to a "
                "new folder"
            )

    def _refuse_changes(self, recorded: Path) -> None:
        """Check that the start has the preset, inputs and number of processes of the run."""
        for path in (recorded, self.folder / "run.json"):
            if path.exists() and not path.is_file():
                raise UserError(
                    f"{path} is not a file; put the file that the run wrote back in its place, "
                    f"or {self.ways_on}"
                )
        record = read_record(self.folder / "run.json") or {}
        if not recorded.is_file():
            if record.get("preset_sha256") != fingerprint(self.preset):
                raise UserError(
                    f"{recorded} is gone, and this is not the preset that the run began with; "
                    f"{self.ways_on}"
                )
            before = self.preset
        elif anything_done(self.folder):
            before = recorded_preset(recorded)
        else:
            return
        if not isinstance(before, dict) or not isinstance(before.get("run"), dict):
            raise UserError(f"{recorded} is damaged; {self.ways_on}")
        refuse_incomparable(self.folder, before=before, now=self.preset, ways_on=self.ways_on)
        self._refuse_changed_keys(before)
        self._refuse_changed_inputs(record)
        processes, now = record.get("num_processes"), PartialState().num_processes
        if processes not in (None, now) and not (self.folder / "results.json").is_file():
            raise UserError(
                f"run.dir={self.folder} was begun by {processes} process(es) and this start has "
                f"{now}, which would not give the same weights; start it with --num_processes "
                f"{processes}, or {self.ways_on}"
            )

    def _refuse_changed_keys(self, before: dict[str, Any]) -> None:
        # The run may have been moved, and early runs have no date.
        own = {"date": self.preset["run"]["date"]} | before["run"]
        before = before | {"run": own | {"dir": self.preset["run"]["dir"]}}
        old, new = (_with_defaults(p, resolved(Preset())) for p in (before, self.preset))
        changed = sorted(
            key
            for key in {key for key, _, _ in differences(old, new)}
            if not any(f"{key}.".startswith(f"{free}.") for free in self.growing)
        )
        if changed:
            raise UserError(
                f"run.dir={self.folder} holds a run of another preset (it differs in "
                f"{', '.join(changed)}); {self.ways_on}"
            )

    def _refuse_changed_inputs(self, record: dict[str, Any]) -> None:
        file = self.folder / "run.json"
        if not record and file.is_file():
            log.warning("%s is damaged; changes of inputs are found by each stage alone", file)
        earlier = {} if record.get("hash_rules") == HASH_RULES else self.earlier
        before = record.get("inputs", {})
        changed = [
            name
            for name, value in self.inputs.items()
            if before.get(name, value) not in (value, earlier.get(name))
        ]
        if changed:
            raise UserError(
                f"run.dir={self.folder}: changed since the run began: {', '.join(changed)}; "
                f"{self.ways_on}"
            )


def _with_defaults(recorded: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Fill in the keys that an earlier version or another command did not record."""
    filled = defaults | recorded
    for key, value in filled.items():
        if isinstance(defaults.get(key), dict) and isinstance(value, dict):
            filled[key] = _with_defaults(value, defaults[key])
        elif isinstance(value, list):  # a list of mappings is one of sources
            filled[key] = [_SOURCE | one if isinstance(one, dict) else one for one in value]
    return filled


def verify_preset(folder: Path) -> None:
    """Compare preset.yaml of a run with the hash in run.json.

    Raises:
        UserError: one of them is missing or was changed after the run wrote it.
    """
    record = intact_record(folder / "run.json", "preset_sha256")
    recorded = folder / "preset.yaml"
    if record and record["preset_sha256"] != fingerprint(recorded_preset(recorded)):
        raise UserError(
            f"{recorded} is not as the run wrote it; start the run's command again, which writes "
            "it anew"
        )


def recorded_preset(recorded: Path) -> Any:
    """Return the content of a preset.yaml; None where it is missing or damaged."""
    try:
        with open_file(recorded) as stream:
            text = read_yaml_text(stream)
        with constructor_errors():
            return OmegaConf.to_container(OmegaConf.create(text))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        log.warning("%s: %s", recorded, " ".join(str(error).split()))
        return None
