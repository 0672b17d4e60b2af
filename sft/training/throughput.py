"""Throughput of training: tokens, padding, FLOP/s against the device's peak, memory."""

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from sft.errors import UserError
from sft.model.flops import Costs, costs_of_model, training_flops
from sft.packing.layout import Batch

# Side of the square matrices whose product measures the peak: large enough to fill the device.
CPU_SIDE, SIDE = 1024, 8192
PROBE_SECONDS = 0.06

# Keys of a log line that depend on the machine and on where a run resumed.
MEASURED = (
    *("tokens_per_second", "trained_tokens_per_second", "padding", "memory_gib"),
    *("tflops_per_second", "peak_share", "train_runtime", "train_tokens_per_second"),
)


class Meter:
    """Counter of tokens, FLOPs and time since the last reading.

    Args:
        model: the model before a distributed wrapper.
        peak: the FLOP/s of `matrix_peak`.
    """

    def __init__(self, model: Any, *, device: torch.device, peak: float) -> None:
        self.device, self.peak = device, peak
        try:
            self.costs: Costs | None = costs_of_model(model)
        except UserError:  # the configuration does not give the parameters that a token uses
            self.costs = None
        self.left_out = 0.0  # seconds that are not training
        self.earlier = 0.0  # seconds of training before the checkpoint that this start resumes from
        self._restart()
        self.started = self.since

    def _restart(self) -> None:
        self.tokens = self.trained = self.cells = self.flops = 0
        self.since = time.monotonic()

    def add(self, batch: Batch) -> None:
        """Count a pass, without synchronizing the device."""
        self.tokens += batch.num_tokens
        self.trained += len(batch.target)
        self.cells += batch.input_ids.numel()
        if self.costs is not None:
            self.flops += training_flops(self.costs, batch.spans, scored=len(batch.target))

    def leave_out(self, seconds: float) -> None:
        """Exclude the last seconds from the time of training."""
        self.since += seconds
        self.left_out += seconds

    def training_seconds(self) -> float:
        """Return the seconds of training over all starts, without excluded ones."""
        return self.earlier + time.monotonic() - self.started - self.left_out

    def read(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Return the values for the log line over all processes, and restart the counts.

        FLOPs are the model's (`sft.model.flops`), without recomputation.

        Args:
            add_up: sums a tensor [5] over processes.
        """
        seconds = time.monotonic() - self.since
        own = [self.tokens, self.trained, self.cells, self.flops / 1e12, self.peak / 1e12]
        sums = add_up(torch.tensor(own, dtype=torch.float32, device=self.device))
        tokens, trained, cells, tera, peak = sums.tolist()
        self._restart()
        if not cells:
            return {}
        line = {
            "tokens_per_second": round(tokens / seconds, 1),
            "trained_tokens_per_second": round(trained / seconds, 1),
            "padding": round(1 - tokens / cells, 4),
            "memory_gib": round(memory_in_use(self.device) / 2**30, 2),
        }
        if tera:
            line["tflops_per_second"] = round(tera / seconds, 4)
            line["peak_share"] = round(tera / seconds / peak, 4)
        return line


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of some square matrix products in `dtype`."""
    side = CPU_SIDE if device.type == "cpu" else SIDE
    generator = torch.Generator(device).manual_seed(0)  # equal values run faster on a GPU
    left = torch.randn(side, side, dtype=dtype, device=device, generator=generator)
    best, end = float("inf"), time.monotonic() + PROBE_SECONDS
    while time.monotonic() < end or best == float("inf"):
        _wait(device)
        start = time.perf_counter()
        left @ left
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory_in_use(device: torch.device) -> int:
    """Return the peak bytes on CUDA, and the current bytes on other devices."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)
