"""Which files a model is loaded from: safetensors, and adapters of the one kind that we train."""

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from sft.errors import UserError
from sft.model.adapter_settings import MERGE_FIRST, adapter_settings
from sft.model.model_files import read_settings
from sft.run.adapters import BASE, CONFIG, adapter_base, is_adapter
from sft.run.revisions import located
from sft.system.atomic_files import is_inside, is_plain_name, read_json

WHOLE = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_model.safetensors",)
# Fields of an adapter's configuration that a LoRA adapter has; any other has to be as PEFT has it,
# since it may name code (megatron_core), other layers than the base's, or another computation.
LORA_FIELDS = frozenset(
    {
        *("base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode"),
        *("peft_version", "auto_mapping", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out"),
        *("bias", "lora_bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("target_parameters", "trainable_token_indices", "modules_to_save"),
        *("ensure_weight_tying", "init_lora_weights", "eva_config"),
        *("megatron_core", "qalora_group_size"),  # without effect on their own
    }
)
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
POINTER = b"version https://git-lfs"


def check_adapter(path: str, *, given: str) -> None:
    """Refuse an adapter that is no LoRA before peft reads it: of others it may load tokenizers with
    their code. Anything that is no local adapter is left alone.

    Args:
        path: a directory, or a hub id.
        given: as the user wrote it.

    Raises:
        UserError: another kind; a setting is out of bounds; or it is not over a whole model.
    """
    if not is_adapter(path):
        return
    config = read_settings(Path(path) / CONFIG, given=given)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"model.name_or_path={given} is an adapter of kind {str(kind)[:80]!r}, and only LORA "
            "is loaded; merge it into its base with peft first, where peft can, or train a LoRA"
        )
    adapter_settings(path, given=given)
    plain = LoraConfig().to_dict()
    others = [name for name in sorted(plain.keys() - LORA_FIELDS) if config.get(name)]
    if others := [name for name in others if config[name] != plain[name]]:
        raise UserError(
            f"model.name_or_path={given}: its {CONFIG} sets {', '.join(others)}, with which no "
            f"adapter is loaded here; {MERGE_FIRST}"
        )
    recorded = config.get(BASE)
    if not isinstance(recorded, str) or not recorded:
        raise UserError(
            f"model.name_or_path={given}: its {CONFIG} names no {BASE}; write the base's "
            "directory or hub id there"
        )
    try:
        again = is_adapter(base := adapter_base(path))
    except OSError as error:  # as of a name that is too long
        raise UserError(
            f"model.name_or_path={given}: {CONFIG}: {BASE}={recorded[:80]!r} cannot be read "
            f"({error.strerror}); write the base's directory or hub id there"
        ) from None
    if again:
        raise UserError(
            f"model.name_or_path={given} is an adapter over {base}, an adapter again; merge that "
            "into its base first"
        )


def check_weights(path: str, *, given: str) -> None:
    """Refuse a local model, or the base of an adapter, whose weights would be unpickled, lie
    elsewhere or are not whole, by their names and headers.

    A hub id is left to the loading, which asks for safetensors alone.

    Raises:
        UserError: there are no safetensors, or a file of them is missing or cut off; for pickled
            weights with the way to convert them.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    check_entries(path, given=given)
    adapter = is_adapter(path)
    names = ADAPTER if adapter else WHOLE
    if not any((folder / name).is_file() for name in names):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        if not pickled:
            raise UserError(
                f"model.name_or_path={given} holds no {' or '.join(names)}; give a "
                "directory saved by save_pretrained"
            )
        raise UserError(
            f"model.name_or_path={given} holds {pickled[0]}, a pickle, which is not loaded; "
            f"convert it once, then give the new folder: {conversion(path, adapter=adapter)}"
        )
    for file in _files(folder, names, given=given):
        _check_file(file, given=given)
    if adapter:
        base = adapter_base(folder)
        check_weights(base, given=f"{given} (its base, {base})")


def check_entries(path: str, *, given: str) -> None:
    """Refuse a local model's folder with entries that are read from elsewhere. Links of the hub's
    cache of downloads lead to its own blobs, and may.

    Raises:
        UserError: a link leads out of the folder, or an entry is a pipe, a socket or a device.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    for entry in sorted(folder.rglob("*")):
        at = f"model.name_or_path={given}: {entry.relative_to(folder)}"
        if entry.is_symlink() and not (is_inside(entry, folder) or _is_blob(entry, folder)):
            raise UserError(
                f"{at} is a link that leads out of the model's folder; put what it leads to there"
            )
        if not (entry.is_file() or entry.is_dir()):
            raise UserError(f"{at} is neither a file nor a folder; remove it")


def _is_blob(link: Path, folder: Path) -> bool:
    """Whether a link leads to a download in the hub's cache: of the snapshot that the folder is, or
    of any, as `hf download --local-dir` made them once."""
    there = Path(os.path.realpath(link)).parent
    snapshot = folder.resolve().parent
    own = snapshot.name == "snapshots" and there == snapshot.parent / "blobs"
    cache = Path(constants.HF_HUB_CACHE).resolve()
    return own or (there.name == "blobs" and there.is_relative_to(cache))


def _files(folder: Path, names: tuple[str, ...], *, given: str) -> list[Path]:
    """The files that hold the weights: those of the index, where there is one."""
    name = next(name for name in names if (folder / name).is_file())
    if not name.endswith(".json"):
        return [folder / name]
    index = read_json(folder / name)
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(parts, dict):
        raise UserError(
            f"model.name_or_path={given}: {name} is no index of weights; fetch the model again"
        )
    files = sorted(set(map(str, parts.values())))
    for file in files:
        if not (is_plain_name(file) and file.endswith(".safetensors")):
            raise UserError(
                f"model.name_or_path={given}: {name} names {file!r}, and weights are read from "
                "files *.safetensors of the model's own folder alone; move them there and correct "
                "the index"
            )
    return [folder / file for file in files]


def _check_file(file: Path, *, given: str) -> None:
    at = f"model.name_or_path={given}: {file.name}"
    if not file.is_file():
        raise UserError(f"{at} is named by the model's index and is not there; fetch it again")
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{at} is Git's pointer to the weights, not the weights; run `git lfs pull` there"
            )
    try:
        with safe_open(file, "pt"):
            pass  # the header is read, and its length held against the file's
    except SafetensorError as error:
        raise UserError(f"{at} is cut off or damaged ({error}); fetch it again") from None


def read_weights(base: str, *, config: Any, **options: Any) -> Any:
    """A causal LM with its weights, all of them from safetensors.

    Args:
        base: a directory, or a hub id with or without `@revision`.
        config: its configuration by `sft.model.model_config`, so that upstream reads no other.
        options: of upstream's `from_pretrained`.

    Raises:
        UserError: the files lack weights that the configuration asks for, or hold them in another
            shape; upstream would begin these at random.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **located(base),
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, in a sentence
        **options,
    )
    model, found = loaded
    shapes = [(name, tuple(file), tuple(own)) for name, file, own in found["mismatched_keys"]]
    if shapes:
        name, file, own = sorted(shapes)[0]
        raise UserError(
            f"model.name_or_path={base}: its weights are not of its configuration ({name} is "
            f"{file} in the file and {own} by config.json; {len(shapes)} such); give the model "
            "with the config.json that it was saved with"
        )
    if lacking := sorted(found["missing_keys"]):
        raise UserError(
            f"model.name_or_path={base}: its files lack {len(lacking)} of the weights of a "
            f"{type(model).__name__} ({', '.join(lacking[:2])}), which would be random; give a "
            "model saved whole, with its head over the vocabulary"
        )
    return model


def check_values(weights: Iterable[tuple[str, torch.Tensor]], *, given: str) -> None:
    """Refuse weights, by name, that are not finite: everything that is computed by them would not
    be, either.

    Raises:
        UserError: naming the first.
    """
    for name, weight in weights:
        values = weight.detach()
        values = values.to_local() if isinstance(values, DTensor) else values
        if values.dtype not in FLOATING or not values.numel():
            continue
        if not all(bound.isfinite() for bound in torch.aminmax(values)):  # in one pass, NaN too
            raise UserError(
                f"model.name_or_path={given}: its weights {name[:100]!r} hold values that are not "
                "finite (NaN or infinity); fetch them again, or give a checkpoint from before the "
                "training diverged"
            )


def conversion(path: str, *, adapter: bool) -> str:
    """The command that writes a pickled model again as safetensors. torch reads tensors alone there
    (`weights_only`), so that a pickle that holds more than these ends it."""
    new = path.rstrip("/") + "-safetensors"

    def literal(text: str) -> str:  # of Python, in double quotes, which the shell's do not end
        return json.dumps(text, ensure_ascii=False)

    if adapter:
        steps = (
            "import torch, safetensors.torch as s, shutil; "
            f"shutil.copytree({literal(path)}, {literal(new)}, "
            'ignore=shutil.ignore_patterns("*.bin")); '
            f"s.save_file(torch.load({literal(path + '/adapter_model.bin')}, weights_only=True), "
            f"{literal(new + '/adapter_model.safetensors')})"
        )
    else:
        steps = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f'M.from_pretrained({literal(path)}, dtype="auto", use_safetensors=False)'
            f".save_pretrained({literal(new)}); "
            f"T.from_pretrained({literal(path)}).save_pretrained({literal(new)})"
        )
    return shlex.join(["python", "-c", steps])
