"""Launcher configurations as accelerate reads them, and the Slurm script with faked commands."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from files import ROOT

FOLDER = ROOT / "recipes" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


def test_there_is_one_for_each_way():
    ways = {"cpu", "mps", "single_gpu", "ddp", "fsdp2", "zero3", "multi_node"}
    assert {path.stem for path in CONFIGS} == ways


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "multi_node": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds.get(path.stem, "NO")
    assert config.use_cpu == (path.stem == "cpu")
    given = yaml.safe_load(path.read_text())
    # accelerate takes each key of fsdp_config and deepspeed_config as an option of its own.
    options = {action.dest for action in launch_command_parser()._actions}
    nested = {**(given.get("fsdp_config") or {}), **(given.get("deepspeed_config") or {})}
    assert set(nested) <= options
    if config.distributed_type == "FSDP":
        assert nested["fsdp_version"] == 2
        # The preset says whether activations are kept; twice would compute them twice.
        assert nested["fsdp_activation_checkpointing"] is False
        assert nested["fsdp_cpu_ram_efficient_loading"] is False
    assert given["mixed_precision"] == "no", "the preset decides"


def test_the_cpu_configuration_launches_a_recipe():
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file"]
    done = subprocess.run(
        [*accelerate, FOLDER / "cpu.yaml", "recipes/export.py", "no", "--to", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "no is no run's folder" in done.stderr and done.returncode != 0


@pytest.fixture
def slurm(tmp_path):
    """Return a folder of commands that record their calls, and a job's environment."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fakes = {
        "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@"; fi',
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
    }
    for name, body in fakes.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)
    job = {"SLURM_JOB_ID": "20007", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    job |= {"SLURM_GPUS_ON_NODE": "8", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def start(command, *arguments):
        file = tmp_path / ".venv" / "bin" / "accelerate"
        file.write_text(f"#!/bin/bash\n{command}\n")
        file.chmod(0o755)
        return subprocess.Popen(
            ["bash", str(FOLDER / "slurm.sh"), *arguments],
            cwd=tmp_path,
            env=os.environ | job,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_slurm_launches_a_rank_on_every_node(slurm):
    out, _ = slurm(
        'printf "%s\\n" "$@"', "preset.yaml", "data.sft=[{path: a b.jsonl}]"
    ).communicate()
    words = out.splitlines()
    assert words[0] == "launch"
    for option, value in {
        "--config_file": "recipes/accelerate/multi_node.yaml",
        "--num_machines": "2",
        "--num_processes": "16",
        "--machine_rank": "1",
        "--main_process_ip": "node1",
        "--main_process_port": "20007",
    }.items():
        if option == "--main_process_port":
            value = str(20000 + 20007 % 20000)
        assert words[words.index(option) + 1] == value
    assert words[-3:] == ["recipes/sft_then_dpo.py", "preset.yaml", "data.sft=[{path: a b.jsonl}]"]


def test_slurm_puts_the_job_back_into_the_queue_before_the_limit(slurm):
    job = slurm("echo started; exec sleep 60", "preset.yaml")
    assert job.stdout.readline() == "started\n"
    began = time.monotonic()
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=30)
    assert "requeue 20007" in out and job.returncode == 0
    assert time.monotonic() - began < 30


def test_slurm_fails_where_training_fails_and_names_a_missing_preset(slurm):
    job = slurm("exit 3", "preset.yaml")
    job.communicate()
    assert job.returncode == 3
    job = slurm("exit 0")
    assert "no preset" in job.communicate()[0] and job.returncode == 2
