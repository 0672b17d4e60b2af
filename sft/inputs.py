"""What a run reads beside its preset, each with a hash, so that a change is refused by its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sft.adapters import CONFIG, adapter_base, settled_hash
from sft.chat import stop_ids
from sft.config import Preset, Source, find_path
from sft.prepare import source_fingerprint
from sft.run import fingerprint, is_adapter

# Files of a model that its weights and the ends of its answers are read from, and its own code.
READ = ("*.safetensors", "*.index.json", "config.json", "generation_config.json", CONFIG, "**/*.py")
# Those that the hash covered by the first rules (`sft.earlier_runs.HASH_RULES`).
READ_BEFORE = ("*.safetensors", "*.index.json", "config.json", CONFIG, "*.py")


def run_inputs(
    preset: Preset,
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Hashes by name: base weights, tokenizer, template, and every file that the preset lists.

    Args:
        base: local directory or hub id of the model that the run begins with.
        more: hashes that the caller knows how to take, such as that of the benchmarks.
    """
    data, repetition, safety = preset.data, preset.eval.repetition, preset.eval.safety
    listed = {
        "data.sft": data.sft,
        "data.preference": data.preference,
        "data.decontaminate": [Source(path) for path in data.decontaminate],
        "pairs.prompts": preset.pairs.prompts,
        "eval.repetition.prompts": [Source(path) for path in [repetition.prompts] if path],
        "eval.safety.prompts": [Source(path) for path in [safety.prompts] if path],
    }
    files = {
        f"{section} {source.path}": source_fingerprint(source)
        for section, sources in listed.items()
        for source in sources
        if find_path(source.path)
    }
    core = tokenizer.backend_tokenizer.to_str()
    return {
        _weights_of(base): weights_fingerprint(base),
        "the tokenizer": fingerprint([core, stop_ids(tokenizer)]),
        "the chat template": fingerprint(tokenizer.chat_template),
        **files,
        **(more or {}),
    }


def earlier_inputs(base: str) -> dict[str, str]:
    """The hashes of `run_inputs` that were others by the first rules, by those rules."""
    return {_weights_of(base): weights_fingerprint(base, patterns=READ_BEFORE)}


def _weights_of(base: str) -> str:
    return f"the weights of {base}"


def weights_fingerprint(path: str, *, patterns: Sequence[str] = READ) -> str:
    """The hash of a local model's weights and configuration alone; of a hub id the id itself.

    Args:
        patterns: of the files that it covers.
    """
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}"
    files = sorted(
        {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    )
    parts = [[file.relative_to(folder).as_posix(), settled_hash(file)] for file in files]
    if is_adapter(path):
        parts.append(["base", weights_fingerprint(adapter_base(path), patterns=patterns)])
    return fingerprint(parts)
