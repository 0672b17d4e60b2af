"""Fixtures, built in-process and offline: a byte-level tokenizer and a random two-layer Llama."""

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from files import ROOT
from made_up_tasks import write_tasks
from tiny_models import make_tiny_model, make_tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Child processes inherit signals that nohup or a background job ignores; tests expect the defaults.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)  # threads slow tiny models down


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real public data, or skip with the reason."""
    folder = Path(os.environ.get("TRUING_REAL_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TRUING_REAL_DATA")
    return folder


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer()


@pytest.fixture
def task_dir(tmp_path) -> Path:
    """Write two tasks of eight documents in four passages."""
    return write_tasks(tmp_path)


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    return make_tiny_model()


@pytest.fixture
def mark(tmp_path):
    """What a hostile file would make if it were run; it is not there at the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "what a hostile file holds was run"
