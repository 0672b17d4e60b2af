"""Kill the commands around the chain at random instants, restart them, and compare the results.

    python tests/benchmarks/kill_commands.py [--launched N] [--exports N] [--comparisons N]
                                             [--answers N] [--json FILE] [--seed S]

The commands are `accelerate launch` of the chain (one and two processes; the signal goes to the
launcher or to all processes), `export.py`, `base_vs_chat.py` and `open_ended.py` (without a judge).
Each gets SIGKILL, SIGTERM, SIGINT or SIGHUP until it ends without one. Its result must equal that
of an undisturbed start; the run that it reads and the files next to its outputs must not change.
"""

import argparse
import importlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from arguments import count_or_none, figures
from kill_resume import CHEAP, LORA, MODULES, MOST, STAGE, coin, ended_by, outcome

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

from chain_process import Chain, Ended, Launched  # noqa: E402
from tiny_models import make_tiny_tokenizer  # noqa: E402
from tiny_world import build_world  # noqa: E402

from sft.system.atomic_files import file_hash, read_json, write_jsonl  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAUNCHES = {
    "accelerate launch": ["--cpu", "--num_processes", "1"],
    "accelerate launch, 2 processes": [
        *("--config_file", str(ROOT / "recipes/accelerate/ddp.yaml")),
        *("--num_processes", "2", "--main_process_port", "0"),
    ],
}
# Starts a command with the given disturbance; returns how it ended.
Start = Callable[..., Ended]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launched", type=count_or_none, default=10)
    parser.add_argument("--exports", type=count_or_none, default=10)
    parser.add_argument("--comparisons", type=count_or_none, default=10)
    parser.add_argument("--answers", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=figures)
    given = parser.parse_args()
    for module in (
        f"{MODULES} recipes.export recipes.base_vs_chat recipes.open_ended sft.export.merge".split()
    ):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="kill-commands-") as folder:
        report = measure(Path(folder), given)
    text = json.dumps(report, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    sys.exit(0 if all(set(tally.values()) == {tally["hits"]} for tally in report.values()) else 1)


def measure(folder: Path, given: argparse.Namespace) -> dict:
    lot = random.Random(given.seed)
    build_world(folder, make_tiny_tokenizer(), **STAGE)
    neighbours = plant(folder)
    report = {}
    finished = folder / "finished"
    argv = [str(folder / "preset.yaml"), *CHEAP, *LORA]
    ended = Chain(folder, [*argv, f"run.dir={finished}"], run=finished).start()
    assert ended.codes == (0,), ended.said[-3000:]
    source = contents(finished)
    if given.exports:
        to = folder / "out"
        command = Chain(folder, [str(finished), "--to", str(to)], run=to, recipe="export")
        report["export"] = hit(command.start, to, lot, given.exports, result=contents)
    if given.comparisons:
        to = folder / "compared"
        models = ["--base", str(folder / "base"), "--chat", str(finished)]
        asked = ["--tasks", "sums", "--task-dir", str(folder / "tasks"), "--cap", "64"]
        asked += ["--prompts", str(folder / "prompts.jsonl"), "--to", str(to)]
        command = Chain(folder, [*models, *asked], run=to, recipe="base_vs_chat")
        report["base_vs_chat"] = hit(command.start, to, lot, given.comparisons, result=measured)
    if given.answers:
        to, questions = folder / "answered", folder / "questions.jsonl"
        rows = [{"question_id": n, "category": "stem", "turns": [f"{n}?"]} for n in range(40)]
        write_jsonl(questions, rows)
        models = ["--model", f"base={folder / 'base'}", "--model", f"dpo={finished}"]
        asked = ["--questions", str(questions), "--cap", "32", "--to", str(to)]
        command = Chain(folder, [*models, *asked], run=to, recipe="open_ended")
        report["open_ended"] = hit(command.start, to, lot, given.answers, result=answered)
    assert contents(finished) == source, "a command that reads a run has changed it"
    for name, options in LAUNCHES.items() if given.launched else ():
        run = folder / "run"
        count = given.launched // len(LAUNCHES) or 1
        command = Launched(folder, [*argv, f"run.dir={run}"], options=options)
        report[name] = hit(command.start, run, lot, count, result=outcome)
    assert all(path.read_text() == text for path, text in neighbours.items()), "a file was lost"
    return report


def plant(folder: Path) -> dict[Path, str]:
    """Write user files next to, and named like, the outputs of the commands."""
    names = ("thesis.txt", "out.tmp/thesis.txt", "run.tmp/thesis.txt", "compared.tmp/thesis.txt")
    planted = {folder / name: f"words of {name}" for name in names}
    for path, text in planted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return planted


def hit(
    start: Start, to: Path, lot: random.Random, count: int, *, result: Callable[[Path], dict]
) -> dict:
    """Return the disturbed starts, how many exited with the signal, and which results are equal."""
    begun = time.monotonic()
    ended = start()
    assert set(ended.codes) == {0}, ended.said[-3000:]
    unbroken, seconds = result(to), time.monotonic() - begun
    around = {path.name for path in to.parent.iterdir()}
    shutil.rmtree(to)
    tally: Counter = Counter(hits=0, in_order=0, equal=0)
    while tally["hits"] < count:
        hits = orderly = 0
        while True:
            signum = lot.choice(SIGNALS)
            after = lot.uniform(0, seconds) if hits < min(MOST, count - tally["hits"]) else None
            ended = start(after=after, signum=signum, **way(start, lot))
            if set(ended.codes) == {0}:
                break
            hits += 1
            fine = in_order(start, ended, signum)
            orderly += fine
            if not fine:
                print(signum, ended.codes, ended.said[-2500:], file=sys.stderr)
            if set(ended.codes) & {1, 2} and "in use by" in ended.said:
                print(ended.said[-500:], file=sys.stderr)
        same = result(to) == unbroken and {path.name for path in to.parent.iterdir()} == around
        tally.update(hits=hits, in_order=orderly, equal=hits * same)
        print(f"{to.name}: {tally['hits']} hits, {tally['equal']} equal", file=sys.stderr)
        shutil.rmtree(to)
    return dict(tally)


def way(start: Start, lot: random.Random) -> dict[str, bool]:
    """Return the processes that get the signal."""
    name = "launcher_alone" if isinstance(start.__self__, Launched) else "all_ranks"
    return {name: coin(lot)}


def in_order(start: Start, ended: Ended, signum: int) -> bool:
    """Return whether a disturbed start exited as expected. `accelerate launch --quiet` returns 1
    for any exit of its process; the launcher of several processes adds a traceback."""
    if signum == signal.SIGKILL:
        return True
    if not isinstance(start.__self__, Launched):
        return ended_by(ended, signum)
    ours = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    return ended.codes[0] in (1, 128 + signum, -signum) and not ours


def measured(to: Path) -> dict:
    """Return the results and answers of a comparison."""
    files = {str(p.relative_to(to)): file_hash(p) for p in sorted(to.glob("eval/**/*.jsonl"))}
    return {"results": read_json(to / "results.json"), "files": files}


def answered(to: Path) -> dict:
    """Return every answer of `open_ended.py`."""
    return contents(to / "answers")


def contents(folder: Path) -> dict:
    """Return the hash of every file of a folder, except locks."""
    return {
        str(path.relative_to(folder)): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


if __name__ == "__main__":
    main()
