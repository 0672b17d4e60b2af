"""Every shipped preset parses, names files that exist, and the README names what is there."""

import re

import pytest
from conftest import ROOT

from sft.config import find_path, load_preset

PRESETS = sorted((ROOT / "recipes" / "presets").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_presets():
    assert {p.stem for p in PRESETS} >= {"quickstart", "own_model"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_parses(path):
    preset = load_preset(path)
    assert preset.run.dir.startswith("runs/")
    assert preset.dpo.trl["num_train_epochs"] == 1  # the paper's


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_key_of_a_preset_says_why_or_belongs_to_a_commented_group(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    tops = [line for line in lines if re.match(r"[a-z_]+:", line)]
    assert lines[0].startswith("#") and len(tops) == 9
    assert sum("#" in line for line in lines) >= len(lines) / 4


def test_the_quickstart_names_only_files_of_the_checkout():
    preset = load_preset(ROOT / "recipes" / "presets" / "quickstart.yaml")
    named = [
        preset.model.name_or_path,
        preset.model.chat_template,
        preset.eval.task_dir,
        preset.eval.repetition.prompts,
        *(source.path for source in (*preset.data.sft, *preset.pairs.prompts)),
    ]
    for path in named:
        assert path.startswith("recipes/quickstart/") and find_path(path) is not None


def test_the_readme_names_what_is_there():
    paths = set(
        re.findall(r"\b(?:recipes|tests|sft|dpo|eval)/[\w./-]+\.(?:py|yaml|md|png)", README)
    )
    assert {"recipes/sft_then_dpo.py", "recipes/presets/own_model.yaml"} <= paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_overrides_in_the_readme_are_accepted():
    preset = load_preset(
        ROOT / "recipes" / "presets" / "own_model.yaml",
        overrides=[
            "model.name_or_path=/models/my-base",
            "data.sft=[{path: chats.jsonl, kind: dialogue}]",
            "sft_dialogue.enabled=false",
            "run.dir=runs/mine",
        ],
    )
    for value in ("model.name_or_path=/models/my-base", "sft_dialogue.enabled=false"):
        assert value in README
    assert preset.sft_dialogue.enabled is False
