"""Fixtures built in-process, offline: a byte-level tokenizer and a two-layer random Llama."""

import csv
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import pyarrow
import pyarrow.parquet
import pytest
import torch
from made_up_tasks import write_tasks
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]

# What would bring the suite near its limit of 20 minutes on a slow machine.
long = pytest.mark.skipif(
    not os.environ.get("TRUING_LONG"), reason="takes minutes; TRUING_LONG=1 runs it"
)

# A model of any family, to which each adds what is its own.
FAMILY = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, and children would inherit it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

torch.set_num_threads(1)  # tiny models: threads cost more than they give


def reported_by(script: str, folder: Path, *arguments: str) -> Any:
    """What a script of tests/benchmarks writes with --json, run in a process of its own."""
    report = folder / "report.json"
    done = subprocess.run(
        [sys.executable, ROOT / "tests/benchmarks" / script, "--json", report, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout
    return json.loads(report.read_text())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public data, or a skip with the reason."""
    folder = Path(os.environ.get("TRUING_REAL_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TRUING_REAL_DATA")
    return folder


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer()


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, four special tokens, no BOS, no template."""
    specials = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[2:]})
    return tokenizer


def make_tiny_model(seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A random Llama small enough for every test; `overrides` are LlamaConfig's."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 260,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "initializer_range": 0.2,
            **overrides,
        }
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def task_dir(tmp_path) -> Path:
    """Two tasks of eight documents in four passages, their files relative to the task files."""
    return write_tasks(tmp_path)


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    return make_tiny_model()


KINDS_OF_FILE = ["a.json", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"]


def write_as(path, row):
    """One row in any kind of file; in CSV structure stands as JSON text, as exporters write it."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    elif path.suffix == ".csv":
        cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow({k: "" if row[k] is None else cell for k, cell in cells.items()})
    else:
        text = json.dumps([row] if path.suffix == ".json" else row)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def in_two_processes(script: str, *args: str) -> None:
    """Run a script by two processes that can meet (gloo); each has to end by printing "done"."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, *args],
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for child in children:
        out, err = child.communicate(timeout=240)
        assert out == "done\n", err[-2000:]
