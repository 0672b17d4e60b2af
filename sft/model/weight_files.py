"""Find, check and read the safetensors files of a model or an adapter."""

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from sft.errors import UserError
from sft.run.adapters import adapter_base, is_adapter
from sft.run.revisions import located
from sft.system.atomic_files import is_inside, is_plain_name, read_json

MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")
ADAPTER_FILE = "adapter_model.safetensors"
# Floating-point types by the names that safetensors gives them.
FLOATING = {
    **{"F64": torch.float64, "F32": torch.float32},
    **{"F16": torch.float16, "BF16": torch.bfloat16},
}
POINTER = b"version https://git-lfs"  # first bytes of a file that Git LFS has not fetched


def check_weights(path: str, *, given: str) -> None:
    """Check that a local model or adapter has complete safetensors files in its own folder.

    Names and headers are read. A Hub id is left to the loading, which takes safetensors only.

    Args:
        given: the model as the user wrote it.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    check_entries(path, given=given)
    adapter = is_adapter(path)
    names = (ADAPTER_FILE,) if adapter else MODEL_FILES
    name = next((name for name in names if (folder / name).is_file()), None)
    at = f"model.name_or_path={given} holds"
    if name is None:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        if not pickled:
            raise UserError(
                f"{at} no {' or '.join(names)}; give a directory saved by save_pretrained"
            )
        raise UserError(
            f"{at} {pickled[0]}, a pickle, which is not loaded; convert it once, then give the new "
            f"folder: {conversion(path, adapter=adapter)}"
        )
    files = _indexed_files(folder / name, given=given) if name.endswith(".json") else [name]
    for file in files:
        _check_file(folder / file, given=given)
    if adapter:
        base = adapter_base(folder)
        check_weights(base, given=f"{given} (its base, {base})")


def check_entries(path: str, *, given: str) -> None:
    """Check a local model's folder for links that lead out of it, pipes, sockets and devices.

    Links of the Hub's cache of downloads lead to its own blobs and are accepted.
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
    """Whether a link leads to a download in the Hub's cache."""
    target = Path(os.path.realpath(link)).parent
    snapshot = folder.resolve().parent
    if snapshot.name == "snapshots" and target == snapshot.parent / "blobs":
        return True
    # Earlier versions of `hf download --local-dir` linked to the cache.
    cache = Path(constants.HF_HUB_CACHE).resolve()
    return target.name == "blobs" and target.is_relative_to(cache)


def _indexed_files(index: Path, *, given: str) -> list[str]:
    """Return the names of the files that an index of weights lists."""
    at = f"model.name_or_path={given}: {index.name}"
    content = read_json(index)
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict):
        raise UserError(f"{at} is no index of weights; fetch the model again")
    files = sorted(set(map(str, parts.values())))
    for file in files:
        if not (is_plain_name(file) and file.endswith(".safetensors")):
            raise UserError(
                f"{at} names {file!r}, and weights are read from files *.safetensors of the "
                "model's own folder alone; move them there and correct the index"
            )
    return files


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
            pass  # opening reads the header and compares its length with the file's
    except SafetensorError as error:
        raise UserError(f"{at} is cut off or damaged ({error}); fetch it again") from None


def read_weights(base: str, *, config: Any, **options: Any) -> Any:
    """Load a causal LM with all its weights from safetensors.

    Args:
        base: a directory, or a Hub id with or without `@revision`.
        config: the configuration (`sft.model.model_config`), so that upstream reads no other.
        options: arguments of upstream's `from_pretrained`.

    Raises:
        UserError: a weight of the configuration is missing or has another shape.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **located(base),
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below; upstream would initialize these at random
        **options,
    )
    model, found = loaded
    shapes = [(name, tuple(file), tuple(own)) for name, file, own in found["mismatched_keys"]]
    if shapes:
        name, file, own = sorted(shapes)[0]
        raise UserError(
            f"model.name_or_path={base}: its weights do not match its configuration ({name} is "
            f"{file} in the file and {own} by config.json; {len(shapes)} such); give the model "
            "with the config.json that it was saved with"
        )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"model.name_or_path={base}: its files lack {len(missing)} of the weights of a "
            f"{type(model).__name__} ({', '.join(missing[:2])}), which would be random; give a "
            "complete model with its LM head"
        )
    return model


def check_values(weights: Iterable[tuple[str, torch.Tensor]], *, given: str) -> None:
    """Check that no weight holds NaN or infinity; the error names the first that does."""
    for name, weight in weights:
        values = weight.detach()
        values = values.to_local() if isinstance(values, DTensor) else values
        if values.dtype not in FLOATING.values() or not values.numel():
            continue
        # One pass over the weights; both bounds are NaN where any value is.
        if not all(bound.isfinite() for bound in torch.aminmax(values)):
            raise UserError(
                f"model.name_or_path={given}: its weights {name[:100]!r} hold values that are not "
                "finite (NaN or infinity); fetch them again, or give a checkpoint from before the "
                "training diverged"
            )


def conversion(path: str, *, adapter: bool) -> str:
    """Return the shell command that converts pickled weights to safetensors.

    torch reads with `weights_only`: a pickle that holds more than tensors raises an error.
    """
    new = path.rstrip("/") + "-safetensors"

    def literal(text: str) -> str:  # a Python string in double quotes: shlex uses single ones
        return json.dumps(text, ensure_ascii=False)

    if adapter:
        steps = (
            "import torch, safetensors.torch as s, shutil; "
            f"shutil.copytree({literal(path)}, {literal(new)}, "
            'ignore=shutil.ignore_patterns("*.bin")); '
            f"s.save_file(torch.load({literal(path + '/adapter_model.bin')}, weights_only=True), "
            f"{literal(new + '/' + ADAPTER_FILE)})"
        )
    else:
        steps = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f'M.from_pretrained({literal(path)}, dtype="auto", use_safetensors=False)'
            f".save_pretrained({literal(new)}); "
            f"T.from_pretrained({literal(path)}).save_pretrained({literal(new)})"
        )
    return shlex.join(["python", "-c", steps])
