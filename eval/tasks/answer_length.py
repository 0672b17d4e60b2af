"""Where an answer ends that a model writes to a task's question: tokens and stop strings."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs

from eval.tasks.task_files import Tasks
from sft.config.sections import TaskOptions
from sft.errors import UserError

log = logging.getLogger(__name__)

# lm-eval's names of an answer's limit of tokens (lm_eval.models.utils.normalize_gen_kwargs).
CAPS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_NEW_TOKENS = 256  # lm-eval's, where a task names none (huggingface.py, max_gen_toks)


def check_answers(
    names: Sequence[str],
    *,
    source: Tasks,
    options: Mapping[str, TaskOptions],
    window: int | None,
) -> None:
    """Refuse tasks whose `generation_kwargs` cannot be read, or whose answers leave a model's
    window no room for a question, as far as their files say so; the engine looks again.

    Raises:
        UserError: there is one.
    """
    for name, config in source.all_configs(names).items():
        if config.get("output_type") != "generate_until":
            continue
        settings = config.get("generation_kwargs") or {}
        _refuse_unreadable(name, settings)
        own = options.get(name, TaskOptions()).max_gen_toks
        cap = answer_cap(settings) if own is None else own
        if window is not None and cap >= window:
            raise UserError(no_room(name, cap, window=window))


def _refuse_unreadable(task: str, settings: Any) -> None:
    """Refuse generation settings of another type than lm-eval expects.

    Raises:
        UserError: naming the key, its value and what it may be.
    """
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
                f"task {task}: generation_kwargs.{key} is {value!r}; give a number of tokens from "
                "1 on"
            )
    heat = settings.get("temperature")
    if heat is not None and (not isinstance(heat, int | float) or heat < 0):
        raise UserError(
            f"task {task}: generation_kwargs.temperature is {heat!r}; give a number from 0 on"
        )


def no_room(task: str, cap: int, *, window: int | None) -> str:
    """What to say of answers that fill a window."""
    return (
        f"{task}: {cap} new tokens do not fit the model's window of {window}; set "
        f"eval.per_task.{task}.max_gen_toks lower"
    )


def answer_cap(settings: Mapping[str, Any]) -> int:
    """Tokens that an answer may have by a task's `generation_kwargs`."""
    return int(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS)["max_gen_toks"])


def cap_answers(tasks: Mapping[str, Task], cap: int) -> None:
    """Let written answers have `cap` tokens.

    Raises:
        UserError: a task has no such answers.
    """
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise UserError(
                f"eval.per_task.{name}.max_gen_toks={cap} has no effect, since nothing is written "
                "there but choices are scored; remove it"
            )
        # Which lm-eval takes before its other names (lm_eval.models.utils.normalize_gen_kwargs).
        settings = task.get_config("generation_kwargs") or {}
        task.set_config(key="generation_kwargs", value=settings | {"max_gen_toks": cap})


def end_at_turn(
    tasks: Mapping[str, Task], configs: Mapping[str, Mapping[str, Any] | None], *, chat: bool
) -> None:
    """Take lm-eval's default stop string from tasks of one's own in the chat format.

    Where a task names no `generation_kwargs.until`, lm-eval ends answers at the few-shot delimiter,
    a blank line (config/task.py). As plain text that keeps a base model from going on with further
    examples; in a chat it would cut every worked answer behind its first paragraph.

    Args:
        configs: of the task files, as they are written; None for tasks of lm-eval, which stay so.
    """
    for name, task in tasks.items():
        config = configs.get(name)
        if config is None or task.OUTPUT_TYPE != "generate_until":
            continue
        if "until" in (config.get("generation_kwargs") or {}):
            continue
        settings = task.get_config("generation_kwargs")
        where = "its end of turn" if chat else f"the first {settings['until'][0]!r}"
        log.info("%s: names no generation_kwargs.until, so an answer ends at %s", name, where)
        if chat:
            task.set_config(key="generation_kwargs", value=settings | {"until": []})
