"""An invented finished run directory: four models, four tasks, two languages, no weights."""

import json
import random
from pathlib import Path
from typing import Any

MODELS = ["base", "sft-all", "sft-dialogue", "dpo"]
RATES = {"base": 0.8825, "sft-all": 0.2150, "sft-dialogue": 0.0275, "dpo": 0.0100}
SCORES = {
    "world_facts": (0.412, 0.584, 0.571, 0.576),
    "world_math": (0.143, 0.627, 0.634, 0.619),
    "world_code": (0.188, 0.846, 0.852, 0.858),
    "world_zh": (0.360, 0.442, 0.428, 0.431),
}
STEPS = [("base", "sft-all"), ("sft-all", "sft-dialogue"), ("sft-dialogue", "dpo"), ("base", "dpo")]
ANSWERS = {
    "en": (
        "Mira left the harbour of Tolven before sunrise, with a lamp and half a loaf of bread. "
        "\u201cYou will be late,\u201d said her brother, who was mending a net by the door. "
        "The road to Karsh climbs for two hours, and then there is the bridge. "
    ),
    "zh": (
        "清晨，米拉提着一盏灯离开了托尔文的港口。哥哥正在门口补网，对她说：“你要迟到了。”"
        "去卡什的路要走两个小时，然后有一座桥。"
    ),
}
LOOPS = {
    "en": "She walked to the bridge and she looked at the water. ",
    "zh": "她走到桥边，看着河水。",
}
PROMPTS = {
    "en": [
        ("story", "Write a long story about Mira and the bridge of Karsh."),
        ("explain", "Explain step by step how the ferry at Tolven works."),
        ("list", "List everything that a traveller to Karsh should carry, with reasons."),
        ("chat", "I had a bad day. Can you cheer me up a little?"),
    ],
    "zh": [
        ("story", "写一个关于米拉和卡什桥的长故事。"),
        ("explain", "请一步一步解释托尔文的渡船是怎么工作的。"),
        ("chat", "今天心情不好，能安慰我一下吗？"),
    ],
}


def make_results() -> dict[str, Any]:
    """Return results.json with plausible, invented numbers, intervals and p-values."""
    results: dict[str, Any] = {"models": MODELS, "repetition": {}, "benchmarks": {}, "deltas": []}
    for model, rate in RATES.items():
        half = 0.5 * rate * (1 - rate) + 0.008
        results["repetition"][model] = {
            "rate": rate,
            "ci": [max(rate - half, 0.001), rate + half],
            "n": 400,
            "truncated": 0.015 + 0.02 * rate,
            "cap": 400,
            "seq_rep_4": 0.06 + 0.7 * rate,
        }
    for task, scores in SCORES.items():
        results["benchmarks"][task] = {
            model: {
                "score": score,
                "ci": [score - 0.037, score + 0.036],
                "n": 500,
                "metric": "acc" if task in ("world_facts", "world_zh") else "exact_match",
                "shots": 5 if model == "base" else 0,
                "chat_template": model != "base",
            }
            for model, score in zip(MODELS, scores, strict=True)
        }
    columns = {"repetition": tuple(RATES.values())} | SCORES
    for task, values in columns.items():
        for first, second in STEPS:
            delta = values[MODELS.index(second)] - values[MODELS.index(first)]
            clear = abs(delta) > 0.025
            half = 0.022 if task == "repetition" else 0.031
            results["deltas"].append(
                {
                    "task": task,
                    "from": first,
                    "to": second,
                    "delta": delta,
                    "ci": [delta - half, delta + half],
                    "p": 1e-9 if clear else 0.34,
                    "p_holm": 2e-8 if clear else 1.0,
                    "n": 400 if task == "repetition" else 500,
                    "test": "exact McNemar",
                }
            )
    results["stages"] = {
        name: {"tokens": tokens, "steps": steps, "seconds": s, "loss_first": a, "loss_last": b}
        for name, tokens, steps, s, a, b in (
            ("sft-all", 1_284_113, 376, 96.4, 2.871, 0.412),
            ("sft-dialogue", 391_020, 118, 31.7, 0.934, 0.688),
            ("dpo", 207_331, 60, 41.2, 0.6931, 0.402),
        )
    }
    return results


def generation(model: str, number: int, rng: random.Random) -> dict[str, Any]:
    """Return a row of generations.jsonl; tokens have four characters (English) or two (Chinese)."""
    language = "en" if number % 5 < 3 else "zh"
    category, prompt = PROMPTS[language][number % len(PROMPTS[language])]
    # One prompt still loops with the last model; most loop with none.
    rate = RATES[model] if number != 7 else 1.0
    repeats = rng.random() < rate
    size = 4 if language == "en" else 2
    lead = ANSWERS[language] * (1 if number % 3 else 5)
    loop = LOOPS[language]
    # A looping answer is stored up to twice the cap.
    text = (lead + loop * 800)[: 800 * size] if repeats else lead.strip()
    start = len(lead) // size
    num_tokens = len(text) // size
    period = len(loop) // size
    return {
        "id": f"p{number:03d}",
        "messages": [{"role": "user", "content": prompt}],
        "category": category,
        "language": language,
        "prompt_ids": [1, 2, 3],
        "token_ids": list(range(num_tokens)),
        "text": text,
        "finish_reason": "cap" if repeats else "stop_id",
        "loop": {"period": period, "copies": (num_tokens - start) // period, "start": start}
        if repeats
        else None,
        "cap": 400,
        "repeats": repeats,
    }


def make_run(run_dir: Path) -> Path:
    """Write a finished run directory as the chain does, without weights."""
    rng = random.Random(0)
    write_rows(run_dir / "results.json", [make_results()])
    for model in MODELS:
        rows = [generation(model, number, rng) for number in range(40)]
        write_rows(run_dir / "eval" / model / "generations.jsonl", rows)
        for task in SCORES:
            score = SCORES[task][MODELS.index(model)]
            # Only the base answers question 0 correctly, at any score: a lost verdict.
            rights = [model == "base"] + [rng.random() < score for _ in range(29)]
            samples = [benchmark_row(task, model, i, right) for i, right in enumerate(rights)]
            write_rows(run_dir / "eval" / model / "samples" / f"{task}.jsonl", samples)
    for stage, first, last, steps, peak in (
        ("1-sft-all", 2.87, 0.41, 376, 1e-3),
        ("2-sft-dialogue", 0.93, 0.69, 118, 5e-4),
        ("3-dpo", 0.693, 0.40, 60, 2e-5),
    ):
        rows = []
        for step in range(1, steps + 1):
            level = last + (first - last) * 0.985 ** (step * 376 / steps)
            rate = peak * min(1, step / 20) * (1 if step < 0.8 * steps else 0.316)
            loss = level * rng.gauss(1, 0.05)
            rows.append({"step": step, "epoch": step / 94, "loss": loss, "learning_rate": rate})
        write_rows(run_dir / stage / "log.jsonl", rows)
    counts = {"in": 3012, "kept": 3000, "dropped": {"empty answer": 7, "no assistant turn": 5}}
    write_rows(run_dir / "data" / "data.json", [{"sft": {"world.jsonl": counts}, "pairs": 640}])
    run = {"python": "3.11.7", "versions": {"torch": "2.13.0", "trl": "1.16.0"}, "seed": 0}
    write_rows(run_dir / "run.json", [run | {"device": "cpu", "cpu_threads": 2, "git": "f1ffa25"}])
    preset = "run:\n  seed: 0\nmodel:\n  name_or_path: quickstart/base\nlora:\n  r: 0\n"
    (run_dir / "preset.yaml").write_text(preset, encoding="utf-8")
    return run_dir


def benchmark_row(task: str, model: str, number: int, right: bool) -> dict[str, Any]:
    question = f"Question: A crate holds {number + 3} lamps. How many lamps are in {number} crates?"
    shots = "Question: What is 2 + 2?\nAnswer: 4\n\n" * 5 if model == "base" else ""
    target = str((number + 3) * number)
    return {
        "doc_id": str(number),
        "doc_hash": f"{task}-{number}",
        "score": float(right),
        "metric": "exact_match",
        "prompt": f"{shots}{question}\nAnswer:",
        "answer": f"Each crate holds {number + 3}. The answer is {target if right else number}.",
        "target": target,
        "cluster": None,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def delta_row(
    task: str, delta: float, *, p: float = 0.001, from_: str = "a", to: str = "b"
) -> dict[str, Any]:
    ci = [delta - 0.03, delta + 0.03]
    row = {"task": task, "from": from_, "to": to, "delta": delta, "ci": ci, "n": 300}
    return row | {"p": p / 2, "p_holm": p, "test": "exact McNemar"}
