"""Limit generated answers of a task: number of tokens and stop strings."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs

from eval.tasks.task_files import TaskSource
from sft.config.sections import TaskOptions
from sft.errors import UserError

log = logging.getLogger(__name__)

# lm-eval's names for the cap on tokens (lm_eval.models.utils.normalize_gen_kwargs).
CAPS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_NEW_TOKENS = 256  # lm-eval's default (huggingface.py, max_gen_toks)


def check_answers(
    names: Sequence[str],
    *,
    source: TaskSource,
    options: Mapping[str, TaskOptions],
    window: int | None,
) -> None:
    """Check the `generation_kwargs` of tasks, and that their cap fits the context window.

    Raises:
        UserError: a setting has the wrong type, or the cap leaves no space for a question.
    """
    for name, config in source.all_configs(names).items():
        if config.get("output_type") != "generate_until":
            continue
        settings = config.get("generation_kwargs") or {}
        _check_settings(name, settings)
        own = options.get(name, TaskOptions()).max_gen_toks
        cap = answer_cap(settings) if own is None else own
        if window is not None and cap >= window:
            raise UserError(cap_too_large(name, cap, window=window))


def _check_settings(task: str, settings: Any) -> None:
    """Raise if a generation setting has a type that lm-eval does not expect."""
    if not isinstance(settings, Mapping):
        raise UserError(f"task {task}: generation_kwargs is {settings!r}; give keys and values")
    until = settings.get("until")
    texts = until if isinstance(until, list) else [until or ""]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"task {task}: generation_kwargs.until is {until!r}; give a text or a list of texts, "
            "in quotes"
        )
    for key in CAPS:
        value = settings.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(
                f"task {task}: generation_kwargs.{key} is {value!r}; give a positive number of "
                "tokens"
            )
    heat = settings.get("temperature")
    if heat is not None and (not isinstance(heat, int | float) or heat < 0):
        raise UserError(
            f"task {task}: generation_kwargs.temperature is {heat!r}; give a number of at least 0"
        )


def cap_too_large(task: str, cap: int, *, window: int | None) -> str:
    """Return the error for a cap that fills the context window."""
    return (
        f"{task}: {cap} new tokens do not fit the context window of {window}; set "
        f"eval.per_task.{task}.max_gen_toks lower"
    )


def answer_cap(settings: Mapping[str, Any]) -> int:
    """Return the cap on tokens in the `generation_kwargs` of a task."""
    return int(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS)["max_gen_toks"])


def cap_answers(tasks: Mapping[str, Task], cap: int) -> None:
    """Set the cap on tokens of generated answers.

    Raises:
        UserError: a task generates no answers.
    """
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"eval.per_task.{name}.max_gen_toks={cap} has no effect, since the task scores "
                "choices and generates no text; remove it"
            )
        # lm-eval reads this name before its other ones.
        settings = task.get_config("generation_kwargs") or {}
        task.set_config(key="generation_kwargs", value=settings | {"max_gen_toks": cap})


def end_at_turn(
    tasks: Mapping[str, Task], configs: Mapping[str, Mapping[str, Any] | None], *, chat: bool
) -> None:
    """Remove lm-eval's default stop string from local tasks in the chat format.

    Without `generation_kwargs.until`, lm-eval ends answers at the few-shot delimiter, a blank line
    (config/task.py). On plain text that stops a base model before it writes further examples; in a
    chat it would cut every worked answer after its first paragraph.

    Args:
        configs: of the task files, as written; None for tasks of lm-eval, which are unchanged.
    """
    for name, task in tasks.items():
        config = configs.get(name)
        if config is None or task.OUTPUT_TYPE != "generate_until":
            continue
        if "until" in (config.get("generation_kwargs") or {}):
            continue
        settings = task.get_config("generation_kwargs")
        where = "its end of turn" if chat else f"the first {settings['until'][0]!r}"
        log.info("%s: no generation_kwargs.until, so an answer ends at %s", name, where)
        if chat:
            task.set_config(key="generation_kwargs", value=settings | {"until": []})
