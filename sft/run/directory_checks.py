"""Checks of a run directory: where it may be, and that no link leads out of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from sft.config.preset import find_path
from sft.config.sections import Preset
from sft.errors import UserError
from sft.system.atomic_files import is_inside
from sft.system.run_marker import NAME as MARKER


def check_run_dir(preset: Preset, *, read: Sequence[str | Path] = ()) -> None:
    """Check that a run directory neither is nor contains an input, the home or current folder.

    Args:
        read: paths that the command reads in addition to those in the preset.

    Raises:
        UserError: it is or contains one of them, or it lies in another run.
    """
    refuse_inside_run(preset.run.dir, option="run.dir or --to:")
    try:
        home, here = Path.home(), Path.cwd()
    except (RuntimeError, FileNotFoundError):  # no home, or a current folder that is gone
        return
    folder = (here / Path(preset.run.dir).expanduser()).resolve()
    places = {"the home folder": home, "the current folder": here}
    places |= {str(path): found for path in _named(preset, read) if (found := find_path(path))}
    for name, place in places.items():
        if place.resolve().is_relative_to(folder):
            raise UserError(
                f"results cannot go to {preset.run.dir} (run.dir, --to), which is or holds {name}: "
                f"the folder of a run holds only files of the run; give another folder, "
                f"such as {Path(preset.run.dir) / 'run'}"
            )


def refuse_inside_run(folder: str | Path, *, option: str) -> None:
    """Check that an output folder is not inside the directory of a run, even through a link.

    Args:
        option: the command's option that named it.
    """
    place = Path(os.path.realpath(Path(folder).expanduser()))
    if is_run(place):
        return  # of the same command, which continues it
    for above in place.parents:
        if is_run(above):
            raise UserError(
                f"{option} {folder} lies in {above}, the directory of a run, which holds what "
                "that run writes alone; give a folder outside of it"
            )


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run: by its marker or, for earlier versions, its records."""
    # Not `Path.is_file`, which raises where a name is too long or the folder may not be entered.
    return os.path.isfile(folder / MARKER) or all(
        os.path.isfile(folder / name) for name in ("run.json", "preset.yaml")
    )


def refuse_links(folder: Path, *, given: str) -> None:
    """Check that a run directory has no links that lead out of it, pipes, sockets or devices.

    Args:
        folder: the run directory, which may itself be a link.
        given: the folder as error messages name it.
    """
    # A link could make the run read or write any file, and reading a pipe can block for ever.
    for path in sorted(folder.rglob("*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(
                f"{given}: {path.relative_to(folder)} is a pipe, a socket or a device, and a run "
                "directory holds files; remove it"
            )
        if path.is_symlink() and not is_inside(path, folder):
            raise UserError(
                f"{given}: {path.relative_to(folder)} is a link that leads out of it, to "
                f"{os.path.realpath(path)}; put what it leads to there, or remove it"
            )


def _named(preset: Preset, read: Sequence[str | Path]) -> list[str]:
    """Return every path that a run reads, and names on the hub, which are not on the disk."""
    data, measures, template = preset.data, preset.eval, preset.model.chat_template
    sources = [*data.sft, *data.preference, *preset.pairs.prompts]
    single = [
        *(preset.model.name_or_path, measures.task_dir, measures.data_dir),
        *(measures.repetition.prompts, measures.safety.prompts),
        None if template and "{" in template else template,  # the text of a template, or its file
    ]
    named = [*map(str, read), *(source.path for source in sources), *data.decontaminate]
    return [path for path in (*named, *single) if path]
