"""Files of a model from anyone: bounded before a library reads them, and read without a traceback.

A configuration says how much memory and time a model takes to build, so its numbers are held
against bounds first. A tokenizer's native code can end the process, so it is tried in a child.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import cached_file

from sft.data.json_values import find_lone_surrogate
from sft.errors import UserError
from sft.model.architecture import meta_model
from sft.run.revisions import located
from sft.system.atomic_files import describe_os_error
from sft.system.hub import hub_refusal
from sft.system.time_limit import cpu_seconds

# Bytes of a file, well above those of published models: Gemma 3's tokenizer.json has 33 MB.
LARGEST = {"tokenizer.json": 1 << 28, "model.safetensors.index.json": 1 << 26}
LARGEST_OTHER = 1 << 24
DEEPEST = 50  # levels of lists and objects in a configuration
PATIENCE = 30.0  # seconds of computing in which any model is built without weights
MOST_BUFFERS = 1 << 30  # bytes of tables that are no weights, beyond the size of the weights

# The most that a whole number of config.json may be, by its name, and far above published models'.
# The first pattern that is found in the name counts.
BOUNDS = (
    (re.compile(r"layers?$|^depth$|num_nextn"), 2_000),
    (re.compile(r"experts?$"), 10_000),
    (re.compile(r"heads?(_kv)?$|n_group|topk"), 10_000),
    (re.compile(r"vocab"), 1 << 24),
    (re.compile(r"^sliding_window$|^max_position_embeddings$|^n_positions$"), 1 << 40),
    (re.compile(r"hidden|n_embd|d_model|intermediate|n_inner|ffn|head_dim|_dim$|rank$"), 1 << 22),
)
LARGEST_NUMBER = 1 << 40  # of any other: a window, an id, a seed
# Sizes without which there is no model.
POSITIVE = re.compile(
    r"(num_hidden_layers|n_layers?|num_attention_heads|num_heads|n_head|num_key_value_heads"
    r"|hidden_size|n_embd|d_model|vocab_size|max_position_embeddings|n_positions|head_dim)"
)
FLAGS = ("return_dict", "output_attentions", "output_hidden_states")
# What transformers, peft, tokenizers and torch raise where a file is not what they expect.
LIBRARY_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, ImportError, MemoryError, AssertionError, StrictDataclassError),
)


def model_file(path: str, name: str) -> Path | None:
    """A file of a local directory, or of a hub id, fetched; None where there is none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    place = located(path)
    try:
        found = cached_file(
            place["pretrained_model_name_or_path"],
            name,
            revision=place.get("revision"),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such place: the loading says why
        return None
    return Path(found) if found else None


def check_sizes(folder: str, *, given: str) -> None:
    """Refuse a local model folder in which a file of settings is larger than any is.

    Raises:
        UserError: naming the file and its size.
    """
    for file in sorted(Path(folder).glob("*.json*")):
        most = LARGEST.get(file.name, LARGEST_OTHER)
        if file.is_file() and (size := file.stat().st_size) > most:
            raise UserError(
                f"model.name_or_path={given}: {file.name} has {size / 2**20:,.0f} MB, and such a "
                f"file has at most {most >> 20} MB; fetch the model again, or move the file away"
            )


def read_settings(file: Path, *, given: str) -> dict[str, Any]:
    """The content of a JSON file of settings.

    Raises:
        UserError: it is damaged, no object, nested more than `DEEPEST` levels, or holds half a
            character, which no file takes.
    """
    at = f"model.name_or_path={given}: {file.name}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise _too_deep(at) from None
    except ValueError as error:
        reason = f"is damaged ({str(error)[:120]}); fetch it again"
        raise UserError(f"{at} {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{at} holds no object of settings; fetch it again")
    if _depth(content) > DEEPEST:
        raise _too_deep(at)
    if where := find_lone_surrogate(content):
        raise UserError(f"{at}: {where} holds half a character (a lone surrogate); correct it")
    return content


def _too_deep(at: str) -> UserError:
    return UserError(f"{at} is nested more than {DEEPEST} levels deep; fetch it again")


def _depth(content: Any) -> int:
    level, depth = [content], 0
    while level:
        depth += 1
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
    return depth


def check_config_file(path: str, *, given: str) -> None:
    """Refuse a config.json whose numbers describe a model that cannot be built, or whose answers
    could not be read, by the names of the fields.

    Args:
        path: a directory, or a hub id.
        given: as the user wrote it.

    Raises:
        UserError: naming the field, its value and the bound.
    """
    file = model_file(path, "config.json")
    if file is None:
        return  # the loading says why
    at = f"model.name_or_path={given}: config.json: "
    config = read_settings(file, given=given)
    for field in FLAGS:
        if not isinstance(config.get(field, True), bool):
            shown = f"{field}={str(config[field])[:80]!r}"
            raise UserError(f"{at}{shown} is neither true nor false; correct it")
    if not config.get("return_dict", True):
        raise UserError(
            f"{at}return_dict=false has the model return another type than is read here; remove it"
        )
    kinds = config.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise UserError(f"{at}architectures={str(kinds)[:80]!r} is no list of names; correct it")
    texts = config.get("text_config")
    for part in (config, texts if isinstance(texts, dict) else {}):
        if not isinstance(window := part.get("sliding_window"), int | float | None):
            shown = f"sliding_window={str(window)[:80]!r}"
            raise UserError(f"{at}{shown} is neither a number nor null; correct it")
    for name, value in _numbers(config):
        last = name.rpartition(".")[2]
        if value % 1:
            raise UserError(f"{at}{name}={value} must be a whole number; correct it")
        if POSITIVE.fullmatch(last) and value < 1:
            raise UserError(f"{at}{name}={value} must be at least 1; correct it")
        most = next((n for pattern, n in BOUNDS if pattern.search(last)), LARGEST_NUMBER)
        if abs(value) > most:
            shown = f"{value:,}" if abs(value) < 10**30 else "a number of over 30 digits"
            raise UserError(f"{at}{name}={shown} is beyond any model's ({most:,}); correct it")


def _numbers(content: dict[str, Any], *, where: str = "") -> Iterator[tuple[str, int | float]]:
    """(dotted name, number) of every field that is one, of objects at any depth; floats only where
    a whole number is due."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value, where=f"{where}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            due = POSITIVE.fullmatch(name) or any(p.search(name) for p, _ in BOUNDS)
            if isinstance(value, int) or due:
                yield f"{where}{name}", value


@contextmanager
def loading(given: str, *, what: str, remedy: str, hub: str | None = None) -> Iterator[None]:
    """Give what libraries raise on a model's files one sentence: `what (reason); remedy`.

    Python code that computes for longer than `PATIENCE` is ended.

    Args:
        given: the model, as the user wrote it.
        hub: the hub id that is loaded from, if it is one.

    Raises:
        UserError: for any error of a library but a fault of the disk.
    """
    try:
        with cpu_seconds(PATIENCE):
            yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, LIBRARY_ERRORS) and type(error) is not Exception:
            raise  # `tokenizers` raises plain exceptions
        if isinstance(error, OSError) and describe_os_error(error):
            raise
        if hub and (refusal := hub_refusal(error, name=hub)):
            raise UserError(f"model.name_or_path={given}: {refusal}") from None
        raise UserError(
            f"model.name_or_path={given}: {what} ({reason_of(error)}); {remedy}"
        ) from None


def reason_of(error: BaseException) -> str:
    """The first line of a library's error, with its type where that says more."""
    # Checked configurations name the field first and what is wrong with it as the cause.
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
    lines = str(cause or error).strip().splitlines() or [""]
    plain = isinstance(error, OSError | StrictDataclassError) or type(error) in (
        Exception,
        ValueError,
    )
    told = lines[0] if plain and lines[0] else f"{type(error).__name__}: {lines[0]}"
    return told[:200].strip().removesuffix(":")


def check_buffers(model: Any, *, given: str) -> None:
    """Refuse a model whose tables of positions or masks would fill the memory.

    Args:
        model: built without weights.

    Raises:
        UserError: naming the largest table.
    """
    sizes = {name: b.numel() * b.element_size() for name, b in model.named_buffers()}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if sum(sizes.values()) > MOST_BUFFERS + weights:
        name = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"model.name_or_path={given}: config.json describes tables of "
            f"{sum(sizes.values()) / 2**30:,.1f} GiB that are no weights (such as {name}, "
            f"{list(model.get_buffer(name).shape)}); lower its max_position_embeddings or "
            "n_positions"
        )


TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
CHILD = Path(__file__).with_name("tokenizer_child.py")
WALL_SECONDS = 300  # on a machine that does other things; the child limits its own computing


def try_tokenizer(place: str, *, given: str) -> None:
    """Load and use a tokenizer.json in a child process with limits on memory and time.

    Its normalizer, patterns and tables run in native code, which ends the process or never ends
    where they are made for it.

    Raises:
        UserError: naming the file and the part of it that failed; or its files of settings are
            damaged.
    """
    for name in TOKENIZER_SETTINGS:
        if (settings := model_file(place, name)) is not None:
            read_settings(settings, given=given)
    file = model_file(place, "tokenizer.json")
    if file is None:
        return
    facts = file.stat()
    part, reason = _outcome(str(file.resolve()), facts.st_size, facts.st_mtime_ns)
    if reason:
        raise UserError(
            f"model.name_or_path={given}: tokenizer.json: {part} cannot be used ({reason}); fetch "
            "it again, or give the tokenizer that the model was trained with"
        )


@lru_cache(maxsize=64)
def _outcome(file: str, *_: int) -> tuple[str, str]:
    """The part that the child was at when it ended, and why it ended there; "" where all is well.
    The arguments beside the file are what the answer depends on, for the cache."""
    try:
        done = subprocess.run(
            [sys.executable, str(CHILD), file],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace").splitlines()
        return (said or ["it"])[-1], f"it took more than {WALL_SECONDS} s"
    part = (done.stdout.splitlines() or ["it"])[-1]
    if done.returncode == 0:
        return part, ""
    if done.returncode < 0:
        return part, "it took too much memory or time, or crashed"
    lines = [line.strip() for line in done.stderr.strip().splitlines() if line.strip()]
    return part, (lines or ["no reason given"])[-1][:200]


def build_empty(config: Any, *, given: str) -> Any:
    """The model that a configuration describes, without weights.

    Raises:
        UserError: upstream cannot build it, or its tables would fill the memory.
    """
    what = "no model can be built by its config.json"
    remedy = "correct it, or give another model"
    with loading(given, what=what, remedy=remedy):
        model = meta_model(config)
    check_buffers(model, given=given)
    return model
