"""Find benchmark tasks by name: local YAML files, or tasks of lm-eval.

Local task files are plain data: `!function`, which would import code, is refused. Relative
`dataset_kwargs.data_files` are looked up in a data folder, or relative to the task file.
"""

import copy
import difflib
import functools
import glob
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import yaml
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from eval.graders import code_execution, ifeval
from eval.graders.sandbox_command import RunCode
from eval.graders.sandbox_probe import find_isolation
from eval.tasks.local_task import LocalTask
from sft.config.preset import find_path
from sft.config.safe_yaml import constructor_errors, read_yaml_text
from sft.config.secrets import mask_secrets
from sft.config.sections import EvalSection, TaskOptions
from sft.errors import UserError
from sft.run.fingerprint import fingerprint
from sft.system.atomic_files import is_inside, is_plain_name
from sft.system.hub import reach_hub

log = logging.getLogger(__name__)

REMOTE = ("https://", "hf://")  # addresses of data files that a task file may name

# Exceptions of lm-eval for a task whose data, columns or templates do not match its file.
_BROKEN = (
    *(OSError, ValueError, KeyError, IndexError, TypeError, jinja2.TemplateError),
    StopIteration,  # of datasets, for an empty file
    ImportError,  # of tasks that need more packages
    RuntimeError,  # of datasets, for a folder or repository with a script
)


@dataclass(frozen=True)
class TaskSource:
    """Location of tasks: local files in `folder` with their data in `data`, else lm-eval.

    With `data` None, data files are relative to the task files.
    """

    folder: str | None = None
    data: str | None = None

    @classmethod
    def of(cls, section: EvalSection) -> "TaskSource":
        return cls(section.task_dir, section.data_dir)

    def configs(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """Return configs of local tasks with absolute data files; None for tasks of lm-eval.

        Raises:
            UserError: a task file is not readable, or its data file does not exist.
        """
        files = _task_files(self.folder)
        return {
            name: _with_absolute_data(files[name], self.data) if name in files else None
            for name in names
        }

    def all_configs(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return configs of local tasks and, from its index, of lm-eval."""
        return {
            name: _lm_eval_tasks().task_index[name].cfg or {} if config is None else config
            for name, config in self.configs(names).items()
        }


def check_tasks(
    names: Sequence[str],
    *,
    source: TaskSource,
    options: Mapping[str, TaskOptions] | None = None,
    code: RunCode = RunCode.NEVER,
) -> None:
    """Check tasks before any model is loaded.

    Raises:
        UserError: a name in `names` or `options` is unknown (with the nearest names), a task file
            or
            its data does not exist or is not readable, its metadata or documents are invalid, or it
            runs programs and that is not allowed or not possible.
    """
    local = _task_files(source.folder)
    for key, given in (("eval.tasks", names), ("eval.per_task", options or ())):
        missing = [name for name in given if name not in local]
        if missing:
            missing = [name for name in missing if name not in _lm_eval_tasks().all_tasks]
        if missing:
            known = {*local, *_lm_eval_tasks().all_tasks}
            near = difflib.get_close_matches(missing[0], sorted(known), n=3)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            where = f" nor in {source.folder}" if source.folder else ""
            raise UserError(f"{key}: {missing[0]!r} is no task of lm-eval{where}{hint}")
    configs = source.all_configs(names)
    for name, config in configs.items():
        if name in local:
            _check_metrics(config)
            if ifeval.checks_instructions(config):
                (task,) = load_tasks([name], source=source, shots=0, seed=0).values()
                ifeval.check_documents(task)
    programs = [name for name, config in configs.items() if code_execution.needs_programs(config)]
    if programs and code is RunCode.NEVER:
        raise UserError(
            f"task {programs[0]} runs programs that the model writes; allow it on the command line "
            "with --allow-code-execution (or eval.allow_code_execution=true), or leave the task out"
        )
    if programs:
        find_isolation(code)


def tasks_fingerprint(names: Sequence[str], *, source: TaskSource) -> str:
    """Return a hash of the tasks: definitions and data of local ones, else lm-eval's version."""
    parts: list[Any] = []
    for name, config in source.configs(names).items():
        if config is None:
            parts.append([name, version("lm_eval")])
        else:
            parts += [config, *(fingerprint(Path(f)) for f in _data_files(config))]
    return fingerprint(parts)


def load_tasks(
    names: Sequence[str], *, source: TaskSource, shots: int, seed: int, pinned: bool = True
) -> dict[str, Task]:
    """Load lm-eval tasks with their data; the name of a group gives all its tasks.

    A task file with `num_fewshot: 0` keeps it if `pinned`, as in lm-eval's `simple_evaluate`; all
    others get `shots` examples, drawn with `seed`.

    Raises:
        UserError: the data of a task cannot be loaded, is empty, or has too few examples.
    """
    tasks: dict[str, Task] = {}
    for name, config in source.configs(names).items():
        try:
            if config is None:
                reach_hub()
                loaded = _lm_eval_tasks().load([name])["tasks"]
            else:
                # A copy, since lm-eval modifies its configs.
                loaded = {name: LocalTask(config=copy.deepcopy(_for_lm_eval(config)))}
        except UserError as error:
            raise UserError(f"task {name}: {error}") from None
        except _BROKEN as error:
            raise UserError(_broken(name, error)) from error
        for task in loaded.values():
            _set_shots(task, shots, seed=seed, pinned=pinned)
        tasks |= loaded
    return tasks


def _for_lm_eval(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config for lm-eval, without metrics if answers are graded here."""
    if code_execution.needs_programs(config) or ifeval.checks_instructions(config):
        bypass = {"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}
        plain = {key: value for key, value in config.items() if key != "unsafe_code"}
        return plain | {"metric_list": [bypass]}
    return config


def _set_shots(task: Task, shots: int, *, seed: int, pinned: bool) -> None:
    if not pinned or task.get_config("num_fewshot") != 0:
        task.set_config(key="num_fewshot", value=shots)
        examples = task.sampler.df if shots else []
        if shots > len(examples):
            raise UserError(
                f"task {task.task_name} has {len(examples)} few-shot examples but {shots} are "
                "requested; lower the shots or name a larger fewshot_split"
            )
    task.set_fewshot_seed(seed=seed)


def _broken(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    # OSError: data that cannot be downloaded, or files that do not exist.
    first = "check the network" if isinstance(error, OSError) else "correct its file"
    return (
        f"task {name} cannot be loaded ({type(error).__name__}: {reason}); {first}, or give its "
        "data as local files through eval.task_dir"
    )


@functools.cache
def _lm_eval_tasks() -> TaskManager:
    log.info("reading lm-eval's index of tasks, a few seconds")
    return TaskManager()


@dataclass(frozen=True)
class _TaskFile:
    path: Path
    config: dict[str, Any]
    root: Path  # eval.task_dir


def _task_files(folder: str | None) -> dict[str, _TaskFile]:
    """Return the task files under `folder` by task name."""
    if folder is None:
        return {}
    place = find_path(folder)
    if place is None or not place.is_dir():
        raise UserError(f"eval.task_dir={folder} is no folder; give one with task files")
    tasks: dict[str, _TaskFile] = {}
    for path in sorted([*place.rglob("*.yaml"), *place.rglob("*.yml")]):
        config = _read_task(path, root=place)
        name = config.get("task")
        if not isinstance(name, str):
            continue  # a base for `include`, or a group
        _check_plain(config, path)
        if name in tasks:
            raise UserError(f"{path}: task {name!r} is defined twice under {folder}; rename one")
        tasks[name] = _TaskFile(path, config, place)
    return tasks


def _check_plain(config: dict[str, Any], path: Path) -> None:
    """Raise if a key names a file elsewhere, or makes lm-eval load code or other files."""
    if not is_plain_name(config["task"]):
        raise UserError(
            f"{path}: task {config['task']!r} cannot be the name of its samples file; use "
            "letters, digits, - and _"
        )
    if "use_prompt" in config:
        raise UserError(f"{path}: use_prompt reads other files; write doc_to_text instead")


def _check_metrics(config: dict[str, Any]) -> None:
    """Raise if lm-eval would download a metric as code (evaluate.load)."""
    for entry in _for_lm_eval(config).get("metric_list") or []:
        metric = entry.get("metric") if isinstance(entry, dict) else None
        if str(metric) not in metric_registry or entry.get("hf_evaluate"):
            raise UserError(
                f"task {config['task']}: metric {metric!r} is not part of lm-eval, and others "
                "are code from the hub; use one such as acc, acc_norm or exact_match"
            )


def _read_task(path: Path, *, root: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a task file and of the files that it includes, all under `root`."""
    try:
        with path.open("rb") as file:
            text = read_yaml_text(file)
        with constructor_errors():
            config: Any = yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(
            f"{path}:{line}: {error.problem}; task files are plain data here, so remove the tag"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a task file has keys and values, such as `task: name`")
    include = config.pop("include", None)
    for base in include if isinstance(include, list) else [include] * (include is not None):
        parent = path.parent / str(base)
        if not parent.is_file() or not is_inside(parent, root):
            raise UserError(f"{path}: include {base} does not exist; name a file next to this one")
        if parent.resolve() in (path.resolve(), *above):
            raise UserError(f"{path}: include {base} includes itself; remove it")
        config = _read_task(parent, root=root, above=(path.resolve(), *above)) | config
    keys: dict[str, Any] = config
    return keys


def _with_absolute_data(file: _TaskFile, data: str | None) -> dict[str, Any]:
    """Return the config with absolute paths of `data_files` and files to `join`."""
    kwargs = file.config.get("dataset_kwargs") or {}
    if "data_files" not in kwargs:
        return file.config

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item) for item in value]
        if "://" in str(value):
            return _checked_url(str(value), file)
        return _find_data(str(value), file, data)

    joins = {
        field: how | {"file": absolute(how["file"])}
        for field, how in (kwargs.get("join") or {}).items()
    }
    found = {"data_files": absolute(kwargs["data_files"])} | ({"join": joins} if joins else {})
    return file.config | {"dataset_kwargs": kwargs | found}


def _checked_url(address: str, file: _TaskFile) -> str:
    """Return a remote address; others, such as file://, would bypass the data folder."""
    if not address.startswith(REMOTE) or mask_secrets(address) != address:
        raise UserError(
            f"{file.path}: data file {mask_secrets(address)} is no {' or '.join(REMOTE)} address "
            "without a password; download it, and name the file"
        )
    return address


def _find_data(name: str, file: _TaskFile, data: str | None) -> str:
    """Return the path of a data file: in eval.data_dir, else relative to the task file."""
    if data is None:
        # Also next to the task folder: tasks/x.yaml may name ../data/x.jsonl.
        inside, places = file.root.resolve().parent, [file.path.parent / name]
        rule = "data_files are relative to the task file, or in the folder eval.data_dir="
    else:
        inside = Path(data).expanduser()
        if not inside.is_dir():
            raise UserError(f"eval.data_dir={data} is no folder; name the folder of {name}")
        places = [inside / name, *sorted(inside.glob(f"*/{glob.escape(name.lstrip('/'))}"))]
        rule = f"put it into eval.data_dir={data} or a folder in there, or leave the task out"
    for place in places:
        # Links inside eval.data_dir are allowed, since its owner created them.
        real = place.resolve() if data is None else Path(os.path.abspath(place))
        if not real.is_relative_to(os.path.abspath(inside)):
            raise UserError(
                f"{file.path}: data file {name} is outside {inside}; set eval.data_dir= to its "
                "folder"
            )
        if place.is_file():
            return str(place.resolve())
    raise UserError(f"{file.path}: data file {name} does not exist; {rule}")


def _data_files(config: dict[str, Any]) -> Iterator[str]:
    """Yield the local data files of a config from `_with_absolute_data`."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from walk(item)
        elif value is not None and "://" not in str(value):
            yield str(value)

    kwargs = config.get("dataset_kwargs") or {}
    yield from walk(kwargs.get("data_files"))
    yield from (how["file"] for how in (kwargs.get("join") or {}).values())
