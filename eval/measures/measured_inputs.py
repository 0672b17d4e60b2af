"""Inputs of measures that a run has not read yet, and that may therefore still change.

A task whose data stopped a start was not measured, so corrected data may replace it: the measures
of other tasks are kept, and rows are prepared again without the questions of the new data.
"""

from pathlib import Path

from eval.measures.measure_cache import KEPT
from eval.tasks.task_files import TaskSource, tasks_fingerprint
from sft.config.sections import EvalSection


def task_inputs(section: EvalSection) -> dict[str, str]:
    """Return the hash of each task's questions, by the input's name."""
    source = TaskSource.of(section)
    return {_input_name(name): tasks_fingerprint([name], source=source) for name in section.tasks}


def unmeasured_inputs(section: EvalSection, *, folder: Path) -> set[str]:
    """Return the names of inputs that no measure of the run in `folder` has read yet.

    The names are those of `sft.tokenization.input_hashes.run_inputs`.
    """
    measured = {path.stem for path in folder.glob(f"eval/*/{KEPT}/**/*.json")}
    names = {_input_name(task) for task in section.tasks if task not in measured}
    for measure, own in (("repetition", section.repetition), ("safety", section.safety)):
        if own.prompts and measure not in measured:
            names.add(f"eval.{measure}.prompts {own.prompts}")
    return names


def _input_name(task: str) -> str:
    return f"the data of task {task}"
