"""Find and read the stored samples of a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from eval.metrics.number_format import REPETITION
from eval.schema_checks import first_mismatch
from sft.errors import UserError
from sft.run.terminal import visible
from sft.system.atomic_files import is_inside, iter_jsonl

T = TypeVar("T")

# Answers of the optional measures.
MORE_SAMPLES = ("generations-double-cap", "generations-sampled", "safety")


def sample_file(run_dir: Path, *, model: str, name: str) -> Path | None:
    """Return eval/<model>/<name> if it exists and the names do not lead out of eval/."""
    path = run_dir / "eval" / model / name
    inside = ".." not in Path(model, name).parts and is_inside(path, run_dir / "eval")
    return path if inside and path.is_file() else None


def sample_href(run_dir: Path | None, *, model: str, name: str) -> str | None:
    """Return the relative address of eval/<model>/<name>, if that file exists."""
    if run_dir is None or sample_file(run_dir, model=model, name=name) is None:
        return None
    return quote(f"eval/{model}/{name}")


def task_href(run_dir: Path | None, *, model: str, task: str, form: str = "") -> str | None:
    """Return the address of a task's answers; `form` is a key of `same_format`."""
    if task == REPETITION:
        return sample_href(run_dir, model=model, name="generations.jsonl")
    # If the protocol already prompts the model in this format, its answers are not stored twice.
    own = form and sample_href(run_dir, model=model, name=f"samples-{form}/{task}.jsonl")
    return own or sample_href(run_dir, model=model, name=f"samples/{task}.jsonl")


def read_lines(path: Path, *, schema: type[T]) -> Iterator[T]:
    """Yield the rows of a JSON-lines file, with hidden characters made visible.

    Args:
        schema: the TypedDict of a row, or `dict` for rows of any keys.

    Raises:
        UserError: a line is not a JSON object, or does not fit the schema.
    """
    for number, row in iter_jsonl(path, remedy="measure again"):
        if found := first_mismatch(row, schema):
            raise UserError(
                f"{path}:{number}: {found} is not as this version writes it; measure again"
            )
        yield cleaned(row)


def cleaned(value: Any) -> Any:
    """Return JSON data with every string and key passed through `visible`."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        # Token ids are most of a row and hold no strings.
        return value if value and isinstance(value[0], int) else [cleaned(item) for item in value]
    if isinstance(value, dict):
        return {visible(key): cleaned(item) for key, item in value.items()}
    return value
