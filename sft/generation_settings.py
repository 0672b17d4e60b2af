"""Generation settings of a model, made such that transformers saves them again.

transformers loads a `generation_config.json` whose settings contradict each other with a warning,
and refuses to save it once it has changed (`GenerationConfig.save_pretrained`). That of every stage
has: it gets the tokens that end a turn.
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sft.config import UserError

log = logging.getLogger(__name__)

FILE = "generation_config.json"
# What has no effect without `do_sample`.
SAMPLING = frozenset(
    {"temperature", "top_p", "min_p", "top_h", "typical_p", "top_k"}
    | {"epsilon_cutoff", "eta_cutoff"}
)


def settle_generation(model: Any) -> None:
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
    """Refuse a model directory whose generation settings cannot be read or saved.

    Raises:
        UserError: the file is damaged, or a setting in it breaks a rule of transformers.
    """
    file = Path(path) / FILE
    if not file.is_file():
        return
    try:
        settings = GenerationConfig.from_pretrained(path)
        _flaws(settings)
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        reason = "it is no JSON object" if not _is_object(file) else str(error).split("\n")[0]
        raise UserError(
            f"model.name_or_path={given}: {FILE} cannot be used ({reason[:200]}); correct it, or "
            "remove it to have the defaults"
        ) from None


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


def _is_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False
