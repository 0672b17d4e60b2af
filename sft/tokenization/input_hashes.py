"""Hashes the inputs that a run reads besides its preset, so that an error names a change."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import stop_ids
from sft.chat_template.template_date import date_of, uses_date
from sft.config.preset import find_path
from sft.config.sections import Preset, Source
from sft.data.readers import existing_file
from sft.run.adapters import CONFIG, adapter_base, is_adapter, portable_hash
from sft.run.fingerprint import fingerprint
from sft.tokenization.tokenize import ROWS_AT_ONCE

# The files that weights, end-of-turn ids and custom code are read from.
READ = ("*.safetensors", "*.index.json", "config.json", "generation_config.json", CONFIG, "**/*.py")
# The files that the first version hashed (`sft.run.earlier_versions.HASH_RULES`).
READ_BEFORE = ("*.safetensors", "*.index.json", "config.json", CONFIG, "*.py")


def run_inputs(
    preset: Preset,
    *,
    base: str,
    tokenizer: PreTrainedTokenizerBase,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return hashes by name: base weights, tokenizer, template, and every file of the preset.

    `base` is a local directory or Hub id; `more` are further hashes, such as those of benchmarks.
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
    """Return those hashes of `run_inputs` that runs of the first version have otherwise."""
    return {_weights_of(base): weights_fingerprint(base, patterns=READ_BEFORE)}


def _weights_of(base: str) -> str:
    return f"the weights of {base}"


def weights_fingerprint(path: str, *, patterns: Sequence[str] = READ) -> str:
    """Return the hash of a local model's files that match `patterns`; of a Hub id the id."""
    folder = Path(path)
    if not folder.is_dir():
        return f"hub:{path}"
    files = sorted(
        {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    )
    parts = [[file.relative_to(folder).as_posix(), portable_hash(file)] for file in files]
    if is_adapter(path):
        parts.append(["base", weights_fingerprint(adapter_base(path), patterns=patterns)])
    return fingerprint(parts)


def source_fingerprint(source: Source) -> str:
    """Return the hash of a local file, or name, split and revision of a Hub dataset."""
    path = find_path(source.path)
    if path is None:
        name = f":name={source.name}" if source.name else ""
        revision = f"@{source.revision}" if source.revision else ""
        return f"hub:{source.path}{revision}:{source.split}{name}"
    return fingerprint(existing_file(source.path, path))


def rows_fingerprint(rows: Dataset) -> str:
    """Return the hash of token rows, independent of origin, chunks and storage."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        for name, column in zip(table.column_names, table.columns, strict=True):
            if name == "origin":
                continue
            digest.update(name.encode())
            for values in (pc.list_value_length(column), pc.list_flatten(column)):
                digest.update(values.to_numpy().astype(np.int64).tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hash of vocabulary, special tokens, chat template and its date, if any."""
    core = tokenizer.backend_tokenizer.to_str()
    day = [date_of(tokenizer)] if uses_date(tokenizer) else []
    return fingerprint([core, tokenizer.chat_template, stop_ids(tokenizer), *day])
