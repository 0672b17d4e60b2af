"""Measure time and memory of near-duplicate removal on generated short chats.

    python tests/benchmarks/dedup_speed.py --rows 1000000

The target is a million rows in ten minutes and 4 GiB on two cores, including reading.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from arguments import count
from made_up_chats import write_chats

from sft.cleaning.filters import drop_near_duplicates
from sft.config.sections import Source
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.run.command import run_command


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=count, default=100_000)
    parser.add_argument("--threshold", type=float, default=0.8)
    given = parser.parse_args()
    return run_command(lambda: measure(given), resumable=False)


def measure(given: argparse.Namespace) -> None:
    """Generate the chats, read and clean them, and print time and memory."""
    if not 0 < given.threshold <= 1:
        raise UserError(f"--threshold {given.threshold:g} must be above 0 and at most 1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        write_chats(path, rows=given.rows)
        start, cpu = time.perf_counter(), time.process_time()
        read = read_sft([Source(str(path))])
        middle = time.perf_counter()
        kept = drop_near_duplicates(
            read, threshold=given.threshold, evidence=Path(folder) / "duplicates.jsonl"
        )
        end, cpu = time.perf_counter(), time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    lost = len(read.rows) - len(kept.rows)
    print(f"{given.rows:,} rows, {lost:,} near duplicates at {given.threshold}")
    print(f"read and exact duplicates {middle - start:.1f} s, near duplicates {end - middle:.1f} s")
    print(f"{cpu:.1f} s of processor time in all, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    sys.exit(main())
