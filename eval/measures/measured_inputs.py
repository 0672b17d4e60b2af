"""Which of the files that measuring reads a run has measured on already.

A task whose data ended a start was not measured, so the corrected data may take its place: what was
measured on other tasks stays, and rows are prepared again without the questions of the new data.
"""

from pathlib import Path

from eval.measures.measure_cache import KEPT
from eval.tasks.task_files import Tasks, tasks_fingerprint
from sft.config.sections import EvalSection


def task_inputs(section: EvalSection) -> dict[str, str]:
    """A hash of what each task asks, by the words that name it where it has changed."""
    source = Tasks.of(section)
    return {_words(name): tasks_fingerprint([name], source=source) for name in section.tasks}


def unmeasured_inputs(section: EvalSection, *, folder: Path) -> set[str]:
    """The names of inputs (see `sft.tokenization.fingerprints.run_inputs`) that no measure of a run
    has read yet.

    Args:
        folder: of the run; it need not exist.
    """
    measured = {path.stem for path in folder.glob(f"eval/*/{KEPT}/**/*.json")}
    names = {_words(task) for task in section.tasks if task not in measured}
    for measure, own in (("repetition", section.repetition), ("safety", section.safety)):
        if own.prompts and measure not in measured:
            names.add(f"eval.{measure}.prompts {own.prompts}")
    return names


def _words(task: str) -> str:
    return f"the data of task {task}"
