"""Generate all rows that the quickstart trains on and measures, from one seed.

    python recipes/quickstart/generate/world.py    # data/*.jsonl and their hashes, a few seconds

Pre-training pages are made on the fly (`pages.py`); the rows below are written and committed.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below is no traceback either.
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recipes.quickstart.generate import benchmarks, chats
from recipes.quickstart.generate.gazetteer import make_gazetteer
from recipes.quickstart.generate.manifest import read_manifest, write_manifest
from sft.run.command import run_command

HERE = Path(__file__).parents[1]  # recipes/quickstart
Row = dict[str, Any]

SFT_ROWS = 1400
PREFERENCE_ROWS = 140
BENCHMARK_DOCS = 200
FEW_SHOT_DOCS = 10


def user_texts(rows: list[Row]) -> set[str]:
    """Return all user messages of the rows."""
    return {m["content"] for row in rows for m in row["messages"] if m["role"] == "user"}


def make_world(seed: int) -> dict[str, list[Row]]:
    """Return file stem -> rows; assert that no measured prompt is in a trained row."""
    entities = make_gazetteer(seed)
    sft = chats.sft_rows(seed, entities, total=SFT_ROWS)
    trained = user_texts(sft)
    preference = chats.preference_rows(seed, entities, total=PREFERENCE_ROWS, avoid=trained)
    trained |= user_texts(preference)
    measured = {
        "facts": benchmarks.facts_docs(seed, entities, total=BENCHMARK_DOCS, held_out=True),
        "math": benchmarks.math_docs(seed, total=BENCHMARK_DOCS, held_out=True),
        "code": benchmarks.code_docs(seed, total=BENCHMARK_DOCS, held_out=True),
        "completion": benchmarks.completion_docs(seed, entities, total=BENCHMARK_DOCS),
    }
    for docs in measured.values():
        assert not trained & {doc["prompt"] for doc in docs}
    repetition = chats.repetition_rows(seed, entities, avoid=trained)
    assert not trained & user_texts(repetition)
    return {
        "sft": sft,
        "preference": preference,
        "repetition": repetition,
        **measured,
        "facts_fewshot": benchmarks.facts_docs(seed, entities, total=FEW_SHOT_DOCS, held_out=False),
        "math_fewshot": benchmarks.math_docs(seed, total=FEW_SHOT_DOCS, held_out=False),
        "code_fewshot": benchmarks.code_docs(seed, total=FEW_SHOT_DOCS, held_out=False),
    }


def to_jsonl(rows: list[Row]) -> str:
    """Return the rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_world(seed: int, folder: Path) -> None:
    """Write one .jsonl file per stem."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in make_world(seed).items():
        (folder / f"{stem}.jsonl").write_text(to_jsonl(rows), encoding="utf-8", newline="\n")


def main() -> int:
    """Parse the command line and write; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    args = parser.parse_args()

    def work() -> None:
        write_world(args.seed, args.data)
        if args.data == HERE / "data":
            made = read_manifest(HERE)
            write_manifest(HERE, seed=args.seed, tokens=made["pretraining_tokens"])

    return run_command(work, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
