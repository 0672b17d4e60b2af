"""Benchmark tasks by name: from YAML files of one's own, or lm-eval's.

A file of one's own is plain data: `!function`, which would import code from beside it, is refused.
Relative `dataset_kwargs.data_files` are looked up from the file's folder.
"""

import copy
import difflib
import functools
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from eval import code_tasks, instructions
from eval.programs import find_isolation
from sft.config import UserError, find_path
from sft.run import fingerprint

log = logging.getLogger(__name__)

# What lm-eval raises for a task whose data, columns or templates are not as its file says.
_BROKEN = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, jinja2.TemplateError),
    StopIteration,  # of datasets, for an empty file
    ImportError,  # of tasks that want more packages
)


def check_tasks(
    names: Sequence[str], *, task_dir: str | None, allow_code_execution: bool = False
) -> None:
    """Refuse what cannot be run, before any model is loaded.

    Raises:
        UserError: a name is unknown (its nearest names follow), a task file or its data is not
            there or not readable, its metadata ask for what there is not, or it runs programs and
            that is not allowed or not possible.
    """
    local = _local_tasks(task_dir)
    unknown = [name for name in names if name not in local]
    known = _lm_eval_tasks().task_index if unknown else {}
    missing = [name for name in unknown if name not in known]
    if missing:
        near = difflib.get_close_matches(missing[0], [*local, *known], n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        where = f" nor in {task_dir}" if task_dir else ""
        raise UserError(f"eval.tasks: {missing[0]!r} is no task of lm-eval{where}{hint}")
    configs = [local[name] if name in local else known[name].cfg or {} for name in names]
    for config in configs:
        instructions.checks_instructions(config)
    programs = [config["task"] for config in configs if code_tasks.needs_programs(config)]
    if programs and not allow_code_execution:
        raise UserError(
            f"task {programs[0]} runs programs that the model writes; allow it with "
            "--allow-code-execution (eval.allow_code_execution: true), or leave the task out"
        )
    if programs:
        find_isolation()


def tasks_fingerprint(names: Sequence[str], *, task_dir: str | None) -> str:
    """What the tasks ask: definitions and data of local ones, lm-eval's version for its own."""
    local = _local_tasks(task_dir)
    parts: list[Any] = []
    for name in names:
        if name in local:
            parts += [local[name], *(fingerprint(Path(f)) for f in _data_files(local[name]))]
        else:
            parts.append([name, version("lm_eval")])
    return fingerprint(parts)


def load_tasks(
    names: Sequence[str], *, task_dir: str | None, shots: int, seed: int
) -> dict[str, Task]:
    """lm-eval tasks by name, with their data; a group's name stands for its tasks.

    A task whose file pins `num_fewshot: 0` keeps it, as in lm-eval's `simple_evaluate`; all others
    get `shots` examples, drawn with `seed`.

    Raises:
        UserError: the data of a task cannot be loaded, is empty, or has too few examples.
    """
    local = _local_tasks(task_dir)
    manager = _no_tasks() if all(name in local for name in names) else _lm_eval_tasks()
    tasks: dict[str, Task] = {}
    for name in names:
        try:
            # A copy: lm-eval changes the configs that it is given.
            loaded = manager.load([copy.deepcopy(_for_lm_eval(local, name))])["tasks"]
        except _BROKEN as error:
            raise UserError(_broken(name, error)) from error
        for task in loaded.values():
            _set_shots(task, shots, seed=seed)
        tasks |= loaded
    return tasks


def _for_lm_eval(local: dict[str, dict[str, Any]], name: str) -> dict[str, Any] | str:
    """What lm-eval loads: its own task by name, or a local config.

    The answers of some are judged here afterwards, which leaves lm-eval no metric and no program.
    """
    config = local.get(name, {})
    if code_tasks.needs_programs(config) or instructions.checks_instructions(config):
        bypass = {"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}
        plain = {key: value for key, value in config.items() if key != "unsafe_code"}
        return plain | {"metric_list": [bypass]}
    return config or name


def _set_shots(task: Task, shots: int, *, seed: int) -> None:
    if task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=shots)
        examples = task.sampler.df if shots else []
        if shots > len(examples):
            raise UserError(
                f"task {task.task_name} has {len(examples)} few-shot examples but {shots} are "
                "asked for; lower the shots or name a larger fewshot_split"
            )
    task.set_fewshot_seed(seed=seed)


def _broken(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    # Of data that cannot be fetched, and of files that are not there.
    first = "check the network" if isinstance(error, OSError) else "correct its file"
    return (
        f"task {name} cannot be loaded ({type(error).__name__}: {reason}); {first}, or give its "
        "data as local files through eval.task_dir"
    )


@functools.cache
def _lm_eval_tasks() -> TaskManager:
    log.info("reading lm-eval's index of tasks, a few seconds")
    return TaskManager()


@functools.cache
def _no_tasks() -> TaskManager:
    return TaskManager(include_defaults=False)


def _local_tasks(task_dir: str | None) -> dict[str, dict[str, Any]]:
    """Task configs by name from the YAML files under `task_dir`, with absolute data files."""
    if task_dir is None:
        return {}
    folder = find_path(task_dir)
    if folder is None or not folder.is_dir():
        raise UserError(f"eval.task_dir={task_dir} is no folder; give one that holds task files")
    tasks: dict[str, dict[str, Any]] = {}
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        config = _read_task(path)
        name = config.get("task")
        if not isinstance(name, str):
            continue  # a base for `include`, or a group
        if name in tasks:
            raise UserError(f"{path}: task {name!r} is defined twice under {task_dir}; rename one")
        tasks[name] = _with_absolute_data(config, path)
    return tasks


def _read_task(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"{path}:{line}: {error.problem}; task files are plain data here, so remove the tag"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a task file holds keys and values, such as `task: name`")
    include = config.pop("include", None)
    for base in [include] if isinstance(include, str) else include or []:
        parent = path.parent / base
        if not parent.is_file():
            raise UserError(f"{path}: include {base} is not there; name a file beside this one")
        config = _read_task(parent) | config
    return config


def _with_absolute_data(config: dict[str, Any], path: Path) -> dict[str, Any]:
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if files is None:
        return config

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if "://" in str(value):
            return value
        found = (path.parent / str(value)).resolve()
        if not found.is_file():
            raise UserError(
                f"{path}: data file {value} is not there; data_files are relative to the task file"
            )
        return str(found)

    return config | {"dataset_kwargs": config["dataset_kwargs"] | {"data_files": absolute(files)}}


def _data_files(config: dict[str, Any]) -> Iterator[str]:
    """The local data files of a config that `_with_absolute_data` has seen."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from walk(item)
        elif value is not None and "://" not in str(value):
            yield str(value)

    yield from walk((config.get("dataset_kwargs") or {}).get("data_files"))
