"""The devices that a plan is made for: this machine's, or those of a table."""

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
    """Devices that train together; peak is of dense bfloat16 products, in operations a second."""

    name: str
    memory: float  # bytes of one device
    peak: float | None = None
    count: int = 1
    sharded: bool = False  # weights, gradients and moments spread over the devices (FSDP, ZeRO-3)
    loads_whole: bool = False  # spread after each has loaded all of them (ZeRO-3)


# Memory and dense bfloat16 peak of the makers' data sheets (without sparsity).
MACHINES = {
    "h200": Machine("NVIDIA H200", 141e9, 989e12),
    "h100": Machine("NVIDIA H100 SXM", 80e9, 989e12),
    "a100-80": Machine("NVIDIA A100 80 GB", 80e9, 312e12),
    "a100-40": Machine("NVIDIA A100 40 GB", 40e9, 312e12),
    "l40s": Machine("NVIDIA L40S", 48e9, 362e12),
    "rtx4090": Machine("NVIDIA GeForce RTX 4090", 24e9, 165e12),
}


def named_machine(name: str) -> Machine:
    """A device of the table.

    Raises:
        UserError: it is not there.
    """
    if name not in MACHINES:
        raise UserError(f"--device {name} is not one of {', '.join(MACHINES)}")
    return MACHINES[name]


def this_machine(placement: Placement) -> Machine:
    """The devices that this command runs on; a peak that the table does not have is measured."""
    state = PartialState()
    device = placement.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = properties.name.replace(" ", "")
        known = (m.peak for k, m in MACHINES.items() if k.split("-")[0].upper() in name)
        memory = properties.total_memory
        found = Machine(properties.name, memory, next(known, None))
    elif device.type == "mps":
        found = Machine("this Mac", torch.mps.recommended_max_memory())
    else:
        found = Machine("this machine", psutil.virtual_memory().total / state.num_processes)
    if found.peak is None:
        found = replace(found, peak=matrix_peak(device, placement.compute))
    by_deepspeed = sharding_strategy() == "DeepSpeed"
    return replace(found, count=state.num_processes, sharded=sharded(), loads_whole=by_deepspeed)
