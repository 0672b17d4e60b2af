"""What a launcher asks for and cannot be: one sentence, before anything is read."""

import pytest

from sft.config import UserError
from sft.sharding import join_processes, sharded, spread, whole_weights


@pytest.fixture
def launched(monkeypatch):
    """Set the variables of a launcher, with those of the machine taken away."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", "FSDP_VERSION")
    for name in (*names, "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)

    def launch(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


def test_fsdp_over_one_process_is_refused(launched):
    launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", WORLD_SIZE="1")
    with pytest.raises(UserError, match=r"started one; pass --num_processes 2 or more"):
        join_processes()


def test_the_first_version_of_fsdp_is_refused(launched):
    launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="1", WORLD_SIZE="2")
    with pytest.raises(UserError, match=r"fsdp_version=1; set fsdp_version: 2"):
        join_processes()


def test_deepspeed_that_is_not_installed_is_refused(launched, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    launched(ACCELERATE_USE_DEEPSPEED="true", WORLD_SIZE="2")
    with pytest.raises(UserError, match=r"pip install deepspeed, or .*fsdp2\.yaml"):
        join_processes()


def test_more_processes_than_gpus_are_refused(launched, monkeypatch):
    gpu = type("device", (), {"type": "cuda"})
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: gpu)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    launched(WORLD_SIZE="16", LOCAL_WORLD_SIZE="8")
    with pytest.raises(UserError, match=r"8 processes on this machine, which has 2 GPU.*s 2$"):
        join_processes()


def test_weights_are_whole_where_no_launcher_spreads_them(launched, tiny_model):
    launched()
    assert (sharded(), spread(), whole_weights(tiny_model)) == (False, "nothing", None)
    launched(ACCELERATE_USE_FSDP="true")
    assert (sharded(), spread()) == (True, "FSDP")
    launched(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="true")
    assert (sharded(), spread()) == (True, "DeepSpeed")
