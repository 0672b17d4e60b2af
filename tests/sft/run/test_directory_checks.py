"""Checks of a run directory: it contains no input of the run, and no link leads out of it."""

import os
from pathlib import Path

import pytest

from recipes import base_vs_chat, export, open_ended, sft_then_dpo
from sft.config.preset import find_path, load_preset
from sft.errors import UserError
from sft.run.directory_checks import check_run_dir

PRESET = """
# a comment of the user's
model: {name_or_path: models/base}
data:
  sft: [{path: chats/rows.jsonl}]
  decontaminate: [questions/own.jsonl]
pairs: {prompts: [{path: prompts/pairs.jsonl}]}
eval: {task_dir: tasks, repetition: {prompts: asked/rep.jsonl}, safety: {prompts: safe/s.jsonl}}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of the user's, who works in a folder beside it."""
    mine, work = tmp_path / "mine", tmp_path / "work"
    files = ("presets/preset.yaml", "models/base/config.json", "chats/rows.jsonl", "tasks/a.yaml")
    more = ("questions/own.jsonl", "prompts/pairs.jsonl", "asked/rep.jsonl", "safe/s.jsonl")
    for name in (*files, *more):
        path = (mine if "preset" in name else work) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PRESET)
    monkeypatch.chdir(work)
    return mine


@pytest.mark.parametrize(
    "folder",
    [
        *(".", "~/", "..", "/", "../mine", "../mine/presets", "link"),
        *("models/base", "models", "chats", "tasks", "questions", "prompts", "asked", "safe"),
    ],
)
def test_a_folder_that_holds_what_is_read_is_no_run_directory(mine, folder):
    Path("link").symlink_to(mine / "presets")
    file = mine / "presets" / "preset.yaml"
    preset = load_preset(file, overrides=[f"run.dir={folder}"])
    with pytest.raises(UserError, match=r"which is or holds .*; give another folder"):
        check_run_dir(preset, read=[file])


@pytest.mark.parametrize("folder", ["runs/a", "chats/run", "../mine/run", "tasks/x"])
def test_folders_next_to_and_below_inputs_are_accepted(mine, folder):
    file = mine / "presets" / "preset.yaml"
    check_run_dir(load_preset(file, overrides=[f"run.dir={folder}"]), read=[file])


@pytest.mark.parametrize("more", [[], ["--fresh"], ["--dry-run"]])
def test_the_folder_of_the_preset_is_refused_and_stays_as_it_is(mine, more, capsys):
    presets = mine / "presets"
    (presets / "thesis.txt").write_text("years of work")
    command = [str(presets / "preset.yaml"), f"run.dir={presets}", *more]
    assert sft_then_dpo.main(command) == 2
    assert "preset.yaml: the folder of a run holds" in capsys.readouterr().err
    assert (presets / "preset.yaml").read_text() == PRESET
    assert sorted(os.listdir(presets)) == ["preset.yaml", "thesis.txt"]


def test_the_other_recipes_hold_to_it_too(mine, capsys):
    assert base_vs_chat.main(["--base", "models/base", "--tasks", "a", "--to", "models"]) == 2
    assert "results cannot go to models" in capsys.readouterr().err
    assert sorted(os.listdir("models")) == ["base"]


@pytest.mark.parametrize("place", ["1-sft-all", "3-dpo/model/deep", "link"])
@pytest.mark.parametrize("marker", [[".run.jsonl"], ["run.json", "preset.yaml"]])
def test_results_do_not_go_into_a_run(mine, tmp_path, capsys, place, marker):
    run = tmp_path / "run"
    (run / "1-sft-all").mkdir(parents=True)
    for name in marker:
        (run / name).write_text("{}", "utf-8")
    (tmp_path / "link").symlink_to(run / "1-sft-all")
    to = str(tmp_path / "link" / "new") if place == "link" else str(run / place)
    before = sorted(run.rglob("*"))
    asked = ["--questions", "questions/own.jsonl"]
    (mine / "presets" / "own.yaml").write_text(PRESET + f"run: {{dir: {to}}}\n", "utf-8")
    for command in (
        lambda: export.main([str(run), "--to", to]),
        lambda: base_vs_chat.main(["--base", "models/base", "--tasks", "a", "--to", to]),
        lambda: sft_then_dpo.main([str(mine / "presets" / "own.yaml"), "--dry-run"]),
    ):
        assert command() == 2
        assert f"lies in {run}, the directory of a run" in capsys.readouterr().err
    question = '{"question_id": 1, "category": "math", "turns": ["2?"]}\n'
    Path("questions/own.jsonl").write_text(question, "utf-8")
    assert open_ended.main(["--model", "own=models/base", *asked, "--to", to]) == 2
    assert f"lies in {run}, the directory of a run" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before


def test_a_path_longer_than_the_system_takes_is_none():
    assert find_path("x" * 5000) is None
