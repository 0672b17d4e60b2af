"""Check and repair a model's generation settings, so that transformers can save them."""

import logging
import re
from typing import Any

from transformers import GenerationConfig

from sft.errors import UserError
from sft.model.model_files import is_number, model_file, read_settings

log = logging.getLogger(__name__)

FILE = "generation_config.json"
# Settings without effect unless `do_sample` is set.
SAMPLING = frozenset(
    {"temperature", "top_p", "min_p", "top_h", "typical_p", "top_k"}
    | {"epsilon_cutoff", "eta_cutoff"}
)

FLAGS = frozenset(
    {"do_sample", "use_cache", "return_dict_in_generate", "renormalize_logits"}
    | {"remove_invalid_values", "token_healing", "is_assistant", "disable_compile"}
)
LARGEST_ID = 1 << 31  # bound of token ids


def repair_generation_config(model: Any) -> None:
    """Set `do_sample` where settings need it, reset other ineffective settings, and log both."""
    # transformers loads contradictory settings with a warning, and refuses to save them after a
    # change (`GenerationConfig.save_pretrained`); every stage adds the tokens that end a turn.
    settings = model.generation_config
    if settings is None:
        return
    changed = []
    unused = _ineffective(settings)
    if SAMPLING & unused:
        changed.append(f"do_sample=true added to {', '.join(sorted(SAMPLING & unused))}")
        settings.do_sample = True
        unused = _ineffective(settings)
    default = GenerationConfig()
    for name in sorted(unused):
        changed.append(f"{name}={getattr(settings, name)!r} left out")
        setattr(settings, name, getattr(default, name))
    if changed:
        log.info("%s: %s (it could not be saved as it was)", FILE, "; ".join(changed))


def check_generation(path: str, *, given: str) -> None:
    """Check that transformers can read and save a model's generation settings.

    Args:
        path: a directory or a Hub id.
        given: the model as the user wrote it.
    """
    file = model_file(path, FILE)
    if file is None:
        return
    if reason := _wrong_type(read_settings(file, given=given)):
        raise _unusable(given, reason)
    try:
        _ineffective(GenerationConfig.from_pretrained(file.parent))
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise _unusable(given, str(error).split("\n")[0]) from None


def _unusable(given: str, reason: str) -> UserError:
    return UserError(
        f"model.name_or_path={given}: {FILE} cannot be used ({reason[:200]}); correct it, or "
        "remove it to have the defaults"
    )


def _wrong_type(settings: dict[str, Any]) -> str:
    """Return what is wrong with the type of a setting, which upstream does not check, or ""."""
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


def _ineffective(settings: GenerationConfig) -> set[str]:
    """Return the settings without effect; raise ValueError for invalid ones."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        if found := set(re.findall(r"^- `(\w+)`: ", str(error), re.MULTILINE)):
            return found
        raise
    return set()
