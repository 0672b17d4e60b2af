"""Logging and tables on the main process."""

import logging
import os
import shlex
import warnings
from pathlib import Path
from typing import Any

import datasets
import transformers
from accelerate import PartialState

from sft.distributed.sharding import join_processes
from sft.run.adapters import is_adapter
from sft.run.terminal import SafeConsole, in_one_piece

# Harmless warnings that the user cannot fix, each with its source.
_IGNORED = (
    "`is_gradient_checkpointing` is deprecated",  # peft 0.21 with transformers 5.23
)


def start_logging() -> None:
    """Log to stderr from the main process, upstream's from errors on; then join the processes."""
    first = os.environ.get("RANK", "0") == "0"
    handler = logging.StreamHandler()
    handler.setFormatter(LogLines("%(message)s"))
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, handlers=[handler])
    for name in ("datasets", "transformers", "accelerate", "lm_eval", "httpx2", "filelock", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for words in _IGNORED:
        warnings.filterwarnings("ignore", message=words)
    join_processes()


class LogLines(logging.Formatter):
    """Log records as plain messages, whose further lines are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return in_one_piece(super().formatMessage(record))


def show(table: Any, *, errors: bool = True) -> None:
    """Print a table on the main process, to stderr or, if not `errors`, to stdout."""
    if PartialState().is_main_process:
        SafeConsole(errors=errors).show(table)


def print_summary(table: Any, *, folder: Path, model: str | None) -> None:
    """Print the table (None if the run was finished already), the path of the report and the
    commands to chat with the model."""
    if not PartialState().is_main_process:
        return
    report = folder / "report.html"
    if table is None:
        print(f"finished already, nothing was left to do; the report is {report}")
        return
    SafeConsole().show(table)
    # Printed without wrapping, so that paths and commands can be copied.
    print(f"report  {report}")
    if model is None:
        return
    print(f"model   {model}")
    run = Path(model).parent.parent  # if it is the model of a stage
    if not is_adapter(model):
        print(*chat_commands(model), sep="\n")
    elif (run / "preset.yaml").is_file() and Path(model).name == "model":
        print(f"chat    python recipes/export.py {shlex.quote(str(run))} --to DIR")
        print("        merges the adapter and prints the commands to chat with it")
    else:
        print(f"chat    {model}/README.md shows how to load the adapter with peft")


def chat_commands(model: str) -> list[str]:
    """Return lines with the commands that serve a full model and chat with it."""
    return [
        "chat    pip install 'transformers[serving]'; transformers serve",
        f"        and in another terminal: transformers chat {shlex.quote(model)}",
    ]
