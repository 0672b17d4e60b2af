"""Hash every input that a run reads in addition to its preset, so that a refusal names a change."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import stop_ids
from sft.chat_template.template_date import asks_date, date_of
from sft.config.preset import find_path
from sft.config.sections import Preset, Source
from sft.data.readers import existing_file
from sft.run.adapters import CONFIG, adapter_base, is_adapter, portable_hash
from sft.run.fingerprint import fingerprint
from sft.tokenization.tokenize import ROWS_AT_ONCE

# Files of a model that its weights and the ends of its answers are read from, and its own code.
READ = ("*.safetensors", "*.index.json", "config.json", "generation_config.json", CONFIG, "**/*.py")
# Those that the hash covered by the first rules (`sft.run.earlier_versions.HASH_RULES`).
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
    parts = [[file.relative_to(folder).as_posix(), portable_hash(file)] for file in files]
    if is_adapter(path):
        parts.append(["base", weights_fingerprint(adapter_base(path), patterns=patterns)])
    return fingerprint(parts)


def source_fingerprint(source: Source) -> str:
    """The hash of a local file, or the name, split, configuration and revision of a hub dataset.

    Raises:
        UserError: what is there is no file of rows, and might take for ever to hash.
    """
    path = find_path(source.path)
    if path is None:
        name = f":name={source.name}" if source.name else ""
        revision = f"@{source.revision}" if source.revision else ""
        return f"hub:{source.path}{revision}:{source.split}{name}"
    return fingerprint(existing_file(source.path, path))


def rows_fingerprint(rows: Dataset) -> str:
    """The hash of token rows, however they are cut and stored; their origin is no matter."""
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
    """The hash of vocabulary, merges, special tokens and chat template, with the date where the
    template writes one."""
    core = tokenizer.backend_tokenizer.to_str()
    day = [date_of(tokenizer)] if asks_date(tokenizer) else []
    return fingerprint([core, tokenizer.chat_template, stop_ids(tokenizer), *day])
