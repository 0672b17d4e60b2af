"""Presets: one YAML file plus dotted overrides becomes typed sections, or all its mistakes at once.

Inside `sft_all`, `sft_dialogue` and `dpo` the keys are trl's own (`SFTConfig`, `DPOConfig`),
unrenamed; beside them stand the few of ours that `SftStage` and `DpoStage` name.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

CHECKOUT = Path(__file__).resolve().parents[1]


class UserError(ValueError):
    """A mistake that the user can mend: one sentence with the value, the rule and the remedy.

    Commands print it without a traceback and exit with code 2.
    """


@dataclass
class RunSection:
    dir: str = "runs/quickstart"
    seed: int = 0


@dataclass
class ModelSection:
    name_or_path: str = ""
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    attn_implementation: str = "auto"  # auto, sdpa, eager
    chat_template: str | None = None  # file or template text; absent: the tokenizer's, else ours
    trust_remote_code: bool = False


@dataclass
class LoraSection:
    r: int = 0  # 0: full fine-tuning
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: Any = "all-linear"


@dataclass
class Source:
    """Where rows come from: a local file or a hub id, and how to read it."""

    path: str = ""
    kind: str | None = None  # math, code, dialogue, safety, ...; absent: the row's own `kind`
    weight: float = 1.0  # share of the rows taken, or times that they are repeated
    columns: dict[str, str] = field(default_factory=dict)
    split: str = "train"


@dataclass
class DataSection:
    sft: list[Source] = field(default_factory=list)
    preference: list[Source] = field(default_factory=list)
    on_error: str = "stop"  # stop, drop


def _sft_defaults() -> dict[str, Any]:
    return {
        "learning_rate": 1e-5,  # the paper's, for 7B
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "cosine",
        "max_length": 1024,
        "activation_checkpointing": False,
        "save_steps": 0.25,  # a share of all steps
        "save_total_limit": 2,
        "logging_steps": 1.0,
    }


def _dpo_defaults() -> dict[str, Any]:
    # The paper's: one epoch at 5e-6, warm-up and cosine. Its beta is not stated; 0.1 is trl's.
    ours = {"learning_rate": 5e-6, "num_train_epochs": 1.0, "warmup_steps": 0.1, "beta": 0.1}
    return _sft_defaults() | ours | {"loss_type": ["sigmoid"]}


@dataclass
class SftStage:
    """A stage of supervised fine-tuning. `kinds` empty means every row."""

    enabled: bool = True
    kinds: list[str] = field(default_factory=list)
    train_batch_size: int = 0  # chats per optimiser step over all devices; 0: upstream's product
    packing: bool = True  # several chats in a row; a matter of layout, not of what a step sees
    trl: dict[str, Any] = field(default_factory=_sft_defaults)  # SFTConfig, by its own names


@dataclass
class PairsSection:
    prompts: list[Source] = field(default_factory=list)
    samples_per_prompt: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 400
    min_score_gap: float = 0.5  # verdicts closer than this make no pair


@dataclass
class DpoStage:
    """The preference stage; `beta`, `loss_type` and the rest are DPOConfig's."""

    enabled: bool = True
    train_batch_size: int = 0
    packing: bool = True
    trl: dict[str, Any] = field(default_factory=_dpo_defaults)


@dataclass
class RepetitionSection:
    prompts: str | None = None  # rows of {"messages": [...]}; absent: no repetition measure
    cap: int = 400  # tokens; a response that loops is followed to twice this


@dataclass
class EvalSection:
    tasks: list[str] = field(default_factory=list)
    task_dir: str | None = None
    limit: int | None = None
    base_shots: int = 5
    chat_shots: int = 0
    repetition: RepetitionSection = field(default_factory=RepetitionSection)


@dataclass
class Preset:
    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    sft_all: SftStage = field(default_factory=SftStage)
    sft_dialogue: SftStage = field(default_factory=lambda: SftStage(kinds=["dialogue"]))
    pairs: PairsSection = field(default_factory=PairsSection)
    dpo: DpoStage = field(default_factory=DpoStage)
    eval: EvalSection = field(default_factory=EvalSection)


CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.attn_implementation": ("auto", "sdpa", "eager"),
    "data.on_error": ("stop", "drop"),
}

# Upstream keys that the chain decides itself, with the place where they are decided instead.
DECIDED = {
    "output_dir": "run.dir",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "use_cpu": "the launcher (accelerate launch --cpu)",
    "model_init_kwargs": "the model section",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template_path": "model.chat_template",
    "eos_token": "the tokenizer and its chat template",
    "pad_token": "the tokenizer",
    "disable_tqdm": "the recipe",
    "logging_first_step": "the report, which needs the first loss",
    "remove_unused_columns": "the data section",
    "dataloader_pin_memory": "the device",
    "include_num_input_tokens_seen": "the report, which counts tokens",
    "resume_from_checkpoint": "starting the same command again",
    "save_strategy": "save_steps",
    **dict.fromkeys(
        ("assistant_only_loss", "completion_only_loss"), "the chain: only answers are trained"
    ),
    **dict.fromkeys(
        ("dataset_kwargs", "dataset_text_field", "dataset_num_proc"), "the data section"
    ),
    **dict.fromkeys(("padding_free", "packing_strategy", "pad_to_multiple_of"), "packing"),
    **dict.fromkeys(
        ("precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model"),
        "the chain: the reference is the stage's own start, computed once",
    ),
}

# Upstream keys that our loss and our rows would pass over in silence.
WITHOUT_EFFECT = frozenset(
    {
        "truncation_mode",
        "shuffle_dataset",
        "eval_packing",
        "label_smoothing_factor",
        "router_aux_loss_coef",
        "use_liger_kernel",
        "liger_kernel_config",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "use_weighting",
        "discopop_tau",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "disable_dropout",
        "eval_strategy",
        "eval_steps",
        "do_eval",
        "load_best_model_at_end",
        "metric_for_best_model",
        "include_for_metrics",
    }
)


def load_preset(path: str | Path, *, overrides: Sequence[str] = ()) -> Preset:
    """Read a preset file and apply `section.key=value` overrides (values are YAML).

    Raises:
        UserError: the file is missing or no YAML mapping; or any key or value is wrong, all of
            them in one message, unknown keys with their nearest valid names.
    """
    given = _read_yaml(Path(path))
    problems: list[str] = []
    for override in overrides:
        problems += _apply_override(given, override)
    preset = Preset()
    for name, content in given.items():
        sections = {f.name: f for f in dataclasses.fields(Preset)}
        if name not in sections:
            problems.append(_unknown(name, sections))
        elif content is not None:
            problems += _fill(getattr(preset, name), content, where=name)
    problems += _check(preset)
    if problems:
        source = f"{path} with its overrides" if overrides else str(path)
        raise UserError(f"{source}: " + "; ".join(problems))
    return preset


def resolved(preset: Preset) -> dict[str, Any]:
    """The preset as plain data with every default of ours written out; stage keys are flat."""
    plain = dataclasses.asdict(preset)
    for stage in ("sft_all", "sft_dialogue", "dpo"):
        plain[stage] |= plain[stage].pop("trl")
    return plain


def find_path(path: str) -> Path | None:
    """A preset's relative path: from the current directory, else from the checkout, else None."""
    for candidate in (Path(path).expanduser(), CHECKOUT / path):
        if candidate.exists():
            return candidate
    return None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")])
        hint = f"did you mean {path.parent / near[0]}" if near else "give the path of a YAML file"
        raise UserError(f"{path}: no such preset file; {hint}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a readable YAML preset: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: a preset is a mapping of sections, not a {type(content).__name__}"
        )
    return typing.cast(dict[str, Any], content)


def _apply_override(given: dict[str, Any], override: str) -> list[str]:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or len(parts) < 2 or not all(parts):
        return [f"override {override!r} is not of the form section.key=value"]
    try:
        # OmegaConf's loader, because PyYAML's own reads 1e-5 as a string.
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        return [f"override {override!r} is no YAML value: {' '.join(str(error).split())}"]
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
    """Set the fields of a section dataclass from plain data; returns the problems found."""
    if not isinstance(content, dict):
        return [f"{where} is a section of keys, not {content!r}"]
    hints = typing.get_type_hints(type(section))
    own = {f.name for f in dataclasses.fields(section)} - {"trl"}
    upstream = _upstream_hints(section)
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


def _upstream_hints(section: Any) -> dict[str, Any]:
    if isinstance(section, SftStage | DpoStage):
        import trl  # seconds to import, and only a preset with stages needs it

        upstream = trl.SFTConfig if isinstance(section, SftStage) else trl.DPOConfig
        return typing.get_type_hints(upstream)
    return {}


def _coerce(value: Any, hint: Any, *, where: str) -> tuple[Any, list[str]]:
    """Fit a YAML value to a type; ints widen to floats, nothing else is bent."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if value is None and type(None) in options:
        return None, []
    for option in options:
        origin = typing.get_origin(option)
        if dataclasses.is_dataclass(option) and isinstance(value, dict):
            nested = typing.cast(Any, option)()
            return nested, _fill(nested, value, where=where)
        if origin is list and isinstance(value, list):
            items = [
                _coerce(item, typing.get_args(option)[0], where=f"{where}[{i}]")
                for i, item in enumerate(value)
            ]
            return [item for item, _ in items], [p for _, wrong in items for p in wrong]
        if origin is list and list[str] == option and isinstance(value, str):
            return [value], []
        if origin is dict and isinstance(value, dict):
            return value, []
        if option is float and type(value) in (int, float):
            return float(value), []
        if option is Any or (isinstance(option, type) and type(value) is option):
            return value, []
        if isinstance(option, type) and issubclass(option, str) and isinstance(value, str):
            return value, []  # upstream enums of strings check their own members
    return value, [f"{where}={value!r} is not {_name(hint)}"]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _unknown(key: str, valid: Any) -> str:
    near = difflib.get_close_matches(key, list(valid), n=1, cutoff=0.5)
    return f"unknown key {key}" + (f" (did you mean {near[0]}?)" if near else "")


def _check(preset: Preset) -> list[str]:
    """Rules between values that the types do not hold."""
    problems = []
    for where, allowed in CHOICES.items():
        section, key = where.split(".")
        value = getattr(getattr(preset, section), key)
        if value not in allowed:
            problems.append(f"{where}={value!r} is not one of {', '.join(allowed)}")
    if not preset.model.name_or_path:
        problems.append("model.name_or_path is missing; name a local directory or a hub id")
    if not preset.data.sft and (preset.sft_all.enabled or preset.sft_dialogue.enabled):
        problems.append("data.sft is empty; list at least one source of chats")
    if preset.dpo.enabled and not (preset.data.preference or preset.pairs.prompts):
        problems.append(
            "dpo.enabled=true needs data.preference (given pairs) or pairs.prompts (to sample from)"
        )
    if preset.lora.r < 0:
        problems.append(f"lora.r={preset.lora.r} must be 0 (full fine-tuning) or positive")
    for stage in ("sft_all", "sft_dialogue"):
        if getattr(preset, stage).trl.get("loss_type", "nll") != "nll":
            problems.append(f"{stage}.loss_type is nll here; remove it")
    for stage in ("sft_all", "sft_dialogue", "dpo"):
        section = getattr(preset, stage)
        if section.train_batch_size and "gradient_accumulation_steps" in section.trl:
            problems.append(
                f"{stage} sets both train_batch_size and gradient_accumulation_steps; the first "
                "decides the second, remove one"
            )
    return problems
