"""Mistakes in the command lines of scripts end with one sentence, before anything is measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = "tests/benchmarks"
MISTAKES = {
    "dedup_speed.py": (["--rows", "0"], "--rows: 0 is no whole number of at least 1"),
    "prepare_speed.py": (["--rows", "x"], "--rows: x is no whole number of at least 1"),
    "eval_speed.py": (["--json", "nowhere/x.json"], "nowhere is no folder"),
    "train_speed.py": (["--json", "."], ". is no file"),
    "generate_speed.py": ([], "eval/gsm8k_test.jsonl is missing; set TRUING_REAL_DATA"),
    "head_speed.py": (["more"], "unrecognized arguments: more"),
    "kernel_speed.py": (["more"], "unrecognized arguments: more"),
    "merge_loss.py": (["model"], "alpaca_en_first10k.jsonl.gz is missing; set TRUING_REAL_DATA"),
    "train_cases.py": (["sft ours", "nowhere"], "sft.json is missing"),
    "memory_peaks.py": (["--json", "nowhere/x.json"], "nowhere is no folder"),
    "kill_resume.py": (["--kills", "-1"], "--kills: -1 is no whole number of at least 0"),
    "kill_commands.py": (["--json", "nowhere/x.json"], "nowhere is no folder"),
    "many_processes.py": (["--json", "nowhere/x.json"], "nowhere is no folder"),
}


def ended(script: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """What a script says that ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return done.stderr


@pytest.mark.parametrize("script", MISTAKES)
def test_a_mistake_in_a_benchmarks_command_is_said_in_a_sentence(tmp_path, script):
    arguments, expected = MISTAKES[script]
    data = str(tmp_path / "no-data")
    said = ended(f"{BENCHMARKS}/{script}", *arguments, cwd=tmp_path, TRUING_REAL_DATA=data)
    assert "Traceback" not in said and expected in said.splitlines()[-1]


def test_every_benchmark_has_a_mistake_here():
    text = 'if __name__ == "__main__":'
    scripts = {p.name for p in (ROOT / BENCHMARKS).glob("*.py") if text in p.read_text("utf-8")}
    assert scripts == set(MISTAKES)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--no-compile", "--tokens", "5119"], "--tokens 5119 must be 5120 or more"),
        ([], "needs a C++ compiler"),
    ],
)
def test_the_base_is_not_begun_where_it_cannot_be_ended(tmp_path, arguments, expected):
    script = "recipes/quickstart/generate/pretrain.py"
    to = tmp_path / "to"
    said = ended(script, "--out", str(to), *arguments, cwd=tmp_path, PATH="", CXX="")
    assert expected in said and "Traceback" not in said
    assert not to.exists()


@pytest.mark.parametrize("picture", ["nowhere/picture.png", "."])
def test_a_picture_that_cannot_be_drawn_is_refused_before_the_report(tmp_path, picture):
    said = ended("eval/report/__main__.py", str(tmp_path), picture, cwd=tmp_path)
    assert said == f"\nerror: {picture} is a folder, or lies in none; give a path for the picture\n"


def test_the_report_says_how_it_is_called():
    command = [sys.executable, "-m", "eval.report", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m eval.report ")
