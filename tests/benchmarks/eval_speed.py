"""Compare the speed of benchmarks with lm-eval's Hugging Face backend, as ratios.

    python tests/benchmarks/eval_speed.py [--quick] [--repeats 3] [--json FILE]

The model has the shape of SmolLM2-135M with 10 layers and random weights, in float32 on a CPU. The
questions come from TRUING_REAL_DATA by the task files of recipes/paper. Both engines score the same
requests in turn; medians are compared, with the fastest of several batch sizes for lm-eval. A
disagreement is a document with any different score. Answers end at a random end-of-sequence token:
after 117 tokens on average (133 in GSM8K's references), 2 of 64 only at the cap of 512; in
`gsm8k_endless` no answer ends. `--quick` uses fewer questions, once, without that case: it takes
about ten minutes on two idle cores and gives no figure to publish.
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
from typing import Any

import torch
from arguments import DATA, count, figures, need_data
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eval.tasks.benchmark import quiet
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource, load_tasks
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
    # Batch size 1 takes minutes.
    "gsm8k_generation": ("gsm8k", 0, 64, 16, (8, 16)),
    "gsm8k_endless": ("gsm8k", 0, 32, 0, (8, 16)),
}
TOKENIZER = "tokenizers/llama2-tinyllama"
# Length of the end-of-sequence row of the head: greedy decoding selects it now and then.
END_WEIGHT = 1.7


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--json", type=figures)
    given = parser.parse_args()
    return run_command(lambda: measure(given), resumable=False)


def measure(given: argparse.Namespace) -> None:
    """Run every case with both engines; print the ratios and write all figures to `given.json`."""
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
    """Redraw the head row of a token, `weight` times as long as the others on average."""
    rows = model.get_output_embeddings().weight
    drawn = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows[token] = drawn.to(rows) * weight * model.config.initializer_range


def backends(
    model: Any, tokenizer: Any, attention: str, sizes: tuple[int, ...]
) -> dict[str, Callable[[], LM]]:
    """Return both backends with their attention: the selected one for ours, sdpa for lm-eval."""

    def ours() -> LM:
        model.set_attn_implementation(attention)
        return LmEvalModel(model, tokenizer, chat=False)

    def theirs(size: int) -> Callable[[], LM]:
        def make() -> LM:
            model.set_attn_implementation("sdpa")
            device = str(model.device)
            return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device=device)

        return make

    return {"ours": ours} | {f"lm-eval, batch {size}": theirs(size) for size in sizes}


def run(make: Callable[[], LM], *, task: str, shots: int, limit: int) -> tuple[float, list[Any]]:
    """Return the seconds of a task and the scores of each document."""
    source = TaskSource(str(CHECKOUT / "recipes" / "paper" / "tasks"), str(DATA))
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
