"""Steps that go wrong: named, recorded with their rows, stopped or skipped, nothing else moved."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tiny_models import make_tiny_model

from sft.config.sections import LoraSection, ModelSection, RunSection, SftStage
from sft.context import RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement
from sft.packing.logprobs import enable_scoring
from sft.run.checkpoint import flaw, newest_first
from sft.system.atomic_files import read_jsonl, write_jsonl
from sft.training.divergence import (
    COLLAPSE_OVER,
    FILE,
    Recent,
    StepWatch,
    collapse_problem,
    step_problem,
)
from sft.training.trainer import train_sft

PLACEMENT = choose_placement(ModelSection(dtype="float32"))
USUAL = Recent(losses=[1.0, 1.2, 0.9, 1.1, 1.0, 1.3])
BAD = 7  # the token whose embedding is not a number


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [
        (1.0, 1.0, None),
        (9.0, 1.0, None),
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (1.0, math.inf, "the gradient's norm is inf"),
        (12.0, 1.0, "the loss jumped to 12"),
    ],
)
def test_a_step_is_named_by_what_is_wrong_with_it(loss, norm, words):
    found = step_problem(USUAL, RunSection(), loss=loss, norm=norm)
    assert found is None if words is None else words in found


def test_jumps_are_measured_against_what_came_before_and_can_be_allowed():
    assert step_problem(Recent(losses=[1.0] * 4), RunSection(), loss=50.0, norm=1.0) is None
    assert step_problem(USUAL, RunSection(spike_factor=0), loss=50.0, norm=1.0) is None
    learned = Recent(losses=[0.001] * 20)
    assert step_problem(learned, RunSection(), loss=1.0, norm=1.0) is None, (
        "a hard row is no divergence"
    )


def test_a_float16_scaler_is_left_its_overflows_and_dead_gradients_take_three_steps():
    assert step_problem(USUAL, RunSection(), loss=1.0, norm=math.inf, scaled=True) is None
    assert step_problem(replace(USUAL, dead=1), RunSection(), loss=1.0, norm=0.0) is None
    assert step_problem(replace(USUAL, dead=2), RunSection(), loss=1.0, norm=None) is None
    assert "exactly 0" in step_problem(replace(USUAL, dead=2), RunSection(), loss=1.0, norm=0.0)


def test_chosen_answers_that_become_ever_less_likely_are_a_collapse():
    assert collapse_problem(Recent(chosen=[-3.0] * (COLLAPSE_OVER - 1)), RunSection()) is None
    assert collapse_problem(Recent(chosen=[-1.9] * COLLAPSE_OVER), RunSection()) is None
    assert "3.00 nats per token" in collapse_problem(
        Recent(chosen=[-3.0] * COLLAPSE_OVER), RunSection()
    )
    assert (
        collapse_problem(Recent(chosen=[-3.0] * COLLAPSE_OVER), RunSection(collapse_nats=0)) is None
    )


def poisoned_model():
    """Every step is in order but those with token BAD in a row."""
    model = enable_scoring(make_tiny_model(tie_word_embeddings=False))
    with torch.no_grad():
        model.get_input_embeddings().weight[BAD] = torch.nan
    return model


def make_rows():
    rng = random.Random(0)
    rows = [
        {
            "origin": f"rows.jsonl:{i + 1}",
            "input_ids": [rng.randrange(10, 260) for _ in range(12)],
            "trained": [n > 2 for n in range(12)],
        }
        for i in range(40)
    ]
    rows[33]["input_ids"][4] = BAD
    return Dataset.from_list(rows)


def train(folder, tokenizer, *, run, rows=None, model=None, **options):
    folder.mkdir(exist_ok=True)
    given = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_length": 64,
        "num_train_epochs": 1.0,
        "save_steps": 1,
    }
    section = SftStage(train_batch_size=4, trl=SftStage().trl | given | options)
    context = RunContext(folder, tokenizer, PLACEMENT, LoraSection(), 0, False, run=run)
    model = model or poisoned_model()
    train_sft(
        model, rows or make_rows(), section=section, context=context, folder=folder, label="sft"
    )
    return model


def test_a_loss_that_is_no_number_stops_the_run_with_its_rows_on_record(tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan; its rows are in .*run.on_bad_step=skip"):
        train(tmp_path, tiny_tokenizer, run=RunSection())
    (entry,) = read_jsonl(tmp_path / FILE)
    assert entry["action"] == "stopped" and len(entry["rows"]) == 4
    assert "rows.jsonl:34" in [row["origin"] for row in entry["rows"]]
    checkpoint = newest_first(tmp_path)[0]
    assert int(checkpoint.name.split("-")[1]) == entry["step"] - 1 and flaw(checkpoint) is None
    # The same command again meets the same step, and leaves one record.
    with pytest.raises(UserError, match="the loss is nan"):
        train(tmp_path, tiny_tokenizer, run=RunSection())
    assert read_jsonl(tmp_path / FILE) == [entry]


def test_a_bad_step_before_the_first_checkpoint_is_recorded_once(tiny_tokenizer, tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="the loss is nan"):
            train(tmp_path, tiny_tokenizer, run=RunSection(), save_steps=100)
    assert len(read_jsonl(tmp_path / FILE)) == 1


def test_a_kill_while_records_are_taken_back_loses_none_of_them(tmp_path, monkeypatch):
    kept = [{"step": step, "reason": "é"} for step in (1, 2)]
    write_jsonl(tmp_path / FILE, [*kept, {"step": 3}])
    watch = StepWatch(tmp_path, label="sft", bounds=RunSection(), describe=dict)
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        watch.resume({}, step=2)
    monkeypatch.undo()
    assert read_jsonl(tmp_path / FILE) == [*kept, {"step": 3}]
    watch.resume({}, step=2)
    assert read_jsonl(tmp_path / FILE) == kept


def test_a_skipped_step_changes_no_weight_and_the_others_do(tiny_tokenizer, tmp_path):
    model = train(tmp_path, tiny_tokenizer, run=RunSection(on_bad_step="skip"))
    log = read_jsonl(tmp_path / "log.jsonl")
    (entry,) = read_jsonl(tmp_path / FILE)
    assert entry["action"] == "skipped"
    assert [line["step"] for line in log] == [n for n in range(1, 11) if n != entry["step"]]
    assert all(math.isfinite(line["loss"]) for line in log)
    finite = [torch.isfinite(p).all() for n, p in model.named_parameters() if "embed" not in n]
    assert all(finite)
    before, after = (
        {p.name: p for p in newest_first(tmp_path)}.get(f"checkpoint-{n}")
        for n in (entry["step"] - 1, entry["step"])
    )
    if before and after:  # of the last two checkpoints, which are kept
        files = [(folder / "model.safetensors").read_bytes() for folder in (before, after)]
        assert files[0] == files[1]


def test_skipping_without_end_is_no_training(tiny_tokenizer, tmp_path):
    rows = make_rows().map(lambda row: {"input_ids": [BAD, *row["input_ids"][1:]]})
    with pytest.raises(UserError, match="10 steps in a row were skipped"):
        train(
            tmp_path,
            tiny_tokenizer,
            run=RunSection(on_bad_step="skip"),
            rows=rows,
            num_train_epochs=2.0,
        )


def test_a_model_that_nothing_reaches_is_named(tiny_tokenizer, tmp_path):
    rows = make_rows().map(lambda row: {"trained": [False] * len(row["trained"])})
    model = enable_scoring(make_tiny_model())
    with pytest.raises(UserError, match="gradient was exactly 0 in 3 steps"):
        train(tmp_path, tiny_tokenizer, run=RunSection(), rows=rows, model=model)
