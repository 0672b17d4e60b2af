"""Generate model folders and tokenizers with one defect each, reproducible from a seed."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Values that no field of a model expects, and some that only certain fields do.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**9, 10**18, 10**30, 0.5, -0.5, 1e308),
    *("", "x", "auto", "a\nb", "\ud800", "\x1b[2J", "../../x", "pissa_niter_1000000000"),
    *([], [0], [-1], ["x"], [None], [10**9], {}, {"x": 1}, {"rope_type": "x"}, {"": None}),
    *([[[]]], {"rope_type": "yarn", "factor": "x"}, "(a+)+$", ["x"] * 1000, "x" * 10_000),
)
# Fields that a configuration may have but the saved ones lack.
MORE = {
    "config.json": (
        *("rope_scaling", "rope_parameters", "return_dict", "quantization_config", "layer_types"),
        *("sliding_window", "torch_dtype", "dtype", "architectures", "auto_map", "id2label"),
        *("num_labels", "output_attentions", "output_hidden_states", "tie_word_embeddings"),
        *("attn_implementation", "_attn_implementation", "use_cache", "is_decoder", "head_dim"),
        *("is_encoder_decoder", "temperature", "problem_type", "chunk_size_feed_forward"),
        *("text_config", "pruned_heads", "max_position_embeddings", "partial_rotary_factor"),
        *("attention_dropout", "label2id", "tokenizer_class", "base_model_tp_plan", "name_or_path"),
    ),
    "generation_config.json": (
        *("temperature", "do_sample", "eos_token_id", "max_length", "num_beams", "cache_config"),
        *("stop_strings", "bad_words_ids", "watermarking_config", "compile_config", "top_k"),
    ),
    "tokenizer_config.json": (
        *("tokenizer_class", "added_tokens_decoder", "extra_special_tokens", "chat_template"),
        *("model_max_length", "additional_special_tokens", "bos_token", "eos_token", "pad_token"),
        *("unk_token", "padding_side", "auto_map", "add_bos_token", "clean_up_tokenization_spaces"),
        *("legacy", "model_input_names", "split_special_tokens", "processor_class", "backend"),
    ),
    "adapter_config.json": (
        *("base_model_name_or_path", "revision", "peft_type", "task_type", "r", "lora_alpha"),
        *("lora_dropout", "target_modules", "target_parameters", "init_lora_weights", "bias"),
        *("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "use_dora"),
        *("layers_pattern", "layer_replication", "exclude_modules", "trainable_token_indices"),
        *("eva_config", "corda_config", "loftq_config", "megatron_config", "runtime_config"),
        *("fan_in_fan_out", "use_rslora", "lora_bias", "auto_mapping", "inference_mode"),
        *("alora_invocation_tokens", "use_qalora", "arrow_config", "ensure_weight_tying", "x"),
    ),
}


def damage(folder: Path, seed: int) -> str:
    """Damage one file of a model folder; return a description."""
    chance = random.Random(seed)
    named = [name for name in (*MORE, "tokenizer.json") if (folder / name).is_file()]
    kinds: tuple[Callable[[Path, random.Random], str], ...]
    kinds = (*[_field] * 8, *[_inside] * 4, _text, _header)
    change = chance.choice(kinds)
    if change is _header:
        return _header(folder, chance)
    name = chance.choice([n for n in named if n in MORE] if change is _field else named)
    return f"{name}: {change(folder / name, chance)}"


def _field(path: Path, chance: random.Random) -> str:
    """Set one or two top-level fields to unusual values."""
    content = json.loads(path.read_text(encoding="utf-8"))
    changes = {
        key: chance.choice(ODD)
        for key in chance.sample(sorted({*content, *MORE[path.name]}), chance.choice((1, 1, 1, 2)))
    }
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return repr(changes)[:300]


def _inside(path: Path, chance: random.Random) -> str:
    """Replace or remove a value at any depth."""
    content = json.loads(path.read_text(encoding="utf-8"))
    places: list[tuple[Any, Any]] = []
    trail: list[str] = []
    holder = content
    while isinstance(holder, dict | list) and holder:
        key = chance.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        places.append((holder, key))
        trail.append(str(key))
        if chance.random() < 0.3:
            break
        holder = holder[key]
    depth = chance.randrange(len(places))
    holder, key = places[depth]
    where = ".".join(trail[: depth + 1])
    if chance.random() < 0.2:
        del holder[key]
        told = f"no {where}"
    else:
        holder[key] = chance.choice(ODD)
        told = f"{where}={holder[key]!r}"[:300]
    path.write_text(json.dumps(content), encoding="utf-8")
    return told


def _text(path: Path, chance: random.Random) -> str:
    """Damage the text of the file."""
    text = path.read_bytes()
    kinds = {
        "cut off": text[: chance.randrange(len(text))],
        "empty": b"",
        "not UTF-8": b"\xff\xfe" + text,
        "a list": b"[" + text + b"]",
        "null": b"null",
        "deep": b'{"a":' * 100_000,
        "closed deep": b"[" * 100_000 + b"]" * 100_000,
        "a long number": b'{"vocab_size": ' + b"9" * 5000 + b"}",
        "NaN": text.replace(b"0", b"NaN", 1),
    }
    kind = chance.choice(sorted(kinds))
    path.write_bytes(kinds[kind])
    return kind


def _header(folder: Path, chance: random.Random) -> str:
    """Damage the header of the weights."""
    path = next(folder.glob("*.safetensors"))
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    name = chance.choice(sorted(header))
    kinds = {
        "length": 2 ** chance.choice((0, 20, 40, 63)),
        "dtype": {name: {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        "shape": {name: {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        "offsets": {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}},
        "negative": {name: {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        "text": {name: "x"},
        "extra": {"x" * 10_000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        "metadata": {"__metadata__": {"format": 3}},
    }
    kind = chance.choice(sorted(kinds))
    given = kinds[kind]
    if isinstance(given, int):
        path.write_bytes(struct.pack("<Q", given) + content[8:])
    else:
        text = json.dumps(header | given).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return f"header of the weights: {kind}"


def hostile_copy(good: Path, into: Path, seed: int) -> str:
    """Copy a valid model folder with one defect; return a description."""
    shutil.copytree(good, into)
    return damage(into, seed)
