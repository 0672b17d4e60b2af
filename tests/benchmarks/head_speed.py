"""Compare the log-prob head of this project with torch's linear cross entropy.

    python tests/benchmarks/head_speed.py

Time and peak memory of forward and backward on two threads (`sft.packing.lm_head_logprobs` against
`torch.nn.functional.linear_cross_entropy`, chunked and not), for a frozen and a trained head of
SmolLM2-135M's size. torch returns losses only; the head here returns whether greedy decoding would
choose the target, too. Medians of interleaved repeats; time as ratios, memory in MiB.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import Linear, LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy

from sft.model.placement import return_freed_memory
from sft.packing.lm_head_logprobs import score_states
from sft.run.command import run_command

WIDTH, VOCABULARY = 576, 49_152
TOKENS = (512, 2048)
DTYPES = (torch.float32, torch.bfloat16)
REPEATS, THREADS = 3, 2


def main() -> int:
    """Refuse arguments and measure; exit as `run_command` does."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    return run_command(measure, resumable=False)


def measure() -> None:
    """Print time and memory for each head, dtype and number of tokens."""
    return_freed_memory()  # so that the peak of a run is not memory that an earlier one freed
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    for trained in (False, True):
        print(f"{'trained' if trained else 'frozen'} head")
        for dtype in DTYPES:
            for tokens in TOKENS:
                compare(tokens, dtype=dtype, trained=trained)


def compare(tokens: int, *, dtype: torch.dtype, trained: bool) -> None:
    head = Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype).requires_grad_(trained)
    states = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    target = torch.randint(VOCABULARY, (tokens,))
    inputs = [states, *head.parameters()] if trained else [states]

    def ours() -> torch.Tensor:
        return -score_states(states, head, target, softcap=None).log_probs.sum()

    def torchs(options: LinearCrossEntropyOptions | None) -> Callable[[], torch.Tensor]:
        return lambda: linear_cross_entropy(
            states, head.weight, target, reduction="sum", options=options
        )

    runs = {"ours": ours, "chunked": torchs(LinearCrossEntropyOptions()), "plain": torchs(None)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, list[int]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, loss in runs.items():
            before = start_peak()
            start = time.perf_counter()
            torch.autograd.grad(loss(), inputs)
            times[name].append(time.perf_counter() - start)
            peaks[name].append(resident("VmHWM") - before)
    for name in ("chunked", "plain"):
        ratio = statistics.median(times[name]) / statistics.median(times["ours"])
        theirs, mine = (statistics.median(peaks[key]) / 2**20 for key in (name, "ours"))
        print(
            f"{dtype}, {tokens} tokens, torch {name}: {ratio:.2f} x the time of ours, "
            f"{theirs:.0f} MiB (ours {mine:.0f})"
        )


def start_peak() -> int:
    """Reset the high-water mark and return the bytes in use (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def resident(field: str) -> int:
    """Return a field of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
