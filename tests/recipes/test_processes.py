"""The chain in several processes: DDP and FSDP2 on a CPU (benchmarks/many_processes.py)."""

import os
import subprocess
import sys
from functools import partial

import pytest
from files import ROOT
from launching import long, reported_by
from tiny_world import build_world, foreign_files

from sft.system.atomic_files import read_json

# Adam moves weights without a gradient but rounding too, hence the share of their way.
ROUNDING = {"loss": 1e-4, "grad_norm": 1e-3, "weights": 0.02}


many_processes = partial(reported_by, "many_processes.py")


def check(report, *, parts):
    for layout, found in report.items():
        assert set(found) == set(parts)
        near = [found["trajectory"]] if "trajectory" in parts else []
        near += found["crossed"].values() if "crossed" in parts else []
        for distances in near:
            assert all(distances[name] <= ROUNDING[name] for name in ROUNDING), (layout, distances)
        if "trajectory" in parts:
            assert found["trajectory"]["processes"] == int(layout.split("-")[1])
            assert found["trajectory"]["prepared by"] == ["0", "0"], "rows and pairs, once each"
        if "killed" in parts:
            assert found["killed"]["same bits"], layout
        if "watched" in parts:
            assert found["watched"]["same bits"], layout
            # Of pairs there are as many as answers differ, for one step an epoch or two.
            ends, looks = found["watched"]["epochs.jsonl"], found["watched"]["loops.jsonl"]
            assert ends in ([[3, 6], [2, 4], last] for last in ([1, 2], [2, 4]))
            assert looks == [[0, 1, 3, 4], [0, 1, 2, 3], [0, 1, 2, 3][: ends[2][1]]]
        if "measured" in parts:
            assert found["measured"]["other"] == [] and found["measured"]["files"] == 18, layout
            assert found["measured"]["log_probs"] <= 1e-4
        if "refused" in parts:
            assert all(found["refused"].values()), found["refused"]


@pytest.mark.slow
def test_two_shards_go_the_way_of_one_process_and_measure_the_same(tmp_path):
    """The weights are sharded, and no process ever holds all of them."""
    parts = ("trajectory", "watched", "measured", "refused")
    check(many_processes(tmp_path, "--layouts", "parts-2", "--parts", *parts), parts=parts)


@long
@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora"]], ids=["full", "lora"])
def test_two_and_four_processes_go_the_way_of_one_and_on_from_a_kill(tmp_path, lora):
    parts = ("trajectory", "killed", "watched", "crossed", "measured")
    layouts = ["ddp-2", "fsdp-2", "ddp-4", "fsdp-4", *["parts-2", "parts-4"] * (not lora)]
    report = many_processes(tmp_path, "--layouts", *layouts, "--parts", *parts, *lora)
    assert list(report) == layouts
    check(report, parts=parts)


@long
@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_accelerate_launches_two_processes(tmp_path, tiny_tokenizer, config):
    world = build_world(tmp_path, tiny_tokenizer)
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"),
        *("--main_process_port", "0", "--config_file", ROOT / f"recipes/accelerate/{config}.yaml"),
        *(ROOT / "recipes/sft_then_dpo.py", world / "preset.yaml"),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(world / "run" / "run.json")["num_processes"] == 2
    assert (world / "run" / "report.html").is_file()
    assert foreign_files(world / "run") == []
