"""Which files a model is loaded from: safetensors, and adapters of the one kind that we train."""

from pathlib import Path

from sft.adapters import BASE, CONFIG, adapter_base
from sft.config import UserError
from sft.run import is_adapter, read_json

WHOLE = ("model.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_model.safetensors",)


def check_adapter(path: str, *, given: str) -> None:
    """Refuse an adapter that is no LoRA before peft reads it: of others it may load tokenizers with
    their code. Anything that is no local adapter is left alone.

    Args:
        path: a directory, or a hub id.
        given: as the user wrote it.

    Raises:
        UserError: another kind; or it is not over a whole model.
    """
    if not is_adapter(path):
        return
    config = read_json(Path(path) / CONFIG)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UserError(
            f"model.name_or_path={given} is an adapter of kind {kind!r}, and only LORA is loaded; "
            "merge it into its base with peft first"
        )
    recorded = config.get(BASE)
    if not isinstance(recorded, str) or not recorded:
        raise UserError(
            f"model.name_or_path={given}: its {CONFIG} names no {BASE}; write the base's "
            "directory or hub id there"
        )
    if is_adapter(base := adapter_base(path)):
        raise UserError(
            f"model.name_or_path={given} is an adapter over {base}, an adapter again; merge that "
            "into its base first"
        )


def check_weights(path: str, *, given: str) -> None:
    """Refuse a local model, or the base of an adapter, whose weights would be unpickled.

    A hub id is left to the loading, which asks for safetensors alone.

    Raises:
        UserError: there are no safetensors; for pickled weights with the way to convert them.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
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
    if adapter:
        base = adapter_base(folder)
        check_weights(base, given=f"{given} (its base, {base})")


def conversion(path: str, *, adapter: bool) -> str:
    """The command that writes a pickled model again as safetensors. torch reads tensors alone there
    (`weights_only`), so that a pickle that holds more than these ends it."""
    new = path.rstrip("/") + "-safetensors"
    if adapter:
        steps = (
            "import torch, safetensors.torch as s, shutil; "
            f"shutil.copytree({path!r}, {new!r}, ignore=shutil.ignore_patterns('*.bin')); "
            f"s.save_file(torch.load({path + '/adapter_model.bin'!r}, weights_only=True), "
            f"{new + '/adapter_model.safetensors'!r})"
        )
    else:
        steps = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
            f"M.from_pretrained({path!r}, dtype='auto', use_safetensors=False)"
            f".save_pretrained({new!r}); T.from_pretrained({path!r}).save_pretrained({new!r})"
        )
    return f'python -c "{steps}"'
