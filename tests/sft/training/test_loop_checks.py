"""Looping answers in training are found, judged and recorded; training is bit-identical."""

import logging
import math
import os
import re
import signal
import time
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import make_tiny_model

from sft.config.sections import LoraSection, ModelSection, RunSection, SftStage
from sft.context import RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement
from sft.packing.logprobs import enable_scoring
from sft.run.command import run_command
from sft.system.atomic_files import read_jsonl
from sft.training.divergence import FILE as RECORD
from sft.training.divergence import loop_problem
from sft.training.eval_callbacks import LOOPS_FILE, OutOfTime, loop_check_steps, read_rows
from sft.training.trainer import SftTrainer, train_sft

PLACEMENT = choose_placement(ModelSection(dtype="float32"))
CHECKS = [0, 2, 4, 6]  # of nine steps


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({0: 0.9}, None),  # a base model's answers loop before it is trained
        ({0: 0.9, 5: 0.9, 10: 1.0}, None),
        ({0: 0.9, 5: 0.1, 10: 0.39}, None),
        ({0: 0.9, 5: 0.1, 10: 0.5}, "50% of short answers repeat themselves without end, 10% did"),
        ({0: 0.2, 5: 0.1, 10: 0.5}, r"at step 5 \(run.loop_rise=0.3\)"),
    ],
)
def test_a_rise_counts_from_the_lowest_rate_of_the_stage(rates, words):
    found = loop_problem(rates, RunSection(), answers=24)
    assert found is None if words is None else re.search(words, found)


def test_any_rise_may_be_allowed():
    assert loop_problem({0: 0.0, 5: 1.0}, RunSection(loop_rise=0), answers=24) is None


def test_a_rise_by_few_answers_is_chance():
    assert loop_problem({0: 0.0, 5: 1.0}, RunSection(), answers=4) is None
    assert loop_problem({0: 0.0, 5: 1.0}, RunSection(), answers=5)


def test_checks_divide_a_stage_without_its_last_step():
    assert loop_check_steps(9, checks=3) == CHECKS
    assert loop_check_steps(1000, checks=1) == [0, 500]
    assert loop_check_steps(2, checks=3) == [0, 1]


UNTIMED = RunSection(loop_budget=0)


@pytest.fixture
def rows():
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 260, (24, 20), generator=rng).tolist()
    return Dataset.from_list([{"input_ids": i, "trained": [j > 1 for j in range(20)]} for i in ids])


def train(rows, tokenizer, folder, rates=None, *, run=UNTIMED, probe=None, **options):
    """`rates` are what the probe finds, by step."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear")
    model = get_peft_model(enable_scoring(make_tiny_model()), config)

    def found(model, point):
        model.eval()
        torch.rand(7)
        with torch.inference_mode():
            model(input_ids=torch.arange(4, 20)[None])
        return {"repetition": {"rate": rates[point.step], "n": 24}}

    given = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "num_train_epochs": 3.0}
    section = SftStage(train_batch_size=8, trl=SftStage().trl | given | options)
    context = RunContext(
        *(folder, tokenizer, PLACEMENT, LoraSection(), 0, False),
        run=run,
        loop_check=probe or (found if rates else None),
    )
    train_sft(model, rows, section=section, context=context, folder=folder, label="sft")
    log = [(e["step"], e["loss"], e["grad_norm"]) for e in read_jsonl(folder / "log.jsonl")]
    return [p.detach().clone() for p in model.parameters()], log


def same(one, other):
    assert one[1] == other[1]
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


FINE = dict.fromkeys(CHECKS, 0.1)
LOOPING = {0: 0.5, 2: 0.125, 4: 0.75, 6: 0.125}


def test_training_is_bit_identical_with_and_without_checks(rows, tiny_tokenizer, tmp_path):
    plain = train(rows, tiny_tokenizer, tmp_path / "plain")
    same(plain, train(rows, tiny_tokenizer, tmp_path / "checked", FINE))
    found = read_rows(tmp_path / "checked" / LOOPS_FILE)
    assert [row["step"] for row in found] == CHECKS
    assert [row["epoch"] for row in found] == pytest.approx([0, 2 / 3, 4 / 3, 2])
    assert not (tmp_path / "checked" / RECORD).exists()
    assert not (tmp_path / "plain" / LOOPS_FILE).exists()


def test_looping_answers_stop_the_stage_and_it_can_continue(
    rows, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(SftTrainer, "stops_at_loops", True)  # as DPO's does
    plain = train(rows, tiny_tokenizer, tmp_path / "plain", save_steps=1)
    run = tmp_path / "run"
    words = r"sft: step 4: 75% of short .*12% did at step 2 .*loops/4, the last good checkpoint"
    for _ in range(2):  # the same command again meets the same step, and leaves one record
        with pytest.raises(UserError, match=words):
            train(rows, tiny_tokenizer, run, LOOPING, save_steps=1)
        (entry,) = read_jsonl(run / RECORD)
        assert (entry["step"], entry["action"], len(entry["rows"])) == (4, "stopped", 8)
        assert [row["step"] for row in read_rows(run / LOOPS_FILE)] == [0, 2, 4]
        assert max(int(p.name.split("-")[1]) for p in run.glob("checkpoint-*")) == 3
    on = train(rows, tiny_tokenizer, run, LOOPING, run=replace(UNTIMED, loop_rise=0), save_steps=1)
    same(plain, on)
    assert [row["step"] for row in read_rows(run / LOOPS_FILE)] == CHECKS


@pytest.mark.parametrize(("stops", "skip"), [(False, False), (True, True)])
def test_loops_cause_a_warning_in_sft_or_if_bad_steps_are_skipped(
    rows, tiny_tokenizer, tmp_path, caplog, monkeypatch, stops, skip
):
    monkeypatch.setattr(SftTrainer, "stops_at_loops", stops)
    plain = train(rows, tiny_tokenizer, tmp_path / "plain")
    with caplog.at_level(logging.WARNING):
        warned = train(
            rows,
            tiny_tokenizer,
            tmp_path / "run",
            LOOPING,
            run=replace(UNTIMED, on_bad_step="skip" if skip else "stop"),
        )
    same(plain, warned)
    (entry,) = read_jsonl(tmp_path / "run" / RECORD)
    assert (entry["step"], entry["action"]) == (4, "warned")
    assert [r.getMessage().partition(" (")[0] for r in caplog.records if "loop" in r.message] == [
        "sft: step 4: 75% of short answers repeat themselves without end, 12% did at step 2"
    ]


def test_checks_take_at_most_their_share_of_the_stage(rows, tiny_tokenizer, tmp_path, caplog):
    """A check that does not end is canceled, and later ones do not begin."""
    plain = train(rows, tiny_tokenizer, tmp_path / "plain")
    given = []

    def endless(model, point):
        given.append((point.step, point.seconds))
        began = time.monotonic()
        while point.step:
            if time.monotonic() - began > point.seconds:
                raise OutOfTime
        return {"repetition": {"rate": 0.1, "n": 24}}

    same(
        plain,
        train(
            rows, tiny_tokenizer, tmp_path / "run", probe=endless, run=RunSection(loop_budget=0.05)
        ),
    )
    assert [row["step"] for row in read_rows(tmp_path / "run" / LOOPS_FILE)] == [0]
    (first, second) = given  # no time is left after the canceled one
    assert first == (0, math.inf) and second[0] == 2 and second[1] < 60
    warnings = [r.getMessage() for r in caplog.records if "run.loop_budget" in r.message]
    assert len(warnings) == 1 and "sft: step 2: loops are not measured" in warnings[0]
    assert "more than 5% of the stage's time" in warnings[0]


class Killed(Exception):
    """Stands for a kill: nothing in the trainer handles it."""


@pytest.mark.parametrize("how", ["killed", "signalled"])
@pytest.mark.parametrize("step", [0, 4])
def test_a_run_that_ends_in_a_check_resumes_without_a_gap(
    rows, tiny_tokenizer, tmp_path, how, step
):
    plain = train(rows, tiny_tokenizer, tmp_path / "plain", FINE, save_steps=2)
    run = tmp_path / "run"

    def probe(model, point):
        if point.step == step:
            if how == "killed":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        return {"repetition": {"rate": FINE[point.step], "n": 24}}

    def start():
        train(rows, tiny_tokenizer, run, probe=probe, save_steps=2)

    if how == "killed":
        with pytest.raises(Killed):
            start()
    else:
        assert run_command(start) == 143
        assert (run / f"checkpoint-{step}").is_dir() or not step
    assert [row["step"] for row in read_rows(run / LOOPS_FILE)] == [s for s in CHECKS if s < step]
    same(plain, train(rows, tiny_tokenizer, run, FINE, save_steps=2))
    assert read_rows(run / LOOPS_FILE) == read_rows(tmp_path / "plain" / LOOPS_FILE)
