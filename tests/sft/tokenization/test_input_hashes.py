"""Every input of a run has a hash under its own name, and nothing else changes that hash."""

import json

import pytest
from tiny_models import make_tiny_model

from sft.chat_template.template import ensure_template
from sft.config.sections import (
    DataSection,
    EvalSection,
    ModelSection,
    PairsSection,
    Preset,
    RepetitionSection,
    SafetySection,
    Source,
)
from sft.tokenization.input_hashes import run_inputs

FILES = ("data.sft", "data.preference", "data.decontaminate", "pairs.prompts")
MEASURED = ("eval.repetition.prompts", "eval.safety.prompts")


@pytest.fixture
def world(tmp_path, tiny_tokenizer):
    """A preset over files of every section, its base and its tokenizer."""
    make_tiny_model().save_pretrained(tmp_path / "base")
    ensure_template(tiny_tokenizer)
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in (*FILES, *MEASURED)}
    for path in paths.values():
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("{}\n")
    sft, preference, other, prompts = ([Source(paths[name])] for name in FILES)
    preset = Preset(
        model=ModelSection(str(tmp_path / "base")),
        data=DataSection(sft=sft, preference=preference, decontaminate=[other[0].path]),
        pairs=PairsSection(prompts=prompts),
        eval=EvalSection(
            repetition=RepetitionSection(prompts=paths[MEASURED[0]]),
            safety=SafetySection(prompts=paths[MEASURED[1]]),
        ),
    )
    return preset, paths, tiny_tokenizer


def changed(world, change):
    """The names whose hashes `change` changes."""
    preset, _, tokenizer = world
    base = preset.model.name_or_path
    more = {"the data of eval.tasks": "x"}
    before = run_inputs(preset, base=base, tokenizer=tokenizer, more=more)
    change()
    now = run_inputs(preset, base=base, tokenizer=tokenizer, more=more)
    assert before.keys() == now.keys() and before["the data of eval.tasks"] == "x"
    return {name for name in before if before[name] != now[name]}


@pytest.mark.parametrize("section", [*FILES, *MEASURED])
def test_a_changed_file_is_told_by_its_section_and_path(world, section):
    path = world[1][section]

    def change():
        with open(path, "a", encoding="utf-8") as stream:
            stream.write("{}\n")

    assert changed(world, change) == {f"{section} {path}"}


def test_changed_weights_template_and_tokenizer_are_told_apart(world):
    preset, _, tokenizer = world
    base = preset.model.name_or_path

    def weights():
        make_tiny_model(seed=1).save_pretrained(base)

    assert changed(world, weights) == {f"the weights of {base}"}

    def configuration():
        path = f"{base}/config.json"
        with open(path, encoding="utf-8") as stream:
            config = json.load(stream)
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(config | {"rope_theta": 5.0}, stream)

    assert changed(world, configuration) == {f"the weights of {base}"}

    def template():
        tokenizer.chat_template += " "

    assert changed(world, template) == {"the chat template"}

    def vocabulary():
        tokenizer.add_tokens(["<more>"])

    assert changed(world, vocabulary) == {"the tokenizer"}
    assert changed(world, lambda: None) == set()
