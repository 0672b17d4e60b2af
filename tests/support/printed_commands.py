"""Parse every command in the documentation with the parser of its script.

A command is a line of a ```sh block or a code span of Markdown that begins with a program, an
indented line of a module's docstring, or one of a comment at the head of a YAML file or a script.
Nothing is trained or downloaded: `main` of a recipe reads its arguments and its preset and stops
before the work, `main` of a benchmark stops after its parser. Paths are as in the checkout.
"""

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from files import ROOT

from sft.config.preset import load_preset
from sft.config.sections import Preset
from sft.errors import UserError
from sft.planning.devices import named_machine

# Values for placeholders in capitals.
READERS_WORD = {"PRESET": "recipes/presets/own_model.yaml", "SEED": "0", "S": "0", "R": "0"}
READERS_WORD |= {"N": "2", "M": "2", "TOTAL": "16"}
# Programs whose arguments are not parsed, and why.
NOT_OURS = {
    "transformers": "chat and serve need extras that are not installed for the tests",
    "venv": "Python's own (make)",
    "touch": "a mark that make leaves",
    "ruff": "`make check` and the workflow run it",
    "mypy": "`make check` and the workflow run it",
}


@dataclass(frozen=True)
class Command:
    """A documented command: its words as a shell splits them, and its file."""

    words: tuple[str, ...]
    file: str

    def __str__(self) -> str:
        return f"{self.file}: {shlex.join(self.words)}"


def commands(text: str, *, file: str) -> list[Command]:
    """Yield all commands of a text; the file name determines its kind."""
    if file.endswith(".md"):
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in _lines(block)]
        lines += [span for span in code_spans(text) if " " in span and _program(span) in PROGRAMS]
    else:
        if file.endswith(".py"):
            text = ast.get_docstring(ast.parse(text), clean=False) or ""
        else:
            head = re.match(r"(#.*\n)*", text)
            assert head is not None
            text = re.sub(r"^#", "", head.group(), flags=re.MULTILINE)
        lines = [line for line in _lines(text) if re.match(r" {2,}\S", line)]
        lines = [line for line in lines if _program(line) in PROGRAMS]
    return [Command(tuple(words), file) for words in map(_words, lines) if words]


def code_spans(text: str) -> list[str]:
    """Yield the code spans of Markdown prose, each on one line."""
    running = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", running)]


def problem(command: Command) -> str | None:
    """Return the error that a user would see; None if the command would start to work."""
    meant = r"(?<!\w)({})(?!\w)".format("|".join(READERS_WORD))
    return _problem(
        [re.sub(meant, lambda found: READERS_WORD[found.group()], word) for word in command.words]
    )


def known_key(name: str) -> str | None:
    """Do the same for `section.key` or `section.key=value` with a LoRA preset."""
    key, _, value = name.partition("=")
    try:
        load_preset(ROOT / READERS_WORD["PRESET"], overrides=[f"{key}={value or 'null'}"])
    except UserError as error:
        # A key that is named without a value need not accept null.
        return str(error) if value or "unknown key" in str(error) else None
    return None


def options(script: str) -> set[str]:
    """Return the options of a script."""
    stopped = _stopped_behind_the_parser(ROOT / script, ["--help"])
    return set() if isinstance(stopped, str) else set(stopped._option_string_actions)


def _lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _program(line: str) -> str:
    first = next((w for w in line.split() if not re.match(r"[A-Z_]+=", w)), "")
    return first.rpartition("/")[2]


def _words(line: str) -> list[str]:
    """Split a line as a shell does; `[optional]` words are kept, `...` is dropped."""
    line = re.sub(r"(?<=\s)\[([^\[\]{}]*)\]", r"\1", line)
    return [w for w in shlex.split(line, comments=True) if w not in ("...", "section.key=value")]


def _problem(words: Sequence[str]) -> str | None:
    if match := re.match(r"([A-Z_]+)=", words[0]):
        return _read_somewhere(match.group(1)) or _problem(words[1:])
    program, arguments = words[0].rpartition("/")[2], list(words[1:])
    if program not in PROGRAMS:
        return f"{program} is no program that this documentation may name"
    return PROGRAMS[program](arguments)


def _read_somewhere(variable: str) -> str | None:
    files = (p for p in ROOT.rglob("*.py") if ".venv" not in p.parts and p != Path(__file__))
    read = any(f'"{variable}"' in path.read_text(encoding="utf-8") for path in files)
    return None if read else f"nothing reads ${variable}"


def commands_of_make(*targets: str) -> list[Command]:
    """Return the commands that make would run for targets on a fresh clone.

    Raises:
        subprocess.CalledProcessError: there is no such target.
    """
    command = ["make", "--dry-run", "--always-make", *targets]
    # `make test` runs this too: a nested make would print the directory that it enters.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    outside.pop("MFLAGS", None)
    done = subprocess.run(
        command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True
    )
    return [Command(tuple(_words(line)), "Makefile") for line in _lines(done.stdout)]


def _make(arguments: list[str]) -> str | None:
    try:
        found = commands_of_make(*arguments)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    return next((said for command in found if (said := problem(command))), None)


def _accelerate(arguments: list[str]) -> str | None:
    if arguments[:1] != ["launch"]:
        return "accelerate is documented with `launch` alone"
    if not any(argument.endswith(".py") for argument in arguments):  # in the help of any recipe
        arguments.append("recipes/sft_then_dpo.py")
    given = _quietly(lambda: launch_command_parser().parse_args(arguments[1:]))
    if isinstance(given, str):
        return given
    if given.config_file:
        if not (ROOT / given.config_file).is_file():
            return f"{given.config_file} is not there"
        load_config_from_file(str(ROOT / given.config_file))
    return _script(given.training_script, given.training_script_args)


def _python(arguments: list[str]) -> str | None:
    if arguments[:1] != ["-m"]:
        return _script(arguments[0], arguments[1:])
    module, rest = arguments[1], arguments[2:]
    if module in NOT_OURS:
        return None
    if module in PROGRAMS:
        return PROGRAMS[module](rest)
    if module == "eval.report":
        return None if len(rest) in (1, 2) else "eval.report takes a run and perhaps a picture"
    if module == "sft.config.keys":
        return None if rest == [">", "recipes/keys.md"] else "sft.config.keys takes no arguments"
    return f"python -m {module} is not known"


def _script(name: str, arguments: list[str]) -> str | None:
    path = ROOT / name
    if not path.is_file():
        return f"{name} is not there"
    if name in WORK:
        return _stopped_before_work(path, arguments)
    if "argparse" not in path.read_text(encoding="utf-8"):  # cases by name
        return next((f"{name} has no options" for a in arguments if a.startswith("-")), None)
    stopped = _stopped_behind_the_parser(path, arguments)
    return stopped if isinstance(stopped, str) else None


def _stopped_before_work(path: Path, arguments: list[str]) -> str | None:
    """Run `main` of a recipe without its work."""
    module = importlib.import_module(f"recipes.{path.stem}")
    work, accept = WORK[f"recipes/{path.name}"]

    def main() -> None:
        with (
            patch.object(module, work, accept),
            patch.object(module, "push", _nothing, create=True),
        ):
            if code := module.main(arguments):
                raise SystemExit(code)

    return _quietly(main, said_only=True)


class _Parsed(Exception):
    """Raised after a parser has accepted its arguments."""


def _stopped_behind_the_parser(path: Path, arguments: list[str]) -> Any:
    """Run `main` of a script until its arguments are read; return its parser or the error."""
    seen: list[argparse.ArgumentParser] = []
    whole = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *given: Any, **more: Any) -> None:
        seen.append(parser)
        if "--help" not in arguments:
            whole(parser, *given, **more)
        raise _Parsed

    names = ("parse_args", "parse_intermixed_args")
    fakes = [patch.object(argparse.ArgumentParser, name, parse_args) for name in names]
    with contextlib.ExitStack() as stack:
        for fake in (*fakes, patch.object(sys, "argv", [str(path), *arguments])):
            stack.enter_context(fake)
        stack.enter_context(patch.object(sys, "path", [str(path.parent), *sys.path]))
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(path.stem if name.startswith("tests.") else name)
        return _quietly(module.main) or seen[0]


def _quietly(work: Callable[[], Any], *, said_only: bool = False) -> Any:
    """Return the result of `work`, or the sentence of its error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            done = work()
    except SystemExit:
        return (said.getvalue().strip() or "it ended").splitlines()[-1]
    except UserError as error:
        return str(error)
    except _Parsed:
        return None
    return None if said_only else done


def _pytest(arguments: list[str]) -> str | None:
    for argument in arguments:
        file, _, test = argument.partition("::")
        if argument.startswith("tests/"):
            if not (ROOT / file).exists():
                return f"{file} is not there"
            if test and f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8"):
                return f"{file} has no {test}"
        elif argument.startswith("-") and argument not in PYTEST_OPTIONS:
            return f"pytest {argument}: say in PYTEST_OPTIONS where it comes from"
    return None


def _pip(arguments: list[str]) -> str | None:
    if arguments[:1] != ["install"]:
        return "pip is documented with `install` alone"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for what in arguments[1:]:
        if match := re.fullmatch(r"\.(?:\[(\w+)\])?", what):
            extra = match.group(1)
            if extra and not re.search(rf"^{extra} = \[", project, re.MULTILINE):
                return f"this project has no extra {extra}"
        elif what not in ("-e", "--editable", "--quiet"):
            return f"pip install {what} is not known"
    return None


def _sbatch(arguments: list[str]) -> str | None:
    script, *rest = [a for a in arguments if not a.startswith("--")]
    if not (ROOT / script).is_file():
        return f"{script} is not there"
    return _script("recipes/sft_then_dpo.py", rest)


def _nothing(*_: Any, **__: Any) -> None:
    """Replace the work of a recipe."""


def _compare(preset: Preset, _: Any) -> None:
    """Check the tasks: files of the preset, or tasks of the paper's protocol, which
    tests/eval/tasks/test_paper_tasks.py checks, since reading lm-eval's index is slow."""
    protocol = (ROOT / "recipes/paper/protocol.yaml").read_text(encoding="utf-8")
    for task in preset.eval.tasks:
        file = ROOT / (preset.eval.task_dir or "recipes/paper/tasks") / f"{task}.yaml"
        if task not in yaml.safe_load(protocol)["eval"]["tasks"] and not file.is_file():
            raise UserError(f"{task} is no task of recipes/paper")


def _plan(*_: Any, device: str | None, **__: Any) -> None:
    if device is not None:
        named_machine(device)


# The function that `main` of each recipe calls after reading its arguments, and its replacement.
WORK = {
    "recipes/sft_then_dpo.py": ("chain", _nothing),
    "recipes/base_vs_chat.py": ("compare", _compare),
    "recipes/open_ended.py": ("run", _nothing),
    "recipes/export.py": ("export", _nothing),
    "recipes/plan_run.py": ("plan", _plan),
}
PYTEST_OPTIONS = {"--numprocesses", "--maxprocesses", "--dist", "-q", "-m", "-k"}
PROGRAMS: dict[str, Callable[[list[str]], str | None]] = {
    "make": _make,
    "accelerate": _accelerate,
    "python": _python,
    "python3": _python,
    "pytest": _pytest,
    "pip": _pip,
    "sbatch": _sbatch,
    "time": lambda arguments: _problem(arguments),
    **{name: _nothing for name in NOT_OURS},
}


def documents() -> Iterator[Path]:
    """Return every file that documents commands."""
    yield from (p for p in (*ROOT.glob("*.md"), *(ROOT / "recipes").rglob("*.md")))
    yield from (ROOT / "recipes").rglob("*.py")
    yield from (ROOT / "tests" / "benchmarks").glob("*.py")
    yield from (ROOT / "recipes").rglob("*.yaml")
    yield from (ROOT / "recipes").rglob("*.sh")
