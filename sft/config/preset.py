"""Load a preset: one YAML file plus dotted overrides, typed, with all mistakes reported at once.

Inside `sft_all`, `sft_dialogue` and `dpo` the keys are TRL's own (`SFTConfig`, `DPOConfig`),
unrenamed, next to the few of ours in `sft.config.sections`.
"""

# Not pydantic: tried with 2.14, it left 48 of 62 lines of `_coerce` (import: 0.14 s more), since
# strict mode takes no mapping for a section, and its errors have to be turned into our sentences.

import dataclasses
import difflib
import errno
import itertools
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sft.config.restricted_keys import COMMAND_LINE_ONLY, DECIDED_BY, WITHOUT_EFFECT
from sft.config.safe_yaml import constructor_errors, read_yaml_text
from sft.config.secrets import mask_secrets, nested_texts, secret_places
from sft.config.sections import DpoStage, Preset, SftStage, Source
from sft.config.validation import NO_PREFERENCE, NO_SOURCE, check_rules
from sft.errors import UserError

LONGEST = 2_000  # characters of a problem that are shown; it quotes a value of any length
CHECKOUT = Path(__file__).resolve().parents[2]


def load_preset(
    path: str | Path, *, overrides: Sequence[str] = (), recorded: bool = False
) -> Preset:
    """Read a preset file and apply `section.key=value` overrides (values are YAML).

    The keys of `COMMAND_LINE_ONLY` are accepted in overrides, and in the record of a finished run
    (`recorded`), whose caller asks the user before it acts on them. A `UserError` lists all
    mistakes, unknown keys with their nearest valid name.
    """
    given = _read_yaml(Path(path))
    problems = [] if recorded else list(_reserved_keys(given, overrides))
    for override in overrides:
        problems += _apply_override(given, override)
    problems += [
        f"{place} holds a password or a key, which would be written into the run; remove it (the "
        "Hub's token is read from $HF_TOKEN)"
        for place in secret_places(given)
    ]
    # OmegaConf would expand `${...}` to an environment variable or, nested, to gigabytes.
    problems += [
        f"{place} holds ${{...}}; write the value out"
        for place, text in nested_texts(given)
        if "${" in text
    ]
    # Mistakes are collected, so that a user corrects all of them after one start.
    preset = Preset()
    sections = {field.name for field in dataclasses.fields(Preset)}
    for name, content in given.items():
        if name not in sections:
            problems.append(_unknown(name, sections))
        elif content is not None:
            problems += _fill(getattr(preset, name), content, where=name)
    # A list that was rejected stays empty, which is not a second mistake.
    rejected = " ".join(problems)
    rejects_pairs = "data.preference" in rejected or "pairs.prompts" in rejected
    follow_ups = {NO_SOURCE: "data.sft" in rejected, NO_PREFERENCE: rejects_pairs}
    problems += [rule for rule in check_rules(preset) if not follow_ups.get(rule)]
    if problems:
        source = f"{path} with its overrides" if overrides else str(path)
        # A problem quotes its value, which may be a key that was pasted into the wrong place.
        shown = map(mask_secrets, problems)
        short = [p if len(p) <= LONGEST else f"{p[:LONGEST]}\u2026" for p in shown]
        raise UserError(f"{mask_secrets(source)}: " + "; ".join(short))
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
            if error.errno != errno.ENAMETOOLONG:  # a chat template given as text, not as a file
                raise
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"did you mean {path.parent / near[0]}" if near else "give the path of a YAML file"
        raise UserError(f"{path}: no such preset file; {hint}")
    try:
        with path.open("rb") as file:
            content = _parse(read_yaml_text(file))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a readable YAML preset: {reason}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: a preset is a mapping of sections, not a {kind}")
    return content


def _parse(text: str) -> Any:
    # OmegaConf's loader is safe, and reads 1e-5 as a number, unlike PyYAML's own. `${...}` stays as
    # written and is refused.
    with constructor_errors():
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)


def _reserved_keys(given: dict[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Find keys in a preset's file that only the command line may set.

    Defaults, and keys that the command line sets as well, are allowed.
    """
    overridden = {override.partition("=")[0] for override in overrides}
    for at, effect in COMMAND_LINE_ONLY.items():
        section, key = at.split(".")
        content = given.get(section)
        value = content.get(key) if isinstance(content, dict) else None
        if value in (None, False) or at in overridden:
            continue
        yield (
            f"{at}={value!r} {effect}, which a preset's file may not ask for; remove it there, and "
            f"give {at}=... on the command line if you want this"
        )


def _apply_override(given: dict[str, Any], override: str) -> list[str]:
    """Set one `section.key=value` in the plain preset; return the problems found."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return [f"override {override!r} is not of the form section.key=value"]
    try:
        value = _parse(f"value: {text}")["value"]
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
        if target.get(part) is None:  # a section that is absent, or present without any key
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
    own = typing.get_type_hints(type(section))
    own.pop("trl", None)
    upstream = upstream_hints(section)
    problems: list[str] = []
    for key, value in content.items():
        at, before = f"{where}.{key}", len(problems)
        if key in own:
            value = _coerce(value, own[key], where=at, problems=problems)
            if len(problems) == before:
                setattr(section, key, value)
        elif key not in upstream:
            problems.append(_unknown(at, {f"{where}.{name}" for name in (*own, *upstream)}))
        elif key in DECIDED_BY:
            problems.append(f"{at} is decided by {DECIDED_BY[key]}; remove it")
        elif key in WITHOUT_EFFECT:
            problems.append(f"{at} has no effect in this chain; remove it")
        else:
            section.trl[key] = _coerce(value, upstream[key], where=at, problems=problems)
    return problems


def upstream_hints(section: Any) -> dict[str, Any]:
    """Return the types of TRL's keys in a stage's section; empty for other sections."""
    if not isinstance(section, SftStage | DpoStage):
        return {}
    import trl  # takes seconds, and only a preset with stages needs it

    config: Any = trl.SFTConfig if isinstance(section, SftStage) else trl.DPOConfig
    return typing.get_type_hints(config)


def _coerce(value: Any, hint: Any, *, where: str, problems: list[str]) -> Any:
    """Fit a YAML value to a type and return it, appending to `problems` what does not fit."""
    options = _union_members(hint)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            nested = typing.cast(Any, option)()
            problems += _fill(nested, value, where=where)
            return nested
        if origin is list:
            item_type = arguments[0] if arguments else Any
            if isinstance(value, str) and (item_type is str or _is_choice(item_type)):
                value = [value]
            if isinstance(value, list):
                return [
                    _coerce(item, item_type, where=f"{where}[{i}]", problems=problems)
                    for i, item in enumerate(value)
                ]
        if origin is dict and isinstance(value, dict):
            key_type, of = arguments or (Any, Any)
            if key_type is str:  # YAML reads 0 and true as a number and a truth value
                value = {str(key): inner for key, inner in value.items()}
            # The code that reads mappings of other values checks them.
            if not (dataclasses.is_dataclass(of) or _is_choice(of)):
                return value
            return {
                key: _coerce(inner, of, where=f"{where}.{key}", problems=problems)
                for key, inner in value.items()
            }
        if _is_choice(option) and value in arguments:
            return value
        if option is float and type(value) in (int, float):  # the only conversion; no bool, no text
            return float(value)
        if option is Any or type(value) is option:
            return value
        if isinstance(option, type) and issubclass(option, str) and isinstance(value, str):
            return value  # upstream's enums of strings check their own members
    problems.append(f"{where}={value!r} is not {describe_type(hint)}")
    return value


def _is_choice(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _union_members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


_NAMES = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def describe_type(hint: Any) -> str:
    """Describe the values that a type accepts, in a preset's terms."""
    options = _union_members(hint)
    if any(map(_is_choice, options)):
        choices = [("true", "false") if o is bool else typing.get_args(o) for o in options]
        return f"one of {', '.join(itertools.chain(*choices))}"
    if len(options) > 1:
        return " or ".join(map(describe_type, options))
    if typing.get_origin(hint) is list:
        return "a list [{path: ...}, ...]" if Source in typing.get_args(hint) else "a list"
    if hint in _NAMES:
        return _NAMES[hint]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _unknown(key: Any, valid: Any) -> str:
    near = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
    return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")
