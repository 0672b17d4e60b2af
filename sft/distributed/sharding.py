"""The processes that a launcher started, and weights spread over them (FSDP2, ZeRO-3).

Under FSDP2 all that is trained in full is read in parts, a process its own, from which reference
log-probs are taken too. Measures are taken of whole models, which each process loads by itself,
unless no device holds one (`sft.distributed.fsdp_forward`). An adapter's base, and under ZeRO-3
every model, is loaded whole before it is spread.
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

# What configurations call the number of a layer's experts.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
# Processes wait for each other, for hours at times; `sft.distributed.watchdog` tells who is lost.
PATIENCE = timedelta(days=30)


def join_processes() -> PartialState:
    """Meet the other processes of this start, if a launcher made several; to be called first.

    Raises:
        UserError: FSDP over one process, or of its first version; DeepSpeed without its package; or
            more processes than this machine has GPUs.
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
            "the launcher asks for FSDP, which spreads weights over processes, and started one; "
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
        # All but the first would hold empty weights, and take measures and references of them.
        disable_fsdp_ram_efficient_loading()
        log.info("fsdp_cpu_ram_efficient_loading: off, each process measures with its own weights")


def _check_devices(here: int) -> None:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type == "mps":
        # Unless told so, accelerate looks for several GPUs, and each process would be alone.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not parse_flag_from_env("ACCELERATE_USE_CPU"):
        devices = torch.accelerator.device_count()
        if here > devices:
            raise UserError(
                f"the launcher started {here} processes on this machine, which has {devices} "
                f"GPU(s); pass --num_processes {devices}"
            )


def sharded() -> bool:
    """Whether training spreads the weights, so that all processes must gather equally often.

    The launcher's word: accelerate's own state knows only while a trainer is there.
    """
    return _by_fsdp() or _by_deepspeed()


def sharding_strategy() -> str:
    """Return what shards the weights: "FSDP", "DeepSpeed" or "nothing"."""
    return "FSDP" if _by_fsdp() else "DeepSpeed" if _by_deepspeed() else "nothing"


def _by_fsdp() -> bool:
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def _by_deepspeed() -> bool:
    return bool(parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"))


def loads_shards(config: PreTrainedConfig) -> bool:
    """Whether each process reads its part of such a model alone, to train all of it."""
    return _by_fsdp() and supports_sharded_loading(config, processes=PartialState().num_processes)


def supports_sharded_loading(config: PreTrainedConfig, *, processes: int) -> bool:
    """Whether transformers knows which weights of the family to gather at once, and can read so
    many parts of them: it stacks a process's share of the experts, and fails where there is none.
    """
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    text = config.get_text_config()
    inner = getattr(text, "base_model_fsdp_plan", None)
    experts = next((n for name in EXPERTS if (n := getattr(text, name, None))), processes)
    share = -(-experts // processes)  # the last process has the rest
    return bool(inner and getattr(kind, "_fsdp_plan", None)) and share * (processes - 1) < experts


def sharding_options(*, compute: torch.dtype, weights: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given for that: transformers' own loading in shards, gathered and
    multiplied in the compute dtype; gradients are summed in float32."""
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
    """Called before a trainer makes its accelerator, which knows FSDP for kinds of GPUs only
    (accelerate.state.AcceleratorState); the device and the backend stay as they are."""
    state = PartialState()
    if _by_fsdp() and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def full_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a model that was spread, on the CPU of the first process (the others get
    nothing); None for a model that each process holds whole. All processes call it.

    Names of one matrix (a head tied to its embedding) have one tensor, by which upstream knows it.
    """
    weights: dict[str, Any]
    if isinstance(model, FSDPModule):
        weights = _of_fsdp(model)
    elif _by_deepspeed():
        weights = _of_deepspeed(model)
    else:
        return None
    first_name: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_name.setdefault(id(parameter), name)
        if name in weights:
            weights[name] = weights[first]
    return weights


def _of_fsdp(model: Any) -> dict[str, Any]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def _of_deepspeed(model: Any) -> dict[str, Any]:
    """Gathered parameter by parameter, so that no process holds all of them on its GPU."""
    from deepspeed.zero import GatheredParameters

    first = PartialState().is_main_process
    weights: dict[str, Any] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        with GatheredParameters([parameter]):
            if first:
                weights[name] = parameter.detach().cpu().clone()
    return weights
