"""The check for loops on models that learn to loop, by SFT and DPO, and on one that does not."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from tiny_models import make_tiny_model, make_tiny_tokenizer
from tiny_world import chat

from dpo.encode import encode_pairs
from dpo.trainer import train_dpo
from eval.measures import repetition
from eval.measures.in_training import loop_check, starting_at
from sft.chat_template.encoding import encode_chat
from sft.chat_template.template import ensure_template
from sft.config.sections import (
    DpoStage,
    EvalSection,
    LoraSection,
    ModelSection,
    Preset,
    RepetitionSection,
    RunSection,
    SftStage,
)
from sft.context import EvalPoint, RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement
from sft.packing.logprobs import enable_scoring
from sft.system.atomic_files import read_jsonl, write_jsonl
from sft.training.divergence import FILE as RECORD
from sft.training.eval_callbacks import LOOPS_FILE, read_rows
from sft.training.trainer import train_sft

PLACEMENT = choose_placement(ModelSection(dtype="float32"))
CAP = 128  # twice this has room in the tiny model's window
SAID = [a + b for a in "abcdefgh" for b in "xyz"]
ENDING = [chat(f"say {s}", f"{s} it is") for s in SAID]
LOOPING = [chat(f"say {s}", f"{s} " * 15) for s in SAID]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = make_tiny_tokenizer()
    ensure_template(tokenizer)
    return tokenizer


def context_of(folder, tokenizer):
    """With the probe of a preset that names eight of the prompts."""
    folder.mkdir(exist_ok=True)
    prompts = folder / "prompts.jsonl"
    write_jsonl(prompts, [{"messages": rows[:1]} for rows in ENDING[::3]])
    preset = Preset(eval=EvalSection(repetition=RepetitionSection(str(prompts), cap=CAP)))
    context = RunContext(folder, tokenizer, PLACEMENT, LoraSection(), 0, False)
    run = RunSection(loop_budget=0)  # training takes a moment here
    return replace(context, run=run, loop_check=loop_check(preset, context))


def sft(model, chats, folder, tokenizer, *, epochs):
    encoded = [encode_chat(tokenizer, messages) for messages in chats]
    rows = Dataset.from_list([{"input_ids": e.input_ids, "trained": e.trained} for e in encoded])
    options = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "num_train_epochs": epochs,
        "save_steps": 500,
    }
    section = SftStage(train_batch_size=8, trl=SftStage().trl | options)
    context = context_of(folder, tokenizer)
    train_sft(model, rows, section=section, context=context, folder=folder, label="sft")


def dpo(model, folder, tokenizer, *, chosen, rejected, learning_rate):
    rows = [
        {"prompt": good[:1], "chosen": good[1:], "rejected": bad[1:]}
        for good, bad in zip(chosen, rejected, strict=True)
    ]
    pairs, _ = encode_pairs(rows, tokenizer, max_length=None)
    options = {
        "per_device_train_batch_size": 8,
        "learning_rate": learning_rate,
        "num_train_epochs": 10,
        "save_steps": 500,
        "max_length": 512,
    }
    section = DpoStage(train_batch_size=8, trl=DpoStage().trl | options)
    context = context_of(folder, tokenizer)
    cache = folder / "reference"
    train_dpo(model, pairs, section=section, context=context, folder=folder, cache=cache)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, tokenizer):
    """A random model, some of whose answers loop, after SFT on answers that end."""
    model = enable_scoring(make_tiny_model())
    folder = tmp_path_factory.mktemp("healthy")
    sft(model, ENDING, folder, tokenizer, epochs=20)
    return model, folder


def same_as(model):
    twin = enable_scoring(make_tiny_model())
    twin.load_state_dict(model.state_dict())
    return twin


def rates(folder):
    return {row["step"]: row["repetition"]["rate"] for row in read_rows(folder / LOOPS_FILE)}


def test_loops_at_the_start_are_not_held_against_the_stage_that_ends_them(healthy):
    _, folder = healthy
    found = rates(folder)
    assert list(found) == [0, 15, 30, 45]
    assert found[0] > 0 == found[45]
    assert not (folder / RECORD).exists()


def test_every_rate_can_be_computed_again_from_its_answers(healthy):
    _, folder = healthy
    for row in read_rows(folder / LOOPS_FILE):
        answers = read_jsonl(folder / "loops" / str(row["step"]) / "generations.jsonl")
        assert row["repetition"] == repetition.summarize(answers)
        assert len(answers) == 8 and {a["cap"] for a in answers} == {CAP}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_at_a_smaller_cap_is_read_from_one_at_a_larger(tokenizer, seed):
    """Whether it ends, loops, or leaves a loop between the caps: all that `measure` stores."""
    model = enable_scoring(make_tiny_model(seed))
    prompts = [
        {"id": str(i), "messages": rows[:1], "category": "all", "language": ""}
        for i, rows in enumerate(ENDING)
    ]
    larger = repetition.greedy_answers(model, tokenizer, prompts, cap=120)
    for cap in (120, 90, 64):
        smaller = repetition.greedy_answers(model, tokenizer, prompts, cap=cap)
        read = [
            repetition.at_cap(row, prompt, tokenizer, cap=cap)
            for row, prompt in zip(larger, prompts, strict=True)
        ]
        assert read == smaller


def test_the_look_before_the_first_step_reads_what_is_measured(healthy, tokenizer, tmp_path):
    """The model of the look writes nothing: it is another one, whose answers are not looked at."""
    _, measured = healthy
    context = context_of(tmp_path, tokenizer)
    rows = read_jsonl(measured / "loops" / "0" / "generations.jsonl")
    (tmp_path / "eval" / "base").mkdir(parents=True)
    write_jsonl(tmp_path / "eval" / "base" / "generations.jsonl", rows)
    point = EvalPoint("sft", 0, 0, tmp_path)
    other = enable_scoring(make_tiny_model(seed=7))
    found = starting_at(context, "base").loop_check(other, point)
    assert found["repetition"] == repetition.summarize(rows)
    assert read_jsonl(tmp_path / "generations.jsonl") == rows
    assert context.loop_check(other, point) != found
    write_jsonl(tmp_path / "eval" / "base" / "generations.jsonl", rows[1:])
    assert starting_at(context, "base").loop_check(other, point) != found


def test_sft_on_loops_warns_and_continues(healthy, tokenizer, tmp_path, caplog):
    model = same_as(healthy[0])
    sft(model, LOOPING, tmp_path, tokenizer, epochs=10)
    first, *_ = read_jsonl(tmp_path / RECORD)
    assert first["action"] == "warned"
    assert re.search(r"sft: step .* repeat themselves without end, 0% did at", caplog.text)
    answers = read_jsonl(Path(first["answers"]) / "generations.jsonl")
    assert repetition.summarize(answers)["rate"] == rates(tmp_path)[first["step"]] >= 0.3
    assert len(rates(tmp_path)) == 4


def test_dpo_at_a_rate_far_too_high_loops_and_is_stopped(healthy, tokenizer, tmp_path):
    pairs = {"chosen": LOOPING, "rejected": ENDING}
    with pytest.raises(UserError, match=r"dpo: step .* repeat themselves without end, 0% did at"):
        dpo(same_as(healthy[0]), tmp_path, tokenizer, **pairs, learning_rate=1e-2)
    assert read_jsonl(tmp_path / RECORD)[0]["rows"]


def test_dpo_that_goes_well_is_left_alone(healthy, tokenizer, tmp_path):
    pairs = {"chosen": ENDING, "rejected": LOOPING}
    dpo(same_as(healthy[0]), tmp_path, tokenizer, **pairs, learning_rate=1e-4)
    assert list(rates(tmp_path).values()) == [0, 0, 0, 0]
    assert not (tmp_path / RECORD).exists()
