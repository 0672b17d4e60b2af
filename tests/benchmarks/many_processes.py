"""Compare the chain in several processes (DDP, FSDP2; gloo on a CPU) with one process.

    python tests/benchmarks/many_processes.py [--layouts ddp-2 fsdp-2 ...] [--lora] [--json FILE]

Tiny models in float32. For each layout: the differences of losses, gradient norms and weights of
every stage from one process; whether weights are bit-identical after a kill within a stage, and
with evaluation by epoch; whether a run can change the layout between stages, in both directions;
and, with the weights of one process, whether answers, pairs and scores are byte-identical and
log-probs equal within rounding (other batches round differently). "parts" is FSDP2 with
`eval.in_parts=true`.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from arguments import figures

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "support")]

import torch  # noqa: E402
from chain_process import Chain, Trap, launcher_environment  # noqa: E402
from files import ROOT  # noqa: E402
from kill_resume import CHEAP, EPOCHS, LORA, MODULES  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_models import make_tiny_tokenizer  # noqa: E402
from tiny_world import build_world  # noqa: E402

import dpo.stage  # noqa: E402
import sft.tokenization.prepare  # noqa: E402
from sft.system.atomic_files import read_json, read_jsonl  # noqa: E402

STAGES = ("1-sft-all", "2-sft-dialogue", "3-dpo")
STAGE = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
}
CONFIGS = {"ddp": "ddp.yaml", "fsdp": "fsdp2.yaml", "parts": "fsdp2.yaml"}
LAYOUTS = ("ddp-2", "fsdp-2", "parts-2", "ddp-4", "fsdp-4", "parts-4")
# Double the cap and sample, so that every measure is taken.
MORE = ["eval.repetition.double_cap=true", "eval.repetition.temperature=0.8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=figures)
    given = parser.parse_args()
    for module in MODULES.split():
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="many-processes-") as name:
        world = World(Path(name), LORA[:1] if given.lora else [])
        report = {
            layout: {part: PARTS[part](world, layout) for part in given.parts}
            for layout in given.layouts
        }
    text = json.dumps(report, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


class World:
    """A tiny world, the chain in one process, and starts in other layouts."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, [*CHEAP, *MORE, *options]
        build_world(folder, make_tiny_tokenizer(), **STAGE)
        self.one = folder / "one"
        self.start(self.one, "one")

    def start(self, run: Path, layout: str, *more: str, trap: Trap | None = None) -> None:
        """Run one start in "one" process or a layout; it must succeed or end by the trap."""
        begun = time.monotonic()
        ended = self.chain(run, layout, *more).start(trap)
        fine = set(ended.codes) == {0} if trap is None else ended.codes[0] == -9
        assert fine, (ended.codes, ended.said[-6000:])
        print(f"{layout}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    def chain(self, run: Path, layout: str, *more: str) -> Chain:
        """Return the command to start in "one" process or in a layout."""
        kind, _, count = layout.partition("-")
        environment = {}
        if kind in CONFIGS:
            environment = launcher_environment(ROOT / "recipes" / "accelerate" / CONFIGS[kind])
        if kind == "parts":
            more = (*more, "eval.in_parts=true")
        argv = [str(self.folder / "preset.yaml"), *self.options, *more, f"run.dir={run}"]
        return Chain(self.folder, argv, run=run, processes=int(count or 1), environment=environment)


def trajectory(world: World, layout: str) -> dict:
    """Return the differences from one process, and which process prepared rows and pairs."""
    run, workers = world.folder / layout, world.folder / "workers.txt"
    with (
        noted(sft.tokenization.prepare, "_prepare", workers),
        noted(dpo.stage, "encode_pairs", workers),
    ):
        world.start(run, layout)
    facts = {"processes": read_json(run / "run.json")["num_processes"]}
    facts["prepared by"] = workers.read_text().splitlines()
    workers.unlink()
    return facts | apart(world.one, run)


def noted(module: ModuleType, name: str, file: Path) -> AbstractContextManager:
    """Make every process that calls a function of a module write its rank to a file."""
    work = getattr(module, name)

    def call(*args, **kwargs):
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{os.environ['RANK']}\n")
        return work(*args, **kwargs)

    return patch.object(module, name, call)


def killed(world: World, layout: str) -> dict:
    """Return whether weights are bit-identical after kills in the second checkpoint of a stage."""
    whole, run = world.folder / layout, world.folder / "killed"
    if not whole.exists():
        world.start(whole, layout)
    for stage in STAGES:
        world.start(run, layout, trap=Trap(2, within=f"{stage}/.saving/checkpoint-2"))
    world.start(run, layout)
    mine, theirs = weights(whole), weights(run)
    same = all(torch.equal(mine[name], theirs[name]) for name in mine)
    shutil.rmtree(run)
    return {"kills": len(STAGES), "same bits": same}


def watched(world: World, layout: str) -> dict:
    """Return whether weights are bit-identical with evaluation by epoch, and the steps at which
    each stage was evaluated and checked for loops."""
    whole, run = world.folder / layout, world.folder / "watched"
    if not whole.exists():
        world.start(whole, layout)
    world.start(run, layout, *EPOCHS)
    mine, theirs = weights(whole), weights(run)
    same = all(torch.equal(mine[name], theirs[name]) for name in mine)
    steps = {
        name: [[row["step"] for row in read_jsonl(run / stage / name)] for stage in STAGES]
        for name in ("epochs.jsonl", "loops.jsonl")
    }
    shutil.rmtree(run)
    return {"same bits": same} | steps


def crossed(world: World, layout: str) -> dict:
    """Run the first stage in one layout and the others in another; return the differences."""
    found = {}
    for name, first, then in (("from it", layout, "one"), ("to it", "one", layout)):
        run = world.folder / "crossed"
        world.start(run, first, "sft_dialogue.enabled=false", "dpo.enabled=false")
        written = (run / STAGES[0] / "done.json").stat().st_mtime_ns
        world.start(run, then, "--rerun")
        assert (run / STAGES[0] / "done.json").stat().st_mtime_ns == written
        found[name] = apart(world.one, run)
        shutil.rmtree(run)
    return found


def measured(world: World, layout: str) -> dict:
    """Sample and measure with the weights of one process; return which files differ, and by how
    much."""
    run = world.folder / "measured"
    shutil.copytree(world.one, run)
    for name in ("eval", "3-dpo/pairs"):
        shutil.rmtree(run / name)
    for name in ("results.json", "3-dpo/pairs.jsonl"):
        (run / name).unlink()
    world.start(run, layout, "--rerun")
    files = [*world.one.glob("eval/*/generations*.jsonl"), *world.one.glob("eval/*/scores.json")]
    files += [world.one / "3-dpo" / "pairs.jsonl", world.one / "results.json"]
    names = [str(file.relative_to(world.one)) for file in files]
    other = [n for n in names if (world.one / n).read_bytes() != (run / n).read_bytes()]
    found = {"files": len(names), "other": other, "log_probs": log_probs_apart(world.one, run)}
    shutil.rmtree(run)
    return found


def apart(one: Path, other: Path) -> dict:
    """Return the largest differences between two runs: losses in nats, gradient norms relative, and
    weights relative to the change by the stage. Adam moves weights whose gradient is only rounding
    as far as others, so single weights are not compared."""
    loss = norm = 0.0
    for stage in STAGES:
        for a, b in zip(*(read_jsonl(r / stage / "log.jsonl") for r in (one, other)), strict=True):
            loss = max(loss, abs(a["loss"] - b["loss"]))
            norm = max(norm, abs(a["grad_norm"] / b["grad_norm"] - 1))
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    names = [[key for key in mine if key[0] == stage] for stage in STAGES]
    before = [{}, *({k[1]: mine[k] for k in keys} for keys in names[:-1])]
    base = load_file(one.parent / "base" / "model.safetensors")
    ways = []
    for keys, start in zip(names, before, strict=True):
        off = sum((mine[k] - theirs[k]).square().sum() for k in keys)
        moved = sum((mine[k] - (start or base).get(k[1], 0)).square().sum() for k in keys)
        ways.append((off / moved).sqrt().item())
    return {"loss": loss, "grad_norm": norm, "weights": max(ways)}


def log_probs_apart(one: Path, other: Path) -> float:
    """Return the largest difference between the stored log-probs of two runs."""
    most = 0.0
    for file in one.glob("eval/*/samples/*.jsonl"):
        rows = zip(read_jsonl(file), read_jsonl(other / file.relative_to(one)), strict=True)
        for a, b in rows:
            both = zip(a["log_probs"], b["log_probs"], strict=True)
            most = max(most, *(abs(x - y) for x, y in both))
    return most


def weights(run: Path) -> dict:
    """Return every saved tensor by stage and name, as a user loads it."""
    return {
        (stage, name): tensor
        for stage in STAGES
        for file in (run / stage / "model").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def refused(world: World, layout: str) -> dict:
    """Return impossible numbers of processes that are refused in one sentence before any work."""
    kind, run = layout.partition("-")[0], world.folder / "refused"
    cases = {f"{kind}-3": "is no multiple of 6"}  # 8 rows per step, 2 at a time
    if kind != "ddp":
        cases["fsdp-1"] = "FSDP, which shards weights over processes, and started one"
    found = {}
    for start, words in cases.items():
        ended = world.chain(run, start).start()
        said = [line for line in ended.said.splitlines() if line.startswith("error: ")]
        found[start] = set(ended.codes) == {2} and len(said) == 1 and words in said[0]
        assert not run.exists(), ended.said
    return found


PARTS = {
    "trajectory": trajectory,
    "killed": killed,
    "watched": watched,
    "crossed": crossed,
    "measured": measured,
    "refused": refused,
}

if __name__ == "__main__":
    main()
