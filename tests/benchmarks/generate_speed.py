"""Compare generation up to the cap with transformers' `generate`, as ratios.

    python tests/benchmarks/generate_speed.py [--answers 16] [--cap 256] [--repeats 3]

The model and the questions are those of `eval_speed.py`, decoded greedily; no answer ends before
the cap. transformers gets prompts sorted by length and padded on the left, all in one batch and in
batches of 8. The three run in turn on one thread; medians of CPU seconds are compared, so that
other work on the machine has little effect.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from arguments import DATA, count, need_data
from eval_speed import TOKENIZER, make_model, set_end

from eval.generation.generate import GenerationSettings, generate
from sft.run.command import run_command

QUESTIONS = "eval/gsm8k_test.jsonl"


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=count, default=16)
    parser.add_argument("--cap", type=count, default=256)
    parser.add_argument("--repeats", type=count, default=3)
    given = parser.parse_args()
    return run_command(lambda: measure(given), resumable=False)


def measure(given: argparse.Namespace) -> None:
    """Generate the same answers in the three ways in turn, and print the medians."""
    need_data(QUESTIONS, TOKENIZER)
    torch.set_num_threads(1)
    model, tokenizer = make_model()
    set_end(model, tokenizer.eos_token_id, 0.0)
    lines = (DATA / QUESTIONS).read_text("utf-8").splitlines()[: given.answers]
    texts = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    prompts = sorted(tokenizer(texts)["input_ids"], key=len)
    settings = {"max_new_tokens": given.cap, "do_sample": False}

    def ours() -> list[list[int]]:
        written = generate(
            model, tokenizer, prompts, GenerationSettings(max_new_tokens=given.cap, stop_ids=[])
        )
        return [row.token_ids for row in written]

    def theirs(size: int) -> Callable[[], list[list[int]]]:
        def run() -> list[list[int]]:
            written: list[list[int]] = []
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                width = max(map(len, batch))
                ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
                with torch.no_grad():
                    whole = model.generate(
                        ids, attention_mask=mask, pad_token_id=0, eos_token_id=None, **settings
                    )
                written += whole[:, width:].tolist()
            return written

        return run

    sides = {"ours": ours, "one batch": theirs(len(prompts)), "batches of 8": theirs(8)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    written = {}
    for _ in range(given.repeats):
        for name, run in sides.items():
            before = time.process_time()
            written[name] = run()
            seconds[name].append(time.process_time() - before)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, found in medians.items():
        same = sum(a == b for a, b in zip(written[name], written["ours"], strict=True))
        ratio = f"{found / medians['ours']:.2f} times ours"
        print(f"{name:14} {found:6.1f} s  {ratio}  {same} of {len(prompts)} answers the same")


if __name__ == "__main__":
    sys.exit(main())
