"""A stage that is measured between epochs ends with the same bits, with a row for each epoch."""

import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import make_tiny_model

from sft.config.sections import LoraSection, ModelSection, SftStage
from sft.context import RunContext
from sft.model.placement import choose_placement
from sft.packing.logprobs import enable_scoring
from sft.run.command import run_command
from sft.system.atomic_files import read_jsonl, write_jsonl
from sft.system.record_hash import sealed
from sft.training.eval_callbacks import EPOCHS_FILE, preserve_rng_and_modes, read_rows
from sft.training.trainer import train_sft

PLACEMENT = choose_placement(ModelSection(dtype="float32"))
STEPS = [3, 6, 9]  # 24 rows, 8 a step, 3 epochs


@pytest.fixture
def rows():
    rng = random.Random(0)
    ids = [[rng.randrange(4, 260) for _ in range(rng.randrange(5, 40))] for _ in range(24)]
    return Dataset.from_list(
        [{"input_ids": i, "trained": [j > 1 for j in range(len(i))]} for i in ids]
    )


def new_model(lora):
    model = enable_scoring(make_tiny_model())
    if not lora:
        return model
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear")
    return get_peft_model(model, config)


def disturb(model, end):
    """Change everything that training depends on, and return a value of these weights only."""
    random.random()
    np.random.random(7)
    torch.rand(7)
    model.train(end.step % 2 == 0)
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(4, 20)[None]).logits
    (end.folder / "logits.txt").write_text(str(logits.sum().item()))
    model.eval()
    with torch.inference_mode():
        return {"sum": model(input_ids=torch.arange(4, 20)[None]).logits.sum().item()}


def train(rows, tokenizer, folder, measure=None, *, lora=True, **options):
    folder.mkdir(exist_ok=True)
    model = new_model(lora)
    given = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "num_train_epochs": 3.0}
    section = SftStage(train_batch_size=8, trl=SftStage().trl | given | options)
    context = RunContext(folder, tokenizer, PLACEMENT, LoraSection(), 0, False, epoch_eval=measure)
    train_sft(model, rows, section=section, context=context, folder=folder, label="sft")
    losses = [(e["step"], e["loss"], e["grad_norm"]) for e in read_jsonl(folder / "log.jsonl")]
    return model, losses


def same(one, other):
    (first, log), (second, again) = one, other
    assert log == again
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("lora", [False, True])
def test_training_is_bit_identical_with_and_without_measures(rows, tiny_tokenizer, tmp_path, lora):
    plain = train(rows, tiny_tokenizer, tmp_path / "plain", lora=lora)
    states = []

    def look(model, end):
        states.append([p.grad for p in model.parameters() if p.grad is not None])
        return disturb(model, end)

    measured = train(rows, tiny_tokenizer, tmp_path / "measured", look, lora=lora)
    same(plain, measured)
    assert states == [[], [], []]
    found = read_rows(tmp_path / "measured" / EPOCHS_FILE)
    assert [(row["epoch"], row["step"]) for row in found] == [(1, 3), (2, 6), (3, 9)]
    assert len({row["sum"] for row in found}) == 3
    last, _ = measured
    last.eval()
    with torch.inference_mode():  # the last row is of the weights that the stage ends with
        assert found[-1]["sum"] == last(input_ids=torch.arange(4, 20)[None]).logits.sum().item()
    assert not (tmp_path / "plain" / EPOCHS_FILE).exists()


def test_modes_are_restored_module_by_module():
    model = make_tiny_model()
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), preserve_rng_and_modes(model):
        model.eval()
        raise KeyError
    assert [module.training for module in model.modules()] == before


def test_the_end_within_an_epoch_is_measured_too(rows, tiny_tokenizer, tmp_path):
    train(rows, tiny_tokenizer, tmp_path, disturb, max_steps=4)
    found = read_rows(tmp_path / EPOCHS_FILE)
    assert [row["step"] for row in found] == [3, 4]
    assert found[1]["epoch"] == pytest.approx(4 / 3)


class Killed(Exception):
    """Stands for a kill: nothing in the trainer handles it."""


def killed_at(step):
    def measure(model, end):
        found = disturb(model, end)
        if end.step == step:
            raise Killed
        return found

    return measure


@pytest.mark.parametrize(("step", "save_steps"), [(3, 2), (6, 3), (9, 2)])
def test_a_run_killed_in_a_measure_resumes_without_a_gap(
    rows, tiny_tokenizer, tmp_path, step, save_steps
):
    whole = train(rows, tiny_tokenizer, tmp_path / "whole", disturb, save_steps=save_steps)
    half = tmp_path / "half"
    with pytest.raises(Killed):
        train(rows, tiny_tokenizer, half, killed_at(step), save_steps=save_steps)
    assert [row["step"] for row in read_rows(half / EPOCHS_FILE)] == [s for s in STEPS if s < step]
    same(whole, train(rows, tiny_tokenizer, half, disturb, save_steps=save_steps))
    assert read_rows(half / EPOCHS_FILE) == read_rows(tmp_path / "whole" / EPOCHS_FILE)


def test_rows_ahead_of_the_checkpoint_are_measured_again_and_not_doubled(
    rows, tiny_tokenizer, tmp_path
):
    whole = train(rows, tiny_tokenizer, tmp_path, disturb, save_steps=4)
    kept = read_rows(tmp_path / EPOCHS_FILE)
    for step in (8, 9):  # as after a kill: rows of epochs 2 and 3, and the checkpoint of step 4
        shutil.rmtree(tmp_path / f"checkpoint-{step}", ignore_errors=True)
    measured_steps = []

    def measure(model, end):
        measured_steps.append(end.step)
        return disturb(model, end)

    again = train(rows, tiny_tokenizer, tmp_path, measure, save_steps=4)
    assert read_rows(tmp_path / EPOCHS_FILE) == kept
    same(whole, again)
    assert measured_steps == ([6, 9] if (tmp_path / "checkpoint-4").exists() else STEPS)


@pytest.mark.parametrize("step", [3, 9])
def test_a_signal_ends_the_measure_and_saves(rows, tiny_tokenizer, tmp_path, step):
    whole = train(rows, tiny_tokenizer, tmp_path / "whole", disturb, save_steps=50)
    half = tmp_path / "half"

    def measure(model, end):
        found = disturb(model, end)
        if end.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return found

    def start():
        train(rows, tiny_tokenizer, half, measure, save_steps=50)

    began = time.monotonic()
    assert run_command(start) == 143
    assert time.monotonic() - began < 25
    assert (half / f"checkpoint-{step}").is_dir() and len(
        read_rows(half / EPOCHS_FILE)
    ) == step / 3 - 1
    # A second signal before the measure is repeated: no step is trained after it.
    assert run_command(start) == 143
    assert [p.name for p in half.glob("checkpoint-*")] == [f"checkpoint-{step}"]
    same(whole, train(rows, tiny_tokenizer, half, disturb, save_steps=50))
    assert read_rows(half / EPOCHS_FILE) == read_rows(tmp_path / "whole" / EPOCHS_FILE)


def test_a_damaged_row_of_measures_is_left_out_with_a_warning(tmp_path, caplog):
    rows = [{"epoch": 1.0, "step": 3}, {"epoch": 2.0, "step": 6}, {"epoch": 3.0, "step": 9}]
    write_jsonl(tmp_path / EPOCHS_FILE, rows)
    assert read_rows(tmp_path / EPOCHS_FILE) == rows
    content = (tmp_path / EPOCHS_FILE).read_bytes()
    (tmp_path / EPOCHS_FILE).write_bytes(content.replace(b"6}", b"6\xfb"))
    assert read_rows(tmp_path / EPOCHS_FILE) == [rows[0], rows[2]]
    assert f"{EPOCHS_FILE} is damaged; a row of it is left out" in caplog.text


def test_a_changed_number_in_a_row_of_measures_is_found(tmp_path, caplog):
    row = {"epoch": 1.0, "step": 3, "repetition": {"rate": 0.25, "n": 4}}
    write_jsonl(tmp_path / EPOCHS_FILE, [sealed(row)])
    assert read_rows(tmp_path / EPOCHS_FILE) == [row]
    (tmp_path / EPOCHS_FILE).write_bytes(
        (tmp_path / EPOCHS_FILE).read_bytes().replace(b"0.25", b"0.75")
    )
    assert read_rows(tmp_path / EPOCHS_FILE) == []
    assert "is damaged" in caplog.text
