"""Benchmarks through our engine and through lm-eval's Hugging Face backend, printed as ratios.

    python tests/benchmarks/eval_speed.py [--quick] [--repeats 3] [--json FILE]

SmolLM2-135M's shape cut to 10 layers with random weights, float32 on a CPU; questions from
TRUING_REAL_DATA by the task files of recipes/paper. Both score the same requests of the same tasks,
in turn; medians count, and of lm-eval's batch sizes the fastest stands for it. A disagreement is a
document on which the two differ in any score. Answers end by the model's own end-of-sequence, at
random: after 117 tokens on average (GSM8K's own have 133), 2 of 64 not before the cap of 512;
`gsm8k_endless` has the same questions and no end. `--quick` asks fewer questions, of both sides
alike, once, and leaves that case out: a look that should fit ten minutes on two quiet cores, and no
figure to quote.
"""

if __name__ == "__main__":  # while libraries are imported, too
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from arguments import DATA, count, figures, need_data
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eval.tasks.benchmark import quiet
from eval.tasks.lm_eval_model import Engine
from eval.tasks.task_files import Tasks, load_tasks
from sft.config.preset import CHECKOUT
from sft.config.sections import ModelSection
from sft.model.placement import choose_placement
from sft.packing.logprobs import enable_scoring
from sft.run.command import run_command

# name in the results -> (task, shots, questions, questions of --quick, lm-eval's batch sizes)
CASES = {
    "hellaswag_0shot": ("hellaswag", 0, 100, 16, (1, 8, 16)),
    "mmlu_5shot": ("mmlu", 5, 60, 8, (1, 8, 16)),
    "arc_5shot": ("arc_challenge", 5, 60, 8, (1, 8, 16)),
    # One by one takes minutes.
    "gsm8k_generation": ("gsm8k", 0, 64, 16, (8, 16)),
    "gsm8k_endless": ("gsm8k", 0, 32, 0, (8, 16)),
}
TOKENIZER = "tokenizers/llama2-tinyllama"
# The end-of-sequence's row of the head beside the others': greedy decoding chooses it now and then.
END_WEIGHT = 1.7


def main() -> int:
    """Parse the command line and measure; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--json", type=figures)
    given = parser.parse_args()
    return run_command(lambda: measure(given), goes_on=False)


def measure(given: argparse.Namespace) -> None:
    """Every case by both sides; prints the ratios and writes all figures to `given.json`."""
    need_data("eval", TOKENIZER)
    placement = choose_placement(ModelSection())
    model, tokenizer = make_model()
    model.to(placement.device)
    ratios, disagreements, runs = {}, 0, []
    if given.quick:
        print("quick: fewer questions on both sides, once; no figures to quote", flush=True)
    for name, (task, shots, questions, few, sizes) in CASES.items():
        limit = few if given.quick else questions
        if not limit:
            continue
        set_end(model, tokenizer.eos_token_id, END_WEIGHT * (name != "gsm8k_endless"))
        times: dict[str, list[float]] = {}
        verdicts: dict[str, Any] = {}
        for _ in range(1 if given.quick else given.repeats):
            for backend, make in backends(model, tokenizer, placement.attention, sizes).items():
                seconds, verdicts[backend] = run(make, task=task, shots=shots, limit=limit)
                times.setdefault(backend, []).append(seconds)
                runs.append({"case": name, "backend": backend, "seconds": seconds})
        medians = {backend: statistics.median(found) for backend, found in times.items()}
        best = min((b for b in medians if b != "ours"), key=medians.__getitem__)
        ratios[name] = medians[best] / medians["ours"]
        differing = sum(a != b for a, b in zip(verdicts["ours"], verdicts[best], strict=True))
        disagreements += differing
        print(
            f"{name:18s} {ratios[name]:5.2f} x  ours {medians['ours']:6.1f} s, {best} "
            f"{medians[best]:6.1f} s, {limit} questions, {differing} differ",
            flush=True,
        )
    if given.json:
        result = {"ratios": ratios, "disagreements": disagreements, "runs": runs}
        given.json.write_text(json.dumps(result, indent=1))


def make_model() -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(DATA / TOKENIZER)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return enable_scoring(LlamaForCausalLM(config).eval()), tokenizer


def set_end(model: Any, token: int, weight: float) -> None:
    """Draw the head's row of a token anew, `weight` times as long as the others on average."""
    rows = model.get_output_embeddings().weight
    drawn = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows[token] = drawn.to(rows) * weight * model.config.initializer_range


def backends(
    model: Any, tokenizer: Any, attention: str, sizes: tuple[int, ...]
) -> dict[str, Callable[[], LM]]:
    """Each sets the attention that it is used with: ours what this machine chooses, sdpa for the
    other."""

    def ours() -> LM:
        model.set_attn_implementation(attention)
        return Engine(model, tokenizer, chat=False)

    def theirs(size: int) -> Callable[[], LM]:
        def make() -> LM:
            model.set_attn_implementation("sdpa")
            device = str(model.device)
            return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device=device)

        return make

    return {"ours": ours} | {f"lm-eval, batch {size}": theirs(size) for size in sizes}


def run(make: Callable[[], LM], *, task: str, shots: int, limit: int) -> tuple[float, list[Any]]:
    """Seconds of a task, and each document's scores."""
    source = Tasks(str(CHECKOUT / "recipes" / "paper" / "tasks"), str(DATA))
    with quiet():
        loaded = load_tasks([task], source=source, shots=shots, seed=0, pinned=True)
        lm = make()
        start = time.perf_counter()
        found = evaluate(lm=lm, task_dict={"t": loaded}, limit=limit, bootstrap_iters=0)
        seconds = time.perf_counter() - start
    assert found is not None
    (samples,) = found["samples"].values()
    return seconds, [[sample[metric] for metric in sample["metrics"]] for sample in samples]


if __name__ == "__main__":
    sys.exit(main())
