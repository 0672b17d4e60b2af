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

# Known, harmless, and not the user's to mend; each with the place it comes from.
_QUIET = (
    "`is_gradient_checkpointing` is deprecated",  # peft 0.21 with transformers 5.23
)


def start_logging() -> None:
    """Our own lines plain on stderr, upstream's from warnings on, one process speaking; then the
    processes of this start meet (`sft.distributed.sharding.join_processes`)."""
    first = os.environ.get("RANK", "0") == "0"
    handler = logging.StreamHandler()
    handler.setFormatter(LogLines("%(message)s"))
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, handlers=[handler])
    for name in ("datasets", "transformers", "accelerate", "lm_eval", "httpx2", "filelock", "trl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for words in _QUIET:
        warnings.filterwarnings("ignore", message=words)
    join_processes()


class LogLines(logging.Formatter):
    """Each record is one line of the log, or has its further lines indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return in_one_piece(super().formatMessage(record))


def show(table: Any, *, errors: bool = True) -> None:
    """Print a table with names of files and kinds unchanged.

    Args:
        errors: to stderr, where the log is; otherwise to stdout.
    """
    if PartialState().is_main_process:
        SafeConsole(errors=errors).show(table)


def print_summary(table: Any, *, folder: Path, model: str | None) -> None:
    """The table, where the report is, and how to chat with the model, if there is one.

    Args:
        table: absent where the run was finished already, of which a line tells.
    """
    if not PartialState().is_main_process:
        return
    report = folder / "report.html"
    if table is None:
        print(f"finished already, nothing was left to do; the report is {report}")
        return
    SafeConsole().show(table)
    # Plain lines, whole: what is copied from them is a path or a command.
    print(f"report  {report}")
    if model is None:
        return
    print(f"model   {model}")
    if not is_adapter(model):
        print(*chat_commands(model), sep="\n")
    elif (run := run_of(model)) is not None:
        print(f"chat    python recipes/export.py {shlex.quote(str(run))} --to DIR")
        print("        merges the adapter and prints the commands to chat with it")
    else:
        print(f"chat    {model}/README.md shows how to load the adapter with peft")


def run_of(model: str) -> Path | None:
    """The directory of the training run that a stage's model lies in; None for other models."""
    run = Path(model).parent.parent
    return run if (run / "preset.yaml").is_file() and Path(model).name == "model" else None


def chat_commands(model: str) -> list[str]:
    """Lines with the commands that serve a whole model and chat with it."""
    return [
        "chat    pip install 'transformers[serving]'; transformers serve",
        f"        and in another terminal: transformers chat {shlex.quote(model)}",
    ]
