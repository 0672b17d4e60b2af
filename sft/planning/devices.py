"""Devices that a plan is made for: those of this machine, or a known model."""

from dataclasses import dataclass, replace

import psutil
import torch
from accelerate import PartialState

from sft.distributed.sharding import sharded, sharding_strategy
from sft.errors import UserError
from sft.model.placement import Placement
from sft.training.throughput import matrix_peak


@dataclass(frozen=True)
class Machine:
    """Devices that train together."""

    name: str
    memory: float  # bytes of one device
    peak: float | None = None  # of one device, in dense bfloat16 operations per second
    count: int = 1
    sharded: bool = False  # weights, gradients and moments, by FSDP or ZeRO-3
    loads_whole: bool = False  # each device loads all weights before they are sharded, by ZeRO-3


# Memory and dense bfloat16 peak (without sparsity) of the makers' data sheets.
MACHINES = {
    "h200": Machine("NVIDIA H200", 141e9, 989e12),
    "h100": Machine("NVIDIA H100 SXM", 80e9, 989e12),
    "a100-80": Machine("NVIDIA A100 80 GB", 80e9, 312e12),
    "a100-40": Machine("NVIDIA A100 40 GB", 40e9, 312e12),
    "l40s": Machine("NVIDIA L40S", 48e9, 362e12),
    "rtx4090": Machine("NVIDIA GeForce RTX 4090", 24e9, 165e12),
}


def named_machine(name: str) -> Machine:
    """Return a device of the table; refuse other names."""
    if name not in MACHINES:
        raise UserError(f"--device {name} is not one of {', '.join(MACHINES)}")
    return MACHINES[name]


def this_machine(placement: Placement) -> Machine:
    """Return the devices that this command runs on; a peak that the table lacks is measured."""
    state, device = PartialState(), placement.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        # CUDA reports "NVIDIA A100-SXM4-80GB" or "NVIDIA GeForce RTX 4090".
        name = properties.name.replace(" ", "")
        peaks = (m.peak for key, m in MACHINES.items() if key.split("-")[0].upper() in name)
        found = Machine(properties.name, properties.total_memory, next(peaks, None))
    elif device.type == "mps":
        # Metal's limit, which is below the memory that the GPU shares with the CPU.
        found = Machine("this Mac", torch.mps.recommended_max_memory())
    else:
        # Processes on a CPU share its memory.
        found = Machine("this machine", psutil.virtual_memory().total / state.num_processes)
    if found.peak is None:
        found = replace(found, peak=matrix_peak(device, placement.compute))
    by_deepspeed = sharding_strategy() == "DeepSpeed"
    return replace(found, count=state.num_processes, sharded=sharded(), loads_whole=by_deepspeed)
