"""Join the processes that a launcher started, and shard weights over them (FSDP2, ZeRO-3).

Under FSDP2 each process loads its shard of a model that is fully trained. An adapter's base, and
under ZeRO-3 every model, is loaded in full before it is sharded. A model is measured unsharded,
unless no device can hold it (`sft.distributed.fsdp_forward`).
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import (
    DistributedType,
    disable_fsdp_ram_efficient_loading,
    parse_flag_from_env,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.distributed import DistributedConfig

from sft.errors import UserError

log = logging.getLogger(__name__)

# Names of the number of a layer's routed experts in configurations.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Processes wait for each other for hours at times; `sft.distributed.watchdog` finds lost ones.
PATIENCE = timedelta(days=30)


def join_processes() -> PartialState:
    """Join the process group of the launcher; call it before anything else.

    Raises:
        UserError: FSDP with one process, or version 1; DeepSpeed without its package; or more
            processes than this machine has GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    if on_cpu and "WORLD_SIZE" not in os.environ and "MASTER_ADDR" in os.environ:
        # accelerate's launcher for CPUs starts several only through MPI.
        log.warning(
            "one process: accelerate launch --cpu starts no more without MPI; for several pass "
            "--config_file recipes/accelerate/ddp.yaml"
        )
    if _by_fsdp():
        _check_fsdp(count)
    if _by_deepspeed() and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "the launcher asks for DeepSpeed, which is not installed; pip install deepspeed, or "
            "pass --config_file recipes/accelerate/fsdp2.yaml, which needs nothing more"
        )
    if count > 1:
        _check_devices(int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)


def _check_fsdp(count: int) -> None:
    if count < 2:
        raise UserError(
            "the launcher asks for FSDP, which shards weights over processes, and started one; "
            "pass --num_processes 2 or more, or a configuration without FSDP such as "
            "recipes/accelerate/single_gpu.yaml"
        )
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"the launcher asks for FSDP with fsdp_version={version}; set fsdp_version: 2, as "
            "recipes/accelerate/fsdp2.yaml does"
        )
    if parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        # All processes but the first would measure and compute references with empty weights.
        disable_fsdp_ram_efficient_loading()
        log.info("fsdp_cpu_ram_efficient_loading: off, each process measures with its own weights")


def _check_devices(here: int) -> None:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type == "mps":
        # Without this flag accelerate expects several GPUs, and each process would run alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not parse_flag_from_env("ACCELERATE_USE_CPU"):
        devices = torch.accelerator.device_count()
        if here > devices:
            raise UserError(
                f"the launcher started {here} processes on this machine, which has {devices} "
                f"GPU(s); pass --num_processes {devices}"
            )


def sharded() -> bool:
    """Whether training shards the weights, so all processes must gather equally often."""
    # From the launcher's environment: accelerate's state has it only while a trainer exists.
    return _by_fsdp() or _by_deepspeed()


def sharding_strategy() -> str:
    """Return what shards the weights: "FSDP", "DeepSpeed" or "nothing"."""
    return "FSDP" if _by_fsdp() else "DeepSpeed" if _by_deepspeed() else "nothing"


def _by_fsdp() -> bool:
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def _by_deepspeed() -> bool:
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def loads_shards(config: PreTrainedConfig) -> bool:
    """Whether each process loads its own shard of a model that is fully trained."""
    return _by_fsdp() and supports_sharded_loading(config, processes=PartialState().num_processes)


def supports_sharded_loading(config: PreTrainedConfig, *, processes: int) -> bool:
    """Whether transformers has an FSDP plan for the model and can load that many shards."""
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    text = config.get_text_config()
    inner = getattr(text, "base_model_fsdp_plan", None)
    experts = next((n for name in EXPERTS if (n := getattr(text, name, None))), processes)
    # transformers stacks each process's share of the experts and fails where the last has none.
    share = -(-experts // processes)
    return bool(inner and getattr(kind, "_fsdp_plan", None)) and share * (processes - 1) < experts


def sharding_options(*, compute: torch.dtype, weights: torch.dtype) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that load shards.

    Weights are gathered and multiplied in the compute dtype, gradients summed in float32.
    """
    cast = compute is torch.bfloat16 and weights is not compute
    return {
        "distributed_config": DistributedConfig(
            fsdp_size=PartialState().num_processes,
            fsdp_mixed_precision=cast,
            fsdp_cpu_offload=parse_flag_from_env("FSDP_OFFLOAD_PARAMS"),
        )
    }


def prepare_for_accelerate(model: Any) -> Any:
    """Prepare a model that was loaded in shards for training with accelerate.

    Without this, transformers' Trainer neither saves nor loads the optimizer's state of such a
    model, and `save_pretrained` waits for all processes.
    """
    model._is_distributed_loading_by_transformers = False
    del model.config.distributed_config
    if not parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True):
        model.set_reshard_after_forward(False)
    return model


@contextmanager
def ignore_output_view_warning() -> Iterator[None]:
    """Silence FSDP2's warning about outputs that are views; nothing writes into them here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
        yield


def reshard(model: Any) -> None:
    """Reshard the layers and embeddings that a forward pass without backward left gathered.

    A trainer would otherwise take the gathered tensors for the weights.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def allow_cpu_shards() -> None:
    """Let accelerate use FSDP on CPUs; call it before a trainer creates its accelerator."""
    # accelerate.state.AcceleratorState accepts FSDP for GPUs only; device and backend are kept.
    state = PartialState()
    if _by_fsdp() and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def full_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Gather the weights of a sharded model on the CPU of the main process.

    All processes must call it; the others get an empty dictionary. Returns None for a model that is
    not sharded. Names of a tied matrix share one tensor, as `save_pretrained` requires.
    """
    weights: dict[str, Any]
    if isinstance(model, FSDPModule):
        weights = _gathered_by_fsdp(model)
    elif _by_deepspeed():
        weights = _gathered_by_deepspeed(model)
    else:
        return None
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_name.setdefault(id(parameter), name)
        if name in weights:
            weights[name] = weights[first]
    return weights


def _gathered_by_fsdp(model: Any) -> dict[str, Any]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def _gathered_by_deepspeed(model: Any) -> dict[str, Any]:
    from deepspeed.zero import GatheredParameters

    first = PartialState().is_main_process
    weights: dict[str, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with GatheredParameters([parameter]):  # one by one: no GPU need hold all of them
            if first:
                weights[name] = parameter.detach().cpu().clone()
    return weights
