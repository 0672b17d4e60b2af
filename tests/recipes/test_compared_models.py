"""base_vs_chat.py on the tiny world: stored tasks, prompt formats, refused comparisons."""

import shutil
from pathlib import Path

import pytest
from chain_runs import times
from files import ROOT
from tiny_models import make_tiny_model
from tiny_world import TASK
from transformers import AutoTokenizer

from recipes import base_vs_chat
from sft.system.atomic_files import read_json

PAPER = ROOT / "recipes" / "paper"


def test_tasks_are_stored_one_by_one_and_all_models_are_measured_in_one_format(world, capsys):
    (world / "tasks" / "sums.yaml").write_text(TASK + "metadata: {version: 1.0}\n")
    broken = TASK.replace("task: sums", "task: late").replace("{{gold}}", "{{answer}}")
    (world / "tasks" / "late.yaml").write_text(broken)
    make_tiny_model(seed=1).save_pretrained(world / "other")
    AutoTokenizer.from_pretrained(world / "base").save_pretrained(world / "other")
    given = ["--base", str(world / "base"), "--chat", str(world / "other"), "--base-shots", "2"]
    given += ["--task-dir", str(world / "tasks"), "--to", str(world / "two")]
    given += ["--same-format", "plain"]
    # A task that cannot be loaded is found before a model is loaded or anything is measured.
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 2
    assert "task late cannot be loaded" in capsys.readouterr().err
    assert times(world / "two" / "eval") == {}
    # What is measured stays, with its samples, when the next start is refused.
    assert base_vs_chat.main([*given, "--tasks", "sums"]) == 0
    before = times(world / "two" / "eval" / "base")
    assert "samples/sums.jsonl" in before and "kept/protocol/sums.json" in before
    before = {name: before[name] for name in ("samples/sums.jsonl", "kept/protocol/sums.json")}
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 2
    (world / "tasks" / "late.yaml").write_text(TASK.replace("task: sums", "task: late"))
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 0
    now = times(world / "two" / "eval")
    assert all(now[f"base/{name}"] == time for name, time in before.items())
    # Another definition of one task measures that task again, alone.
    (world / "tasks" / "late.yaml").write_text(TASK.replace("task: sums", "task: late") + "\n")
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 0
    assert times(world / "two" / "eval") == now
    changed = TASK.replace("task: sums", "task: late").replace("Question", "Q")
    (world / "tasks" / "late.yaml").write_text(changed)
    assert base_vs_chat.main([*given, "--tasks", "late,sums"]) == 0
    later = times(world / "two" / "eval")
    redone = {name for name in now if later[name] != now[name]}
    assert {Path(name).stem for name in redone} == {"late", "scores", "done"}

    results = read_json(world / "two" / "results.json")
    plain = results["same_format"]["plain"]
    one = plain["benchmarks"]["sums"]
    assert one["base"] == results["benchmarks"]["sums"]["base"]
    assert (one["chat"]["shots"], one["chat"]["chat_template"]) == (2, False)
    # base -> chat of the protocol = base -> chat in one format + what the format does to chat.
    row = next(d for d in results["deltas"] if d["task"] == "sums")
    same = next(d for d in plain["deltas"] if d["task"] == "sums")
    share = next(d for d in plain["formats"] if d["task"] == "sums")
    assert share["model"] == "chat"
    assert row["delta"] == pytest.approx(same["delta"] + share["delta"])
    assert "## Same prompt format" in (world / "two" / "report.md").read_text()


def test_impossible_comparisons_are_refused_in_one_sentence(world, capsys):
    def sentence(*given):
        assert base_vs_chat.main([*given, "--to", str(world / "two")]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        return line

    base = str(world / "base")
    assert "name a model (--base, --chat) or measures" in sentence("--tasks", "copa")
    assert "--samples runs/nope: no such file or folder" in sentence(
        *("--base", base, "--samples", "runs/nope", "--tasks", "copa")
    )
    assert "give --tasks, --prompts or --safety" in sentence("--base", base, "--chat", base)
    nowhere = sentence(
        *("--base", base, "--chat", base, "--tasks", "copa"),
        *("--task-dir", str(PAPER / "tasks"), "--data-dir", "/nothere"),
    )
    assert "eval.data_dir=/nothere is no folder" in nowhere
    assert "two of what is compared are called 'base'" in sentence(
        "--base", base, "--samples", base
    )
    assert "overrides a preset; name one" in sentence(
        "--base", base, "--chat", base, "eval.limit=1"
    )
    assert "holds nothing measured" in sentence(
        "--samples", base, "--samples", str(world / "tasks")
    )
    assert "is no name for a folder" in sentence("--base", base, "--chat", f"../up={base}")
    measured = ["--tasks", "sums", "--task-dir", str(world / "tasks"), "--base-shots", "2"]
    assert (
        base_vs_chat.main(["--base", base, "--chat", base, *measured, "--to", str(world / "two")])
        == 0
    )
    make_tiny_model(seed=1).save_pretrained(world / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(world / "other")
    other = sentence("--base", base, "--chat", str(world / "other"), *measured)
    assert "holds measures of another model" in other and "NAME=PATH" in other
    # A file in the place of a folder: as with a full disk, what was measured before is kept.
    shutil.rmtree(world / "two" / "eval" / "chat" / "samples")
    (world / "two" / "eval" / "chat" / "samples").write_text("")
    assert "cannot be written" in sentence("--base", base, "--chat", base, *measured)
