"""The chain in several processes (DDP, FSDP2; gloo on a CPU) against the chain in one.

    python tests/benchmarks/many_processes.py [--layouts ddp-2 fsdp-2 ...] [--lora] [--json FILE]

On tiny models in float32. For each layout: how far losses, gradient norms and weights of every
stage lie from those of one process; whether the weights of a run that was killed in the middle of a
stage are the same to the bit, and those of a run that was measured by epoch; whether a run goes on
by another layout from stage to stage, both ways; and, with the weights of one process, whether the
layout's answers, pairs and scores are the same to the byte, and its log-probs within rounding
(other batches, other rounding). "parts" is FSDP2 with `eval.in_parts=true`.
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
# Both double the cap and sample, so that every measure is taken.
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
    """A tiny world, the chain by one process in it, and starts by others."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, [*CHEAP, *MORE, *options]
        build_world(folder, make_tiny_tokenizer(), **STAGE)
        self.one = folder / "one"
        self.start(self.one, "one")

    def start(self, run: Path, layout: str, *more: str, trap: Trap | None = None) -> None:
        """One start by "one" process or a layout; it has to end well, or by the trap."""
        begun = time.monotonic()
        ended = self.chain(run, layout, *more).start(trap)
        fine = set(ended.codes) == {0} if trap is None else ended.codes[0] == -9
        assert fine, (ended.codes, ended.said[-6000:])
        print(f"{layout}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    def chain(self, run: Path, layout: str, *more: str) -> Chain:
        """The command, to be started by "one" process or by those of a layout."""
        kind, _, count = layout.partition("-")
        environment = {}
        if kind in CONFIGS:
            environment = launcher_environment(ROOT / "recipes" / "accelerate" / CONFIGS[kind])
        if kind == "parts":
            more = (*more, "eval.in_parts=true")
        argv = [str(self.folder / "preset.yaml"), *self.options, *more, f"run.dir={run}"]
        return Chain(self.folder, argv, run=run, processes=int(count or 1), environment=environment)


def trajectory(world: World, layout: str) -> dict:
    """Distances of the whole chain from that of one process, and who prepared rows and pairs."""
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
    """Have every process that calls a function of a module write its number into a file."""
    work = getattr(module, name)

    def call(*args, **kwargs):
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{os.environ['RANK']}\n")
        return work(*args, **kwargs)

    return patch.object(module, name, call)


def killed(world: World, layout: str) -> dict:
    """Killed in the second checkpoint of each stage in turn, and started again: the same bits?"""
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
    """Measured at each epoch's end as well: the same bits as without? And at which steps each stage
    was measured, and looked at for loops."""
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
    """The first stage by one layout, the others by the other; distances from one process."""
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
    """The weights of one process, sampled from and measured again: which files differ, how far."""
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
    """Largest distances between two runs: of losses in nats, of gradient norms as a share, and of
    weights as a share of the way that a stage moves them (Adam moves what has no gradient but
    rounding as far as anything else, so single weights tell nothing)."""
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
    """The largest distance between the stored log-probs of two runs."""
    most = 0.0
    for file in one.glob("eval/*/samples/*.jsonl"):
        rows = zip(read_jsonl(file), read_jsonl(other / file.relative_to(one)), strict=True)
        for a, b in rows:
            both = zip(a["log_probs"], b["log_probs"], strict=True)
            most = max(most, *(abs(x - y) for x, y in both))
    return most


def weights(run: Path) -> dict:
    """Every published tensor by stage and name, as a user loads them."""
    return {
        (stage, name): tensor
        for stage in STAGES
        for file in (run / stage / "model").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def refused(world: World, layout: str) -> dict:
    """Numbers of processes that cannot be, each refused in one sentence with nothing begun."""
    kind, run = layout.partition("-")[0], world.folder / "refused"
    cases = {f"{kind}-3": "is no multiple of 6"}  # 8 rows a step, 2 at a time
    if kind != "ddp":
        cases["fsdp-1"] = "FSDP, which spreads weights over processes, and started one"
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
