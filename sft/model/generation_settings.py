"""Generation settings of a model, made such that transformers saves them again.

transformers loads a `generation_config.json` whose settings contradict each other with a warning,
and refuses to save it once it has changed (`GenerationConfig.save_pretrained`). That of every stage
has: it gets the tokens that end a turn.
"""

import logging
import re
from typing import Any

from transformers import GenerationConfig

from sft.errors import UserError
from sft.model.model_files import is_number, model_file, read_settings

log = logging.getLogger(__name__)

FILE = "generation_config.json"
# What has no effect without `do_sample`.
SAMPLING = frozenset(
    {"temperature", "top_p", "min_p", "top_h", "typical_p", "top_k"}
    | {"epsilon_cutoff", "eta_cutoff"}
)

FLAGS = frozenset(
    {"do_sample", "use_cache", "return_dict_in_generate", "renormalize_logits"}
    | {"remove_invalid_values", "token_healing", "is_assistant", "disable_compile"}
)
LARGEST_ID = 1 << 31  # of a token


def repair_generation_config(model: Any) -> None:
    """Change a model's settings where they could not be saved: `do_sample` is set where settings of
    sampling are, and what has no effect otherwise goes back to its default. A log line says so."""
    settings = model.generation_config
    if settings is None:
        return
    changed = []
    flaws = _flaws(settings)
    if SAMPLING & flaws:
        changed.append(f"do_sample=true added to {', '.join(sorted(SAMPLING & flaws))}")
        settings.do_sample = True
        flaws = _flaws(settings)
    default = GenerationConfig()
    for name in sorted(flaws):
        changed.append(f"{name}={getattr(settings, name)!r} left out")
        setattr(settings, name, getattr(default, name))
    if changed:
        log.info("%s: %s (it could not be saved as it was)", FILE, "; ".join(changed))


def check_generation(path: str, *, given: str) -> None:
    """Refuse a model whose generation settings cannot be read or saved.

    Args:
        path: a directory, or a hub id.
        given: as the user wrote it.

    Raises:
        UserError: the file is damaged, or a setting in it breaks a rule of transformers.
    """
    file = model_file(path, FILE)
    if file is None:
        return
    if reason := _wrong_type(read_settings(file, given=given)):
        raise _unusable(given, reason)
    try:
        _flaws(GenerationConfig.from_pretrained(file.parent))
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise _unusable(given, str(error).split("\n")[0]) from None


def _unusable(given: str, reason: str) -> UserError:
    return UserError(
        f"model.name_or_path={given}: {FILE} cannot be used ({reason[:200]}); correct it, or "
        "remove it to have the defaults"
    )


def _wrong_type(settings: dict[str, Any]) -> str:
    """Which setting is of another type than the one that is read here, when an answer is written or
    the model is saved; upstream checks the values of others, not their types."""
    for name, value in settings.items():
        if value is None:
            continue
        shown = f"{name}={str(value)[:80]!r}"
        if (name in FLAGS or name.startswith("output_")) and not isinstance(value, bool):
            return f"{shown} is neither true nor false"
        ids = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and not all(
            is_number(i, int) and abs(i) < LARGEST_ID for i in ids
        ):
            return f"{shown} is no token id or list of them"
    return ""


def _flaws(settings: GenerationConfig) -> set[str]:
    """The settings that have no effect with the others.

    Raises:
        ValueError: a setting breaks a rule by itself.
    """
    try:
        settings.validate(strict=True)
    except ValueError as error:
        if found := set(re.findall(r"^- `(\w+)`: ", str(error), re.MULTILINE)):
            return found
        raise
    return set()
