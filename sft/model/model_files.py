"""Check the files of an untrusted model before a library reads them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import UnionType
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

# Bytes of a file, far above published models: Gemma 3's tokenizer.json has 33 MB.
LARGEST = {"tokenizer.json": 1 << 28, "model.safetensors.index.json": 1 << 26}
LARGEST_OTHER = 1 << 24
DEEPEST = 50  # levels of lists and objects in a configuration
PATIENCE = 30.0  # seconds of CPU time; every published model is built on "meta" in less
MOST_BUFFERS = 1 << 30  # bytes of tables that are no weights, in addition to the weights' size

# Upper bounds of the integers in config.json, far above published models, by patterns of the name;
# the first pattern that is found applies.
BOUNDS = (
    (re.compile(r"layers?$|^depth$|num_nextn"), 2_000),
    (re.compile(r"experts?$"), 10_000),
    (re.compile(r"heads?(_kv)?$|n_group|topk"), 10_000),
    (re.compile(r"vocab"), 1 << 24),
    (re.compile(r"^sliding_window$|^max_position_embeddings$|^n_positions$"), 1 << 40),
    (re.compile(r"hidden|n_embd|d_model|intermediate|n_inner|ffn|head_dim|_dim$|rank$"), 1 << 22),
)
LARGEST_NUMBER = 1 << 40  # of any other: a window, an id, a seed
# Sizes that must be at least 1.
POSITIVE = re.compile(
    r"(num_hidden_layers|n_layers?|num_attention_heads|num_heads|n_head|num_key_value_heads"
    r"|hidden_size|n_embd|d_model|vocab_size|max_position_embeddings|n_positions|head_dim)"
)
FLAGS = ("return_dict", "output_attentions", "output_hidden_states")
# Exceptions that transformers, peft, tokenizers and torch raise for a malformed file.
LIBRARY_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(RuntimeError, ImportError, MemoryError, AssertionError, StrictDataclassError),
)


def model_file(path: str, name: str) -> Path | None:
    """Return the path of a model's file, downloaded for a Hub id; None if there is none."""
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
    except (OSError, ValueError):  # no such repository: the loading reports the reason
        return None
    return Path(found) if found else None


def check_sizes(folder: str, *, given: str) -> None:
    """Check that no settings file of a local model is larger than that of any known model."""
    for file in sorted(Path(folder).glob("*.json*")):
        most = LARGEST.get(file.name, LARGEST_OTHER)
        if file.is_file() and (size := file.stat().st_size) > most:
            raise UserError(
                f"model.name_or_path={given}: {file.name} has {size / 2**20:,.0f} MB, and such a "
                f"file has at most {most >> 20} MB; fetch the model again, or move the file away"
            )


def read_settings(file: Path, *, given: str) -> dict[str, Any]:
    """Return the content of a JSON settings file.

    Raises:
        UserError: it is damaged, no object, nested too deeply, or holds a lone surrogate, which
            cannot be encoded when the settings are saved.
    """
    at = f"model.name_or_path={given}: {file.name}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise _too_deep(at) from None
    except ValueError as error:
        raise UserError(f"{at} is damaged ({str(error)[:120]}); fetch it again") from None
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
    """Check the types of the fields of config.json and the bounds of its numbers.

    Args:
        path: a directory or a Hub id.
        given: the model as the user wrote it.
    """
    file = model_file(path, "config.json")
    if file is None:
        return  # the loading reports the reason
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
    """Yield (dotted name, number) at any depth; floats only where an integer is expected."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value, where=f"{where}{name}.")
        elif is_number(value):
            expected = POSITIVE.fullmatch(name) or any(p.search(name) for p, _ in BOUNDS)
            if isinstance(value, int) or expected:
                yield f"{where}{name}", value


def is_number(value: Any, kind: type | UnionType = int | float) -> bool:
    """Whether a value read from JSON is a number; booleans, a subclass of int, are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


@contextmanager
def loading(given: str, *, what: str, remedy: str, hub: str | None = None) -> Iterator[None]:
    """Raise libraries' errors on a model's files as UserError: `what (reason); remedy`.

    Errors of the disk pass through. Python code is stopped after `PATIENCE` seconds of CPU time.

    Args:
        given: the model as the user wrote it.
        hub: the Hub id that is loaded from, if any.
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
    """Return the first line of a library's error, with its type where the line needs it."""
    # huggingface_hub's strict dataclasses name the field; their cause holds the reason.
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
    lines = str(cause or error).strip().splitlines() or [""]
    plain = isinstance(error, OSError | StrictDataclassError) or type(error) in (
        Exception,
        ValueError,
    )
    text = lines[0] if plain and lines[0] else f"{type(error).__name__}: {lines[0]}"
    return text[:200].strip().removesuffix(":")


def _check_buffers(model: Any, *, given: str) -> None:
    """Check that a model's buffers (tables of positions, masks) do not fill the memory."""
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
CHILD = Path(__file__).with_name("tokenizer_subprocess.py")
WALL_SECONDS = 300  # generous for a busy machine; the child limits its own CPU time


def try_tokenizer(place: str, *, given: str) -> None:
    """Load and use a tokenizer in a child process; refuse it if a part fails there."""
    # Its parts run in native code, which a hostile file can make crash or loop.
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
    """Return the last part that the child used, and why it failed there ("" if it did not)."""
    # `_`, the file's size and modification time, is part of the cache's key.
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
        parts = (error.stdout or b"").decode(errors="replace").splitlines()
        return (parts or ["it"])[-1], f"it took more than {WALL_SECONDS} s"
    part = (done.stdout.splitlines() or ["it"])[-1]
    if done.returncode == 0:
        return part, ""
    if done.returncode < 0:
        return part, "it took too much memory or time, or crashed"
    lines = [line.strip() for line in done.stderr.strip().splitlines() if line.strip()]
    return part, (lines or ["no reason given"])[-1][:200]


def build_empty(config: Any, *, given: str) -> Any:
    """Build a configuration's model on the meta device; refuse it if that fails or is too large."""
    what = "no model can be built by its config.json"
    remedy = "correct it, or give another model"
    with loading(given, what=what, remedy=remedy):
        model = meta_model(config)
    _check_buffers(model, given=given)
    return model
