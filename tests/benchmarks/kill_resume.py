"""Kill the chain at random instants of every stage, resume it, and compare with a full run.

    python tests/benchmarks/kill_resume.py [--kills N] [--faults N] [--json FILE] [--seed S]

Tiny models on a CPU, in float32, two epochs with accumulated gradients: full fine-tuning, LoRA with
dropout, two processes, and evaluation by epoch. Half of the kills are timed, half happen at a file
access. A run is restarted and killed again until it ends; it is equal if its weights are
bit-identical, and log.jsonl, pairs and results.json are equal except for times. `--faults` adds
starts in which a write fails (disk full, quota, read-only, permissions): they must end in one
sentence and lose nothing. `--requeues` adds starts that a scheduler, terminal or user ends by a
signal to all processes, including data workers, followed by the same command.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from arguments import count_or_none, figures

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

from chain_process import FAULTS, Chain, Ended, Trap  # noqa: E402
from tiny_models import make_tiny_tokenizer  # noqa: E402
from tiny_world import build_world  # noqa: E402

from sft.system.atomic_files import read_json, read_jsonl  # noqa: E402
from sft.training.throughput import MEASURED  # noqa: E402

# Imported once, before the first fork.
MODULES = (
    "recipes.sft_then_dpo dpo.stage eval.graders.rule_judge eval.measures.measure "
    "eval.tasks.questions eval.backends.sampling eval.report.tables sft.tokenization.input_hashes "
    "sft.training.stage sft.model.vocabulary sft.planning.stages lm_eval.tasks matplotlib.pyplot"
)
STAGE = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
    "logging_steps": 2,
}
CHEAP = ["eval.repetition.cap=64", "pairs.samples_per_prompt=2"]
LORA = ["lora.r=4", "lora.lora_dropout=0.1"]
WORKERS = [f"{stage}.dataloader_num_workers=2" for stage in ("sft_all", "sft_dialogue", "dpo")]
EPOCHS = ["eval.each_epoch={enabled: true, prompts: 3, limit: 4}"]
VARIANTS = {
    "full": ([], 1),
    "lora": (LORA, 1),
    "full, 2 processes": ([], 2),
    "lora by epoch": ([*LORA, *EPOCHS], 1),
    "full by epoch, 2 processes": (EPOCHS, 2),
    "lora, data workers": ([*LORA, *WORKERS], 1),
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
MOST = 12  # kills per run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=count_or_none, default=100)
    parser.add_argument("--faults", type=count_or_none, default=0)
    parser.add_argument("--requeues", type=count_or_none, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=figures)
    parser.add_argument("--within", default="", help="kill on touches of such paths alone")
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    given = parser.parse_args()
    for module in MODULES.split():
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as folder:
        report = measure(Path(folder), given)
    text = json.dumps(report, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    whole = report["equal"] == report["kills"] and all(
        set(tally.values()) == {tally["starts"]}
        for tally in (*report.get("faults", {}).values(), report.get("requeues", {"starts": 0}))
    )
    sys.exit(0 if whole else 1)


def measure(folder: Path, given: argparse.Namespace) -> dict:
    lot = random.Random(given.seed)
    build_world(folder, make_tiny_tokenizer(), **STAGE)
    unbroken = {name: run_unbroken(folder, name, given.within) for name in given.variants}
    kills, equal = 0, 0
    where: dict[str, Counter] = {}
    while kills < given.kills:
        name = given.variants[kills % len(given.variants)]
        left = given.kills - kills
        places, same = kill_until_done(folder, name, unbroken[name], lot, left, given.within)
        for place in places:
            where.setdefault(place, Counter()).update(kills=1, equal=int(same))
        kills, equal = kills + len(places), equal + same * len(places)
        print(f"{kills} kills, {equal} equal ({name}: {', '.join(places)})", file=sys.stderr)
    report = {"kills": kills, "equal": equal, "where": {k: dict(where[k]) for k in sorted(where)}}
    if given.faults:
        report["faults"] = fail_writes(folder, unbroken, lot, given.faults)
    if given.requeues:
        report["requeues"] = preempt(folder, unbroken, lot, given.requeues)
    return report


def chain(folder: Path, variant: str, run: Path) -> Chain:
    options, processes = VARIANTS[variant]
    argv = [str(folder / "preset.yaml"), *CHEAP, *options, f"run.dir={run}"]
    return Chain(folder, argv, run=run, processes=processes)


def run_unbroken(folder: Path, variant: str, within: str) -> dict:
    run = folder / variant.replace(", ", "-").replace(" ", "-")
    begun = time.monotonic()
    ended = chain(folder, variant, run).start(Trap(sys.maxsize, within=within))
    assert set(ended.codes) == {0}, ended.said[-3000:]
    facts = {"outcome": outcome(run), "seconds": time.monotonic() - begun, "touches": ended.touches}
    print(f"{variant}: {facts['seconds']:.1f} s, {ended.touches} touches of files", file=sys.stderr)
    shutil.rmtree(run)
    return facts


def kill_until_done(
    folder: Path, variant: str, unbroken: dict, lot: random.Random, most: int, within: str
) -> tuple[list[str], bool]:
    """Return the places of the kills, and whether the finished run is equal."""
    run = folder / "run"
    command = chain(folder, variant, run)
    places: list[str] = []
    while True:
        if len(places) >= min(MOST, most):
            ended = command.start()
        elif within or coin(lot):
            trap = Trap(lot.randint(1, unbroken["touches"]), within=within)
            ended = command.start(trap, all_ranks=coin(lot))
        else:
            ended = command.start(after=lot.uniform(0, unbroken["seconds"]), all_ranks=coin(lot))
        if set(ended.codes) == {0}:
            same = outcome(run) == unbroken["outcome"]
            shutil.rmtree(run)
            if places or not most:
                return places, same
        elif ended.codes[0] != -9:
            print(ended.said[-3000:], file=sys.stderr)
            shutil.rmtree(run, ignore_errors=True)
            return [*places, f"could not go on: {phase(ended.last)}"], False
        else:
            places.append(phase(ended.last))


def fail_writes(folder: Path, unbroken: dict, lot: random.Random, count: int) -> dict:
    """Return for each fault: starts, how many printed one sentence, how many runs are equal."""
    found: dict[str, Counter] = {}
    run = folder / "run"
    for i in range(count):
        variant = [v for v in unbroken if VARIANTS[v][1] == 1][i % 2]
        fault = FAULTS[i % len(FAULTS)]
        command = chain(folder, variant, run)
        ended = command.start(Trap(lot.randint(1, unbroken[variant]["touches"] // 2), fault))
        if ended.codes == (0,):  # there are fewer writes
            shutil.rmtree(run)
            continue
        sentences = [line for line in ended.said.splitlines() if line.startswith("error: ")]
        clear = ended.codes[0] in (1, 2) and len(sentences) == 1 and "Traceback" not in ended.said
        again = command.start()
        same = set(again.codes) == {0} and outcome(run) == unbroken[variant]["outcome"]
        if not (clear and same):
            print(ended.codes, ended.last, ended.said[-2500:], again.said[-1500:], file=sys.stderr)
        tally = found.setdefault(os.strerror(fault), Counter())
        tally.update({"starts": 1, "one sentence": int(clear), "equal": int(same)})
        shutil.rmtree(run, ignore_errors=True)
    return {name: dict(tally) for name, tally in found.items()}


def preempt(folder: Path, unbroken: dict, lot: random.Random, count: int) -> dict:
    """Return the starts that got a signal, how many exited with it, and which runs are equal."""
    tally: Counter = Counter(starts=0, own_code=0, equal=0)
    run = folder / "run"
    while tally["starts"] < count:
        variant = lot.choice(list(unbroken))
        command = chain(folder, variant, run)
        reached = orderly = 0
        while True:
            after = lot.uniform(0, unbroken[variant]["seconds"]) if reached < MOST else None
            signum = lot.choice(SIGNALS)
            ended = command.start(after=after, signum=signum)
            if set(ended.codes) == {0}:
                break
            reached += 1
            fine = ended_by(ended, signum)
            orderly += fine
            if not fine:
                print(signum, ended.codes, ended.last, ended.said[-2500:], file=sys.stderr)
        same = outcome(run) == unbroken[variant]["outcome"]
        tally.update(starts=reached, own_code=orderly, equal=reached * same)
        print(f"{tally['starts']} signals, {tally['equal']} equal", file=sys.stderr)
        shutil.rmtree(run)
    return dict(tally)


def ended_by(ended: Ended, signum: int) -> bool:
    """Return whether a signal ended a start as expected: 128 + n, no traceback. Before the command
    runs, the signal has its default effect."""
    codes = {128 + signum} if ended.touches else {128 + signum, -signum}
    usual = ended.touches == 0 and signum == signal.SIGINT  # Python's own KeyboardInterrupt
    return usual or (set(ended.codes) <= codes and "Traceback" not in ended.said)


def coin(lot: random.Random) -> bool:
    return lot.random() < 0.5


def outcome(run: Path) -> dict:
    """Return what must be equal: every byte of weights, every number except times."""
    weights = {
        str(p.relative_to(run)): p.read_bytes() for p in run.glob("[123]-*/model/*.safetensors")
    }
    logs = {p.parent.name: read_jsonl(p) for p in run.glob("[123]-*/log.jsonl")}
    for entry in (entry for lines in logs.values() for entry in lines):
        for key in [k for k in entry if "runtime" in k or "per_second" in k or k in MEASURED]:
            del entry[key]
    results = read_json(run / "results.json")
    for facts in results["stages"].values():
        facts.pop("seconds")
    pairs = read_jsonl(run / "3-dpo" / "pairs.jsonl")
    return {"weights": weights, "logs": logs, "results": results, "pairs": pairs}


def phase(place: str) -> str:
    """Return the phase of the chain, by the file that it accessed last."""
    top, _, rest = place.partition("/")
    if top[:2] in ("1-", "2-", "3-"):
        for part, name in (
            (".saving", "saving"),
            ("checkpoint-", "saving"),
            (".gone-", "saving"),
            ("reference", "reference log-probs"),
            ("epochs", "measuring by epoch"),
            (".epochs", "measuring by epoch"),
            ("loops", "looking for loops"),
            (".loops", "looking for loops"),
            ("pairs", "pairs"),
            (".model.tmp", "publishing"),
            ("model", "publishing"),
        ):
            if rest.startswith(part):
                return f"{top}: {name}"
        return f"{top}: training"
    if top in ("data", "eval", "base"):
        return f"{top}/{rest.partition('/')[0]}" if top == "eval" else top
    return "start and report"


if __name__ == "__main__":
    main()
