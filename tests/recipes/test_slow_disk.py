"""The chain on a slow disk, and without space for temporary files."""

import json
import os
import subprocess
import sys

import pytest
from files import ROOT

SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, "tests/support")
from chain_process import FAULTS, Chain, Trap
from tiny_models import make_tiny_tokenizer
from tiny_world import build_world
import dpo.stage, eval.results.stage_gate, eval.measures.measure, eval.tasks.questions
import eval.results.results, sft.planning.budget, sft.training.stage

world = build_world(Path(sys.argv[1]), make_tiny_tokenizer())
short = ["sft_dialogue.enabled=false", "dpo.enabled=false", "eval.repetition.prompts=null"]

def start(name, *more, **trap):
    run = world / name
    chain = Chain(world, [str(world / "preset.yaml"), *short, f"run.dir={run}", *more], run=run)
    ended = chain.start(Trap(**trap))
    model = run / "1-sft-all" / "model" / "model.safetensors"
    told = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    return {"code": ended.codes[0], "touches": ended.touches, "told": told, "said": ended.said,
            "model": model.read_bytes().hex()[-4000:] if model.is_file() else None}

places = ["TMPDIR", "/tmp", "/var/tmp", "/usr/tmp", os.getcwd()]
os.environ["TMPDIR"] = places[0] = str(world / "temporary")
Path(places[0]).mkdir()
quick = start("quick")
early = quick["touches"] // 8  # of writes alone: reading is not refused
print(json.dumps({
    "quick": quick,
    "faults": {os.strerror(n): start(f"fault-{n}", at=early + 3 * i, fault=n)
               for i, n in enumerate(FAULTS)},
    "again": start(f"fault-{FAULTS[0]}"),
    "slow": start("slow", pause=0.01),
    "own": start("own", full=(places[0],)),
    "all": start("all", "--dry-run", full=tuple(places)),
}))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return how these runs ended, forked from one process that has imported everything."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("load"))]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_on_a_slow_disk_a_run_ends_as_on_a_quick_one(ended):
    assert (ended["quick"]["code"], ended["slow"]["code"]) == (0, 0), ended["slow"]["said"]
    assert ended["quick"]["model"] == ended["slow"]["model"]
    assert ended["slow"]["touches"] > 50


def test_a_disk_that_refuses_a_write_ends_the_run_in_one_sentence_and_spoils_nothing(ended):
    assert len(ended["faults"]) == 4
    for reason, start in ended["faults"].items():
        assert start["code"] in (1, 2) and "Traceback" not in start["said"], start["said"]
        (sentence,) = start["told"]
        assert reason in sentence and "same command again" in sentence
    assert ended["again"]["code"] == 0
    assert ended["again"]["model"] == ended["quick"]["model"]


def test_a_full_folder_for_temporary_files_is_avoided(ended):
    assert ended["own"]["code"] == 0, ended["own"]["said"]
    assert ended["own"]["model"] == ended["quick"]["model"]


def test_without_space_for_temporary_files_the_error_is_one_sentence(ended):
    assert ended["all"]["code"] == 1 and "Traceback" not in ended["all"]["said"]
    (sentence,) = ended["all"]["told"]
    assert "no folder for temporary files can be written" in sentence and "set TMPDIR" in sentence
