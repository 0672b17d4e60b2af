"""Measure time and memory of preparing short chats: parse, clean, check, tokenize, mask, write.

    python tests/benchmarks/prepare_speed.py --rows 100000 [--model DIRECTORY]

The target is 100,000 rows per minute on two cores; the second run reads the cache of the first.
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

import torch
from arguments import count
from made_up_chats import write_chats

from eval.tasks.questions import benchmark_questions
from sft.config.preset import CHECKOUT
from sft.config.sections import DataSection, EvalSection, LoraSection, ModelSection, Source
from sft.context import RunContext
from sft.model.loading import check_model, load_tokenizer
from sft.model.placement import Placement
from sft.run.command import run_command
from sft.tokenization.input_hashes import rows_fingerprint
from sft.tokenization.prepare import prepare_chats, rows_of_stage
from sft.tokenization.row_checks import Rules, total

QUICKSTART = CHECKOUT / "recipes" / "quickstart"
TASKS = ["world_facts", "world_math", "world_code", "world_completion"]


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=count, default=100_000)
    parser.add_argument("--model", default=str(QUICKSTART / "base"), help="for its tokenizer")
    given = parser.parse_args()
    return run_command(lambda: measure(given), resumable=False)


def measure(given: argparse.Namespace) -> None:
    """Generate the chats, prepare them twice, and print time and memory."""
    section = ModelSection(given.model)
    tokenizer = load_tokenizer(check_model(section), section)
    benchmarks = benchmark_questions(EvalSection(tasks=TASKS, task_dir=str(QUICKSTART / "tasks")))
    placement = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        write_chats(path, rows=given.rows)
        context = RunContext(Path(folder) / "run", tokenizer, placement, LoraSection(), 0, False)
        for run in ("first", "second"):
            start, cpu = time.perf_counter(), processor_time()
            section = DataSection([Source(str(path))])
            rows = prepare_chats(section, context, benchmarks=benchmarks)
            prepared, cpu = time.perf_counter(), processor_time() - cpu
            rules = Rules.of(tokenizer)
            stage = rows_of_stage(
                rows, kinds=[], max_length=1024, rules=rules, section=section, where="stage"
            )
            rows_fingerprint(stage.rows)
            end = time.perf_counter()
            length = total(stage.checked).tokens / len(stage.rows)
            print(
                f"{run} run: {prepared - start:.1f} s ({given.rows / (prepared - start):,.0f} "
                f"rows/s; {cpu:.1f} s of processor time), {len(rows):,} rows of {length:.0f} "
                f"tokens; choosing a stage's rows {end - prepared:.1f} s"
            )
    own, others = (usage.ru_maxrss / 2**20 for usage in usages())  # KiB on Linux
    print(f"peak memory {own:.2f} GiB, of the largest helping process {others:.2f} GiB")


def usages() -> tuple[resource.struct_rusage, resource.struct_rusage]:
    """Return the usage of this process and of its finished children."""
    return resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)


def processor_time() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in usages())


if __name__ == "__main__":
    sys.exit(main())
