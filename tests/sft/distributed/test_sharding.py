"""What a launcher asks for and cannot be: one sentence, before anything is read."""

from dataclasses import fields

import pytest
import torch
from transformers import AutoConfig
from transformers.distributed import DistributedConfig

from sft.distributed.sharding import (
    full_weights,
    join_processes,
    sharded,
    sharding_options,
    sharding_strategy,
    supports_sharded_loading,
)
from sft.errors import UserError


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


def test_the_names_of_transformers_by_which_parts_are_read_are_still_there(tiny_model):
    """Those that `sharding_options` and `prepare_for_accelerate` use."""
    assert tiny_model._is_distributed_loading_by_transformers is False
    tiny_model._is_distributed_loading_by_transformers = True
    assert tiny_model.is_distributed_loading_by_transformers is True
    assert {"fsdp_size", "fsdp_mixed_precision", "fsdp_cpu_offload"} <= {
        field.name for field in fields(DistributedConfig)
    }
    assert supports_sharded_loading(tiny_model.config, processes=64)
    assert not supports_sharded_loading(AutoConfig.for_model("gpt2"), processes=2)


@pytest.mark.parametrize(
    ("kind", "experts", "parts", "known"),
    [
        ("mixtral", {"num_local_experts": 8}, 8, True),
        ("mixtral", {"num_local_experts": 8}, 16, False),
        ("mixtral", {"num_local_experts": 8}, 5, False),  # two each, and none for the fifth
        ("qwen2_moe", {"num_experts": 60}, 32, False),
        ("deepseek_v3", {"n_routed_experts": 256}, 64, True),
    ],
)
def test_a_process_without_experts_reads_no_part(kind, experts, parts, known):
    """transformers would end in "stack expects a non-empty TensorList"."""
    config = AutoConfig.for_model(kind, **experts)
    assert supports_sharded_loading(config, processes=parts) is known


@pytest.mark.parametrize(
    ("compute", "offload", "cast"),
    [(torch.bfloat16, "false", True), (torch.float32, "true", False)],
)
def test_parts_are_gathered_as_the_stage_computes(launched, compute, offload, cast):
    launched(FSDP_OFFLOAD_PARAMS=offload)
    asked = sharding_options(compute=compute, weights=torch.float32)["distributed_config"]
    assert asked.fsdp_mixed_precision is cast
    assert asked.fsdp_cpu_offload is (offload == "true")
    plain = sharding_options(compute=compute, weights=compute)["distributed_config"]
    assert plain.fsdp_mixed_precision is False  # measured: the weights have the dtype already


def test_weights_are_whole_where_no_launcher_spreads_them(launched, tiny_model):
    launched()
    assert (sharded(), sharding_strategy(), full_weights(tiny_model)) == (False, "nothing", None)
    launched(ACCELERATE_USE_FSDP="true")
    assert (sharded(), sharding_strategy()) == (True, "FSDP")
    launched(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="true")
    assert (sharded(), sharding_strategy()) == (True, "DeepSpeed")
