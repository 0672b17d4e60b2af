"""Compare SFT and DPO with LoRA to TRL, with its defaults and tuned, as ratios.

    python tests/benchmarks/train_speed.py [--quick] [--repeats 3] [--json FILE]

The model has the shape of SmolLM2-135M with 10 layers, on CUDA that of Qwen2.5-1.5B with the same
vocabulary, with random weights and r=16 on all linear layers. On CUDA tuned TRL uses flash
attention and Liger's kernels if installed. Rows are Alpaca, GSM8K, Open-Assistant dialogues, and
preference pairs with short and long prompts, from TRUING_REAL_DATA. Every case runs in a separate
process, all in turn, `--repeats` times; medians are compared, with the fastest tuned case for TRL.
`--quick` uses a third of the rows, once. A case that takes longer than `--limit` seconds is stopped
and counted with the limit, so its ratio is printed as a lower bound: TRL requests bfloat16, which
some processors emulate.
"""

if __name__ == "__main__":  # before the slow imports, so that Ctrl-C there ends quietly
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from arguments import DATA, count, figures, need_data
from train_cases import CASES, CUDA, EOS, PAD, VOCABULARY
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dpo.data import read_preferences
from dpo.encode import encode_pairs
from sft.chat_template.encoding import EncodedChat, encode_chats
from sft.chat_template.template import ensure_template
from sft.config.sections import ModelSection, Source
from sft.data.sources import read_sft
from sft.model.placement import choose_placement
from sft.run.command import run_command
from sft.training.throughput import matrix_peak

TOKENIZER = "tokenizers/llama2-tinyllama"
CHATS = ("alpaca_en_first10k.jsonl.gz", "gsm8k_train.jsonl.gz", "oasst_en_100_trees.jsonl")
PAIRS = ("lf_dpo_en_demo.jsonl", "ultrafeedback_binarized_sample.jsonl")
# Rows that fit TRL's packing length, so that all train on the same tokens.
LONGEST_CHAT, LONGEST_PAIR = 512, 1024
START_UP = 300.0 if CUDA else 30.0  # seconds of imports and loading, which no case includes
SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LARGE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
SHAPE = LARGE if CUDA else SMALL


def main() -> int:
    """Parse the command line and measure; exit as `run_command` does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument("--json", type=figures)
    parser.add_argument("--limit", type=count, help="seconds of a case; 600, with --quick 70")
    given = parser.parse_args()
    return run_command(lambda: compare(given), resumable=False)


def compare(given: argparse.Namespace) -> None:
    """Run every case in turn; print the ratios and write all figures to `given.json`."""
    files = [*(f"sft/{name}" for name in CHATS), *(f"preference/{name}" for name in PAIRS)]
    need_data(*files, TOKENIZER)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scale = (50 if CUDA else 1) * (1 if given.quick else 3)
        rows = write_rows(folder, chats=16 * scale, pairs=4 * scale)
        write_model(folder / "model")
        repeats, limit = (1, 70.0) if given.quick else (given.repeats, 600.0)
        runs = measure(folder, repeats=repeats, limit=given.limit or limit)
    result = summarize(runs, rows)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


def write_rows(folder: Path, *, chats: int, pairs: int) -> dict[str, list[dict[str, Any]]]:
    """Write token rows of each stage, equally many from each source."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / TOKENIZER)
    ensure_template(tokenizer)
    sft = []
    for name in CHATS:
        found = read_sft([Source(str(DATA / "sft" / name))], on_error="drop").rows
        encoded = [
            e
            for e in encode_chats(tokenizer, found[: max(200, chats)])
            if isinstance(e, EncodedChat)
        ]
        short = [e for e in encoded if len(e.input_ids) <= LONGEST_CHAT]
        taken = short[:: max(1, len(short) // (chats // len(CHATS)))][: chats // len(CHATS)]
        sft += [{"input_ids": e.input_ids, "trained": e.trained} for e in taken]
    dpo = []
    for name in PAIRS:
        found = read_preferences([Source(str(DATA / "preference" / name))], on_error="drop").rows
        encoded_pairs, _ = encode_pairs(
            found[: max(100, pairs)], tokenizer, max_length=LONGEST_PAIR
        )
        dpo += encoded_pairs.to_list()[: pairs // len(PAIRS)]
    rows = {"sft": sft, "dpo": dpo}
    for stage, of_stage in rows.items():
        (folder / f"{stage}.json").write_text(json.dumps(of_stage))
    return rows


def write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        **SHAPE,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        eos_token_id=EOS,
        pad_token_id=PAD,
        bos_token_id=1,
    )
    with torch.device("cuda" if CUDA else "cpu"):  # drawing 1.5 B weights takes a minute on a CPU
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)


def measure(folder: Path, *, repeats: int, limit: float) -> list[dict[str, Any]]:
    """Run every case in turn; `cut` marks those that reached the limit.

    On a CPU, whose speed drifts, each run has its own process. On CUDA the repeats of a case share
    one, after an uncounted run that compiles kernels.
    """
    rounds, times = (1, repeats + 1) if CUDA else (repeats, 1)
    runs = []
    for _ in range(rounds):
        for case in CASES:
            first, *more_runs = timed(case, folder, times=times, limit=limit)
            if more_runs:
                print(f"{case:34s} {first['seconds']:8.1f} s with compilation, not counted")
            for run in more_runs or [first]:
                more = "or more" if run["cut"] else f"{run['peak_gib']:6.2f} GiB"
                print(f"{case:34s} {run['seconds']:8.1f} s {more}", flush=True)
                runs.append({"case": case, **run})
    return runs


def timed(case: str, folder: Path, *, times: int, limit: float) -> list[dict[str, Any]]:
    """Return the figures of each run of a case, and the limit for a run that reached it."""
    script = str(Path(__file__).with_name("train_cases.py"))
    command = [sys.executable, script, case, str(folder), str(times)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=times * limit + START_UP
        )
    except subprocess.TimeoutExpired:
        return [{"seconds": limit, "peak_gib": float("nan"), "cut": True}]
    if done.returncode:
        sys.exit(f"{case} failed:\n{done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [{**json.loads(line), "cut": False} for line in lines[-times:]]


def summarize(runs: list[dict[str, Any]], rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the ratios of TRL to ours in time and memory, and ours as a fraction of the peak."""

    def median(case: str, key: str = "seconds") -> float:
        return statistics.median(run[key] for run in runs if run["case"] == case)

    placement = choose_placement(ModelSection())
    peak = matrix_peak(placement.device, placement.compute)
    ratios, mfu = {}, {}
    for stage in ("sft", "dpo"):
        tuned = [c for c in CASES if c.startswith(f"{stage} trl") and not c.endswith("default")]
        best = min(tuned, key=median)
        own = median(f"{stage} ours")
        ratios[f"{stage}_vs_default"] = median(f"{stage} trl default") / own
        ratios[f"{stage}_vs_tuned"] = median(best) / own
        memory = median(f"{stage} ours", "peak_gib") / median(best, "peak_gib")
        ratios[f"{stage}_peak_memory_vs_tuned"] = memory
        mfu[stage] = model_flops(stage, rows[stage]) / own / peak
        bound = any(r["cut"] for r in runs if r["case"] == f"{stage} trl default")
        print(
            f"{stage}: {'at least ' * bound}{ratios[f'{stage}_vs_default']:.2f} x trl as it comes, "
            f"{ratios[f'{stage}_vs_tuned']:.2f} x trl tuned ({best}), {memory:.2f} of its memory, "
            f"{mfu[stage]:.0%} of {peak / 1e9:.0f} GFLOP/s"
        )
    return {"ratios": ratios, "mfu": mfu, "runs": runs}


def model_flops(stage: str, rows: list[dict[str, Any]]) -> float:
    """Return the minimum FLOPs of the rows with LoRA: two passes over frozen weights (forward,
    gradient of the inputs), a third for the reference; each prompt once, the head on scored tokens.
    """
    wide, heads = SHAPE["hidden_size"], SHAPE["num_attention_heads"]
    narrow = wide // heads * SHAPE["num_key_value_heads"]
    layer = 2 * wide * wide + 2 * wide * narrow + 3 * wide * SHAPE["intermediate_size"]
    layers = SHAPE["num_hidden_layers"] * layer
    head = wide * VOCABULARY
    if stage == "sft":
        tokens = sum(len(row["input_ids"]) for row in rows)
        return 4.0 * (layers * tokens + head * sum(sum(row["trained"]) for row in rows))
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    tokens = answers + sum(len(row["prompt_ids"]) for row in rows)
    return 6.0 * (layers * tokens + head * answers)


if __name__ == "__main__":
    sys.exit(main())
