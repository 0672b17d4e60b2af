"""Load a preset: one YAML file plus dotted overrides, typed, with all mistakes reported at once.

Inside `sft_all`, `sft_dialogue` and `dpo` the keys are TRL's own (`SFTConfig`, `DPOConfig`),
unrenamed, next to the few of ours in `sft.config.sections`. Types are checked here and not by
pydantic: importing it took another 0.8 s on two busy cores (OmegaConf: 1.7 s), and a mistyped
preset is answered in two seconds.
"""

import dataclasses
import difflib
import errno
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.config.restricted_keys import ASKED_BY_THE_USER, DECIDED, WITHOUT_EFFECT
from sft.config.safe_yaml import constructing, plain_text
from sft.config.secrets import hidden, secret_places
from sft.config.sections import DpoStage, Preset, SftStage, Source
from sft.config.validation import NO_PREFERENCE, NO_SOURCE, check_rules
from sft.errors import UserError

LONGEST = 2_000  # characters of one mistake that are shown
CHECKOUT = Path(__file__).resolve().parents[2]


def load_preset(
    path: str | Path, *, overrides: Sequence[str] = (), recorded: bool = False
) -> Preset:
    """Read a preset file and apply `section.key=value` overrides (values are YAML).

    Args:
        overrides: given on the command line. The keys of
            `sft.config.restricted_keys.ASKED_BY_THE_USER` are accepted only here.
        recorded: whether the file is the record of a finished run. It may contain such keys; a
            caller that acts on them asks the user first.

    Raises:
        UserError: if the file is missing or is not a YAML mapping, or if any key or value is
            wrong. One message lists all mistakes, unknown keys with their nearest valid name.
    """
    given = _read_yaml(Path(path))
    problems = [] if recorded else list(_reserved_keys(given, overrides))
    for override in overrides:
        problems += _apply_override(given, override)
    problems += [
        f"{place} holds a password or a key, which would be written into the run; take it out (the "
        "hub's is read from $HF_TOKEN)"
        for place in secret_places(given)
    ]
    problems += [f"{place} holds ${{...}}; write the value out" for place in _references(given)]
    preset = Preset()
    for name, content in given.items():
        sections = {f.name: f for f in dataclasses.fields(Preset)}
        if name not in sections:
            problems.append(_unknown(name, sections))
        elif content is not None:
            problems += _fill(getattr(preset, name), content, where=name)
    # A list that was rejected is left empty, which is not a second mistake.
    follow_ups = {
        rule
        for rule, keys in (
            (NO_SOURCE, ("data.sft",)),
            (NO_PREFERENCE, ("data.preference", "pairs.prompts")),
        )
        if any(key in problem for key in keys for problem in problems)
    }
    problems += [problem for problem in check_rules(preset) if problem not in follow_ups]
    if problems:
        source = f"{path} with its overrides" if overrides else str(path)
        shown = [hidden(p) for p in problems]
        # A problem quotes its value, which may have any length.
        short = [p if len(p) <= LONGEST else f"{p[:LONGEST]}\u2026" for p in shown]
        raise UserError(f"{hidden(source)}: " + "; ".join(short))
    return preset


def resolved(preset: Preset) -> dict[str, Any]:
    """Return the preset as plain data with all our defaults; stage keys are flat."""
    plain = dataclasses.asdict(preset)
    for stage in ("sft_all", "sft_dialogue", "dpo"):
        plain[stage] |= plain[stage].pop("trl")
    return plain


def find_path(path: str) -> Path | None:
    """Resolve a preset's path against the current directory, then the checkout; None if missing."""
    for candidate in (Path(path).expanduser(), CHECKOUT / path):
        try:
            if candidate.exists():
                return candidate
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"did you mean {path.parent / near[0]}" if near else "give the path of a YAML file"
        raise UserError(f"{path}: no such preset file; {hint}")
    try:
        with path.open("rb") as file:
            text = plain_text(file)
        # OmegaConf's loader is a safe one. `${...}` is not resolved, see _references.
        with constructing():
            content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a readable YAML preset: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a preset is a mapping of sections, not a {type(content).__name__}"
        )
    return typing.cast(dict[str, Any], content)


def _reserved_keys(given: dict[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Find keys in a preset's file that only the command line may set.

    Defaults, and keys that the command line sets as well, are allowed.
    """
    overridden = {override.partition("=")[0] for override in overrides}
    for at, effect in ASKED_BY_THE_USER.items():
        section, key = at.split(".")
        content = given.get(section)
        value = content.get(key) if isinstance(content, dict) else None
        if value in (None, False) or at in overridden:
            continue
        yield (
            f"{at}={value!r} {effect}, which a preset's file may not ask for; remove it there, and "
            f"give {at}=... on the command line if you want this"
        )


def _references(value: Any, *, where: str = "") -> Iterator[str]:
    """Find OmegaConf's `${...}`.

    It could write an environment variable into the run's files, or expand a text exponentially.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _references(inner, where=f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _references(inner, where=f"{where}[{i}]")
    elif isinstance(value, str) and "${" in value:
        yield where


def _apply_override(given: dict[str, Any], override: str) -> list[str]:
    """Set one `section.key=value` in the plain preset; return the problems found."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return [f"override {override!r} is not of the form section.key=value"]
    try:
        # OmegaConf's loader, because PyYAML's own reads 1e-5 as a string.
        with constructing():
            value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index,call-overload]
    except UnicodeEncodeError:
        return [
            f"override {override!r} holds bytes that are no text in the locale's encoding "
            f"({sys.getfilesystemencoding()}); write it in UTF-8 under a UTF-8 locale, or put it "
            "into the preset's file"
        ]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        # libyaml's line numbers refer to the string built above, so only the problem is shown.
        fact = getattr(error, "problem", None) or str(error).split("\n")[0]
        return [
            f"override {override!r} is no YAML value ({fact}); write it as a preset's file has it, "
            "in quotes for the shell where it has spaces or brackets"
        ]
    target = given
    for depth, part in enumerate(parts[:-1]):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            return [f"override {override!r}: {'.'.join(parts[: depth + 1])} is not a section"]
    target[parts[-1]] = value
    return []


def _fill(section: Any, content: Any, *, where: str) -> list[str]:
    """Set the fields of a section dataclass from plain data; return the problems found."""
    if not isinstance(content, dict):
        return [f"{where} is a section of keys, not {content!r}"]
    hints = typing.get_type_hints(type(section))
    own = {f.name for f in dataclasses.fields(section)} - {"trl"}
    upstream = upstream_hints(section)
    problems = []
    for key, value in content.items():
        at = f"{where}.{key}"
        if key in own:
            value, wrong = _coerce(value, hints[key], where=at)
            problems += wrong
            if not wrong:
                setattr(section, key, value)
        elif key in DECIDED and key in upstream:
            problems.append(f"{at} is decided by {DECIDED[key]}; remove it")
        elif key in WITHOUT_EFFECT and key in upstream:
            problems.append(f"{at} has no effect in this chain; remove it")
        elif key in upstream:
            value, wrong = _coerce(value, upstream[key], where=at)
            problems += wrong
            section.trl[key] = value
        else:
            problems.append(_unknown(at, {f"{where}.{name}" for name in (*own, *upstream)}))
    return problems


def upstream_hints(section: Any) -> dict[str, Any]:
    """Return the types of TRL's keys in a stage's section; empty for other sections."""
    if isinstance(section, SftStage | DpoStage):
        import trl  # seconds to import, and only a preset with stages needs it

        upstream = trl.SFTConfig if isinstance(section, SftStage) else trl.DPOConfig
        return typing.get_type_hints(upstream)
    return {}


def _coerce(value: Any, hint: Any, *, where: str) -> tuple[Any, list[str]]:
    """Fit a YAML value to a type; return it and the problems found. Only ints widen, to floats."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if value is None and type(None) in options:
        return None, []
    for option in options:
        origin = typing.get_origin(option)
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            nested = typing.cast(Any, option)()
            return nested, _fill(nested, value, where=where)
        if origin is list:
            (of,) = typing.get_args(option) or (Any,)
            one = isinstance(value, str) and (of is str or typing.get_origin(of) is Literal)
            if isinstance(value, list) or one:
                return _coerce_items([value] if one else value, of, where=where)
        if origin is Literal and value in typing.get_args(option):
            return value, []
        if origin is dict and isinstance(value, dict):
            hints = typing.get_args(option) or (Any, Any)
            if hints[0] is str:  # YAML's 0 and true are numbers and truth values
                value = {str(key): inner for key, inner in value.items()}
            return _coerce_values(value, hints[1], where=where)
        if option is float and type(value) in (int, float):
            return float(value), []
        if option is Any or (isinstance(option, type) and type(value) is option):
            return value, []
        if isinstance(option, type) and issubclass(option, str) and isinstance(value, str):
            return value, []  # upstream enums of strings check their own members
    return value, [f"{where}={value!r} is not {describe_type(hint)}"]


def _coerce_items(given: list[Any], hint: Any, *, where: str) -> tuple[list[Any], list[str]]:
    """Fit each item of a list to a type; return the items and the problems found."""
    if typing.get_origin(hint) is Literal:
        return given, [
            f"{where} lists {item!r}, which is not {describe_type(hint)}"
            for item in given
            if item not in typing.get_args(hint)
        ]
    items = [_coerce(item, hint, where=f"{where}[{i}]") for i, item in enumerate(given)]
    return [item for item, _ in items], [problem for _, wrong in items for problem in wrong]


def _coerce_values(
    given: dict[Any, Any], hint: Any, *, where: str
) -> tuple[dict[Any, Any], list[str]]:
    """Fit the values of a mapping if they are sections or choices.

    The code that reads other mappings checks them.
    """
    if not (dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Literal):
        return given, []
    items = {key: _coerce(value, hint, where=f"{where}.{key}") for key, value in given.items()}
    return {key: item for key, (item, _) in items.items()}, [
        problem for _, wrong in items.values() for problem in wrong
    ]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def describe_type(hint: Any) -> str:
    """Describe the values that a type accepts, in a preset's terms."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if any(typing.get_origin(option) is Literal for option in options):
        choices = [
            choice
            for option in options
            for choice in (("true", "false") if option is bool else typing.get_args(option))
        ]
        return f"one of {', '.join(choices)}"
    if _is_union(hint):
        return " or ".join(describe_type(option) for option in options)
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is list:
        (of,) = typing.get_args(hint) or (Any,)
        return "a list [{path: ...}, ...]" if of is Source else "a list"
    if hint in _NAMES:
        return _NAMES[hint]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _unknown(key: Any, valid: Any) -> str:
    near = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
    return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
