"""Parse the arguments of the scripts of this folder: counts, a file for the figures, real data.

An error is reported in one sentence before anything is measured.
"""

import os
from argparse import ArgumentTypeError
from pathlib import Path

from sft.config.preset import CHECKOUT
from sft.errors import UserError

DATA = Path(os.environ.get("TRUING_REAL_DATA", CHECKOUT.parent / "shared" / "data"))


def count(text: str) -> int:
    """Parse a positive integer."""
    return _at_least(1, text)


def count_or_none(text: str) -> int:
    """Parse a non-negative integer; 0 means none."""
    return _at_least(0, text)


def figures(text: str) -> Path:
    """Parse a path that is writable now, since it is written hours later."""
    path = Path(text)
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{path.parent} is no folder; make it first")
    if path.exists() and not path.is_file():
        raise ArgumentTypeError(f"{path} is no file; give the path of a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ArgumentTypeError(f"{path} cannot be written; give another path")
    return path


def need_data(*names: str) -> None:
    """Check that the files and folders of the real data that a script reads exist.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if not (DATA / name).exists():
            raise UserError(
                f"{DATA / name} is missing; set TRUING_REAL_DATA to the folder of the real data"
            )


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(f"{text} is no whole number of at least {least}")
    return number
