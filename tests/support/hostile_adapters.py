"""Generate adapters of every PEFT type and defects of them, reproducible from a seed."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from hostile_models import damage
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model

WEIGHTS = "adapter_model.safetensors"
# LoRA with the options that change its weights, names or sums.
LORA: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "begun at random": {"init_lora_weights": False},
    "eva": {"init_lora_weights": "eva", "eva_config": peft.EvaConfig()},
    "dora and pissa": {"use_dora": True, "init_lora_weights": "pissa"},
    "bias of B": {"lora_bias": True},
    "biases": {"bias": "lora_only"},
    "all layers": {"target_modules": "all-linear"},
    "by expression": {"target_modules": r".*\.layers\.[01]\.self_attn\.(q|o)_proj"},
    "whole module": {"modules_to_save": ["up_proj"]},
    "whole norm": {"modules_to_save": ["input_layernorm"]},
    "tokens": {"trainable_token_indices": [5, 7]},
    "parameter": {"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": r".*layers\.0.*"},
    "ranks": {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 4, "v_proj": 3}},
    "alphas": {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32, "v_proj": 1}},
    "rslora with ranks": {"use_rslora": True, "rank_pattern": {"q_proj": 4}},
}
# PEFT loads these with different logits or not at all, so they must be refused.
REFUSED_LORA: dict[str, dict[str, Any]] = {
    "pissa, approximate": {"init_lora_weights": "pissa_niter_4"},
    "pissa, approximate, no iterations": {"init_lora_weights": "pissa_niter_0"},
    "lora-ga": {"init_lora_weights": "lora_ga", "lora_ga_config": peft.LoraGAConfig()},
    "replicated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "alora": {"alora_invocation_tokens": [5, 6]},
    "mica": {"init_lora_weights": "mica"},
    "tied embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
}
QV = {"target_modules": ["q_proj", "v_proj"]}
OTHERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=9, **QV),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(r=2, **QV),
    "lokr": lambda: peft.LoKrConfig(r=2, **QV),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, **QV),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, **QV),
    "hra": lambda: peft.HRAConfig(r=2, **QV),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=9, **QV),
    "randlora": lambda: peft.RandLoraConfig(r=2, target_modules=["q_proj"]),
    "shira": lambda: peft.ShiraConfig(r=2, **QV),
    "c3a": lambda: peft.C3AConfig(block_size=8, **QV),
    "road": lambda: peft.RoadConfig(group_size=4, **QV),
    "miss": lambda: peft.MissConfig(r=2, **QV),
    "vblora": lambda: peft.VBLoRAConfig(num_vectors=4, vector_length=8, r=2, **QV),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "trainable tokens": lambda: peft.TrainableTokensConfig(token_indices=[5]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=2),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8),
    "llama-adapter": lambda: peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1),
}
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def config_of(kind: str) -> peft.PeftConfig:
    """Return the configuration of an adapter type for a tiny model."""
    if kind in OTHERS:
        config = OTHERS[kind]()
        config.task_type = "CAUSAL_LM"
        return config
    options = {"r": 2, "lora_alpha": 6, **QV, **{**LORA, **REFUSED_LORA}[kind]}
    return peft.LoraConfig(task_type="CAUSAL_LM", **options)


def save_adapter(kind: str, folder: Path, *, base: Path, seed: int = 0) -> torch.Tensor:
    """Save an adapter as PEFT does after training; return its logits for `IDS`."""
    torch.manual_seed(seed)
    model: Any = peft.get_peft_model(make_tiny_model(), config_of(kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        logits = model(input_ids=IDS).logits
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return logits


# Defects of an adapter: (folder, rng) -> a description, and whether it must be refused (True), must
# compute as before (False), or may do either (None).
Wrong = tuple[str, bool | None]


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / WEIGHTS)


def _lacks(folder: Path, chance: random.Random) -> Wrong:
    name = chance.choice(sorted(load_file(folder / WEIGHTS)))
    _weights(folder, lambda weights: weights.pop(name))
    return f"lacks {name}", True


def _half(folder: Path, chance: random.Random) -> Wrong:
    names = sorted(load_file(folder / WEIGHTS))
    gone = chance.sample(names, len(names) // 2 or 1)
    _weights(folder, lambda weights: [weights.pop(name) for name in gone])
    return f"lacks {len(gone)} weights", True


def _more(folder: Path, chance: random.Random) -> Wrong:
    layers = "base_model.model.model.layers"
    name = chance.choice(
        (
            *("x", "", "../../x", "/etc/passwd", "\x1b[2J", "a\nb", "x" * 5000, "__class__"),
            *(f"{layers}.9.self_attn.q_proj.lora_A.weight", f"{layers}.0.mlp.x.lora_B.weight"),
            *("base_model.model.lm_head.lora_A.weight", "q_proj.lora_A.default.weight"),
            *("lora_A", "default", ".default.", "base_model.model.", "transformer.h.0.attn"),
        )
    )
    _weights(folder, lambda weights: weights.update({name: torch.ones(2, 2)}))
    return f"also {name[:60]!r}", True


def _renamed(folder: Path, chance: random.Random) -> Wrong:
    old = chance.choice(sorted(load_file(folder / WEIGHTS)))
    change = {"layers.1": "layers.7", "lora_A": "lora_C", "base_model.": "", "weight": "wait"}
    part = chance.choice([part for part in change if part in old] or [old])
    new = old.replace(part, change.get(part, "x"))
    _weights(folder, lambda weights: weights.update({new: weights.pop(old)}))
    return f"{old} is called {new}", True


def _shape(folder: Path, chance: random.Random) -> Wrong:
    name = chance.choice(sorted(load_file(folder / WEIGHTS)))

    def change(weights: dict[str, torch.Tensor]) -> None:
        w = weights[name]
        shapes = [w[:0], w[..., :-1], torch.cat([w, w]), w[None], w.flatten()[:1], torch.ones(())]
        weights[name] = chance.choice([s for s in shapes if s.shape != w.shape]).clone()

    _weights(folder, change)
    return f"{name} has another shape", True


def _not_finite(folder: Path, chance: random.Random) -> Wrong:
    name = chance.choice(sorted(load_file(folder / WEIGHTS)))
    value = chance.choice((float("nan"), float("inf"), -float("inf")))
    at = chance.random()
    _weights(folder, lambda w: w[name].flatten().__setitem__(int(at * w[name].numel()), value))
    return f"{name} holds {value}", True


def _numbers(folder: Path, chance: random.Random) -> Wrong:
    kind = chance.choice((torch.int8, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn))
    _weights(folder, lambda w: w.update({name: value.to(kind) for name, value in w.items()}))
    return f"weights of {kind}", True


def _double(folder: Path, chance: random.Random) -> Wrong:
    _weights(folder, lambda w: w.update({name: value.double() for name, value in w.items()}))
    return "weights in double precision", False


class Writes:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("unpickled.txt", "w"))


def _pickle(folder: Path, chance: random.Random) -> Wrong:
    name = chance.choice((WEIGHTS, "adapter_model.bin"))
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Writes()))
    return f"{name} is a pickle", True


def _pickle_too(folder: Path, chance: random.Random) -> Wrong:
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Writes()))
    return "pickles besides the weights", False


def _file(folder: Path, chance: random.Random) -> Wrong:
    path = folder / WEIGHTS
    content = path.read_bytes()
    kinds = {
        "empty": b"",
        "cut off": content[: chance.randrange(len(content))],
        "longer": content + b"x",
        "a page": b"<html>404</html>" * 9,
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zeros": b"\0" * 100,
    }
    kind = chance.choice(sorted(kinds))
    path.write_bytes(kinds[kind])
    return f"the file of weights is {kind}", True


def _leads_out(folder: Path, chance: random.Random) -> Wrong:
    path = folder / chance.choice((WEIGHTS, "adapter_config.json"))
    kind = chance.choice(("link", "folder", "no file", "loop"))
    outside = folder.parent / f"outside-{folder.name}"
    path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    return f"{path.name} is a {kind}", True


def _settings(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _base(folder: Path, chance: random.Random) -> Wrong:
    base = chance.choice(
        (
            *(str(folder), str(folder.parent), "/", "", ".", "..", "/etc/passwd", "~", "../x"),
            *("https://me:word@host/x", "a/b/c/d", "org/../x", "x\ny", "\x1b[2J", "x" * 5000),
            *("/dev/zero", "/proc/self", "file:///etc", "org/name@../x", "a\0b", "C:\\x"),
        )
    )
    _settings(folder, {"base_model_name_or_path": base})
    return f"over {base[:60]!r}", True


def _targets(folder: Path, chance: random.Random) -> Wrong:
    changes: dict[str, Any] = chance.choice(
        (
            *({"target_modules": value} for value in (["k_proj"], ["x"], [], "all-linear", ".*")),
            *({"target_modules": value} for value in ("(.*)*x", "(a|a)*$", "[", "", ["", "."])),
            *({"exclude_modules": value} for value in (".*", ["q_proj"], "(.*)*x")),
            *({"modules_to_save": value} for value in (["x"], ["lm_head"], ["*"], ["q_proj"])),
            *({"modules_to_save": value} for value in (["embed_tokens"], ["model"], [""])),
            *({"target_parameters": value} for value in (["x"], ["q_proj.weight"], ["weight"])),
            *({"trainable_token_indices": value} for value in ([0], [-1], [10**9], [0.5], "x")),
            *({"trainable_token_indices": value} for value in ({"x": [1]}, {"q_proj": [1]}, [])),
            *({"layers_to_transform": value} for value in (0, [9], [-1], 10**9, "x", [])),
            *({"layers_to_transform": [0], "layers_pattern": v} for v in ("x", "(.*)*", ["["])),
            *({"rank_pattern": {value: 5}} for value in ("q_proj", "(.*)*x", "[", ".*", "")),
            *({"alpha_pattern": {value: 5}} for value in ("(.*)*x", "(a+)+$", "[")),
            *({"r": value} for value in (1, 7, 1000)),
        )
    )
    _settings(folder, changes)
    return f"{changes}", None


def _another_kind(folder: Path, chance: random.Random) -> Wrong:
    kind = chance.choice((*peft.PeftType, "X", "lora", ["LORA"], None))
    kind = kind.value if isinstance(kind, peft.PeftType) else kind
    _settings(folder, {"peft_type": kind})
    return f"peft_type={kind}", kind != "LORA" or None


def _field(folder: Path, chance: random.Random) -> Wrong:
    return damage(folder, chance.randrange(10**6)), None


WAYS: tuple[Callable[[Path, random.Random], Wrong], ...] = (
    *(_lacks, _half, _more, _more, _renamed, _shape, _not_finite, _numbers, _double, _pickle),
    *(_pickle_too, _file, _file, _leads_out, _base, _base, _another_kind, _field, _field),
    *(_targets, _targets, _targets, _targets),
)


def make_wrong(folder: Path, chance: random.Random) -> Wrong:
    """Add one defect to a saved adapter."""
    return chance.choice(WAYS)(folder, chance)
