"""The date of a run, `run.date`: as given, as recorded when the run began, or today's."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from sft.config.sections import Preset
from sft.distributed.collectives import run_on_main
from sft.system.atomic_files import read_record


def with_date(preset: Preset, *, models: Sequence[str] = (), fresh: bool = False) -> Preset:
    """The preset with `run.date` filled in, the same on all processes.

    A run that is resumed keeps its date. A new one that measures models of another run takes the
    date of that run, so that its prompts are those of the training.

    Args:
        models: directories of models; one below a run's folder brings that run's date.
        fresh: the run begins again, so what `run.dir` records does not count.
    """
    day = preset.run.date or run_on_main(lambda: _date(preset.run.dir, models=models, fresh=fresh))
    return replace(preset, run=replace(preset.run, date=day))


def _date(folder: str, *, models: Sequence[str], fresh: bool) -> str:
    own = None if fresh else recorded_date(Path(folder).expanduser())
    # A model's directory is run/1-sft-all/model.
    others = [recorded_date(Path(path).parent.parent) for path in models if Path(path).is_dir()]
    return next((day for day in (own, *others) if day), date.today().isoformat())


def recorded_date(folder: Path) -> str | None:
    """The date in a run's run.json; None where there is none."""
    record = read_record(folder / "run.json", "date")
    return record["date"] if record else None
