"""The hours of measuring follow from the questions of the tasks and the caps."""

from dataclasses import replace

import pytest
from tiny_models import make_tiny_model
from tiny_world import build_world

from eval.measures.cost import Tokens, answers_cost, cost_line
from eval.measures.dry_run import check_questions
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset
from sft.config.sections import LoraSection, ModelSection
from sft.model.placement import choose_placement
from sft.planning.budget import Planner
from sft.planning.devices import Machine, this_machine


@pytest.fixture
def preset(tmp_path, tiny_tokenizer):
    return load_preset(str(build_world(tmp_path, tiny_tokenizer) / "preset.yaml"))


@pytest.fixture
def planner():
    placement = choose_placement(ModelSection(dtype="float32"))
    return Planner(make_tiny_model().config, LoraSection(), placement, Machine("d", 1e12, 1e9), 0.5)


def test_hours_are_tokens_times_twice_the_parameters_over_the_devices_speed(preset, planner):
    asked = {False: Tokens(1000, 0), True: Tokens(500, 100)}
    assert answers_cost(preset.eval) == Tokens(0, 6 * 80)
    operations = 2 * planner.parameters.total
    base, chat = 1000 + 480 / 0.3, 500 + (100 + 480) / 0.3
    whole = operations * (base + 2 * chat) / (1e9 * 0.5) / 3600
    line = cost_line(planner, preset, asked, models=2, sampled=0, training=whole)
    assert line.startswith(f"measuring, at most: {whole:.2g} hours (base ")
    assert line.endswith(", 50% of the run") and "answers for pairs" not in line
    pairs = operations * 10 * 3 * 12 / 0.3 / (1e9 * 0.5) / 3600
    line = cost_line(planner, preset, asked, models=2, sampled=10, training=0.0)
    assert f"{whole + pairs:.2g} hours" in line and f"answers for pairs {pairs:.2g}" in line
    unknown = replace(planner, machine=Machine("d", 1e12))
    line = cost_line(unknown, preset, asked, models=2, sampled=0, training=1.0)
    assert line == "measuring: hours unknown, since the device's speed is"


def test_tokens_of_tasks_are_counted_from_their_questions(preset, tiny_tokenizer):
    """Eight sums of two choices of one byte, behind two examples of their length, or in a chat."""
    ensure_template(tiny_tokenizer)
    asked = check_questions(preset, tiny_tokenizer, window=512)
    question, example = len("Question: 1+1\nAnswer:"), len("Question: 1+1\nAnswer: 2\n\n")
    assert asked[False] == Tokens(8 * (question + 2 * example) + 8 * 2 * len(" 2"), 0)
    assert asked[True].written == 0 and asked[True].read > 8 * question


def test_the_speed_of_a_device_that_the_table_lacks_is_measured():
    machine = this_machine(choose_placement(ModelSection(dtype="float32")))
    assert machine.peak is not None and machine.peak > 1e8
