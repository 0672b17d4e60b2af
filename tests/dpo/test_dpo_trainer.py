"""DPO on packed pairs: the reference is the stage's own start, and no split changes the result."""

import inspect
import random
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import make_tiny_model
from trl import DPOTrainer, SFTTrainer

from dpo.reference import SHARD, reference_log_probs
from dpo.trainer import train_dpo
from sft.config.sections import DpoStage, LoraSection, ModelSection, RunSection
from sft.context import RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement
from sft.packing.logprobs import disable_packing, enable_scoring
from sft.run.checkpoint import flaw, newest_first
from sft.system.atomic_files import read_jsonl
from sft.training.divergence import FILE

PLACEMENT = choose_placement(ModelSection(dtype="float32"))


def make_pairs(count=11, seed=0):
    rng = random.Random(seed)

    def ids(low, high):
        return [rng.randrange(4, 260) for _ in range(rng.randrange(low, high))]

    pairs = []
    for _ in range(count):
        prompt, chosen, rejected = ids(3, 30), ids(2, 20), ids(2, 20)
        pairs.append(
            {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "chosen_scored": [True] * len(chosen),
                "rejected_ids": rejected,
                "rejected_scored": [True] * len(rejected),
            }
        )
    return Dataset.from_list(pairs)


def train(model, folder, tokenizer, *, rows=None, micro=4, packing=True, run=None, **options):
    folder.mkdir(exist_ok=True)
    given = {"per_device_train_batch_size": micro, "learning_rate": 1e-2, "max_length": 64}
    run = run or RunSection()
    section = DpoStage(train_batch_size=4, packing=packing, trl=DpoStage().trl | given | options)
    train_dpo(
        model,
        make_pairs() if rows is None else rows,
        section=section,
        context=RunContext(folder, tokenizer, PLACEMENT, LoraSection(), 0, False, run=run),
        folder=folder,
        cache=folder / "reference",
    )
    return read_jsonl(folder / "log.jsonl")


def fresh(**options):
    return enable_scoring(make_tiny_model(**options))


def test_the_margin_is_zero_at_the_first_step_and_grows(tiny_tokenizer, tmp_path):
    log = train(fresh(), tmp_path, tiny_tokenizer, num_train_epochs=4.0)
    assert abs(log[0]["rewards/margins"]) < 1e-4
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert log[0]["rewards/accuracies"] == 0.5  # a margin within rounding is no preference
    assert log[-1]["rewards/margins"] > 0.05 and log[-1]["rewards/accuracies"] > 0.9
    for line in log:
        difference = line["rewards/chosen"] - line["rewards/rejected"]
        assert line["rewards/margins"] == pytest.approx(difference, abs=1e-5)


def summed_log_prob(model, prompt, answer):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return log_probs.gather(1, torch.tensor(answer)[:, None]).sum().item()


def test_the_logged_rewards_are_those_of_trl(tiny_tokenizer, tmp_path):
    """Means over pairs of beta times the gain on the reference, from Hugging Face's own logits."""
    rows = make_pairs(4)
    options = {"lr_scheduler_type": "constant", "warmup_steps": 0, "beta": 0.3}
    model = fresh()
    train(model, tmp_path / "one", tiny_tokenizer, rows=rows, max_steps=1, **options)
    log = train(fresh(), tmp_path / "two", tiny_tokenizer, rows=rows, max_steps=2, **options)
    for side in ("chosen", "rejected"):
        gains = [
            summed_log_prob(model, row["prompt_ids"], row[f"{side}_ids"])
            - summed_log_prob(make_tiny_model(), row["prompt_ids"], row[f"{side}_ids"])
            for row in rows
        ]
        assert log[1][f"rewards/{side}"] == pytest.approx(0.3 * sum(gains) / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("micro", "packing", "attention", "pass_tokens"),
    [
        (2, True, "sdpa", 2048),
        (4, False, "eager", 60),
        (1, False, "documents", 2048),
        (4, True, "documents", 2048),
        (4, True, "documents", 60),
        (4, True, "separate", 2048),
        (2, True, "separate", 60),
    ],
)
def test_splitting_packing_and_attention_leave_the_trajectory_alone(
    tiny_tokenizer, tmp_path, monkeypatch, micro, packing, attention, pass_tokens
):
    usual = train(fresh(), tmp_path / "a", tiny_tokenizer)
    monkeypatch.setattr("sft.packing.logprobs.CPU_BATCH_TOKENS", 2 * pass_tokens)
    separate = attention == "separate"  # the prompt is computed for each answer anew
    model = fresh(attn_implementation="sdpa" if separate else attention)
    if separate:
        disable_packing(model)
    varied = train(model, tmp_path / "b", tiny_tokenizer, micro=micro, packing=packing)
    for a, b in zip(usual, varied, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
        assert b["rewards/margins"] == pytest.approx(a["rewards/margins"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_with_lora_the_reference_is_the_adapter_and_not_the_bare_base(
    tiny_tokenizer, tmp_path, dora
):
    config = LoraConfig(r=4, target_modules="all-linear", use_dora=dora)
    model = get_peft_model(fresh(), config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # an adapter that stage 2 has trained
    log = train(model, tmp_path, tiny_tokenizer)
    assert abs(log[0]["rewards/margins"]) < 1e-4
    assert list(model.peft_config) == ["default"]


def test_a_stale_reference_stops_the_run_before_the_first_update(tiny_tokenizer, tmp_path):
    train(fresh(), tmp_path, tiny_tokenizer)
    other = enable_scoring(make_tiny_model(seed=5))
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="the reference is not the model that DPO starts from"):
        train(other, tmp_path, tiny_tokenizer)


@pytest.mark.parametrize("skip", [False, True])
def test_chosen_answers_that_collapse_stop_the_run_with_its_rows(tiny_tokenizer, tmp_path, skip):
    """A learning rate far too high; and no step that is skipped would mend the model."""
    run = RunSection(on_bad_step="skip" if skip else "stop", spike_factor=0, collapse_nats=1.0)
    options = {"learning_rate": 0.3, "num_train_epochs": 10.0, "save_steps": 1}
    with pytest.raises(UserError, match="the chosen answers have lost"):
        train(fresh(), tmp_path, tiny_tokenizer, run=run, **options)
    (entry,) = read_jsonl(tmp_path / FILE)
    assert "nats per token against the reference" in entry["reason"]
    assert entry["action"] == "stopped" and len(entry["rows"]) == 4
    assert flaw(newest_first(tmp_path)[0]) is None


def test_reference_shards_are_continued_and_never_recomputed(tmp_path):
    rows = make_pairs(2 * SHARD + 3).to_list()
    arguments = {"folder": tmp_path, "device": torch.device("cpu")}
    first = reference_log_probs(fresh(), rows, **arguments)
    assert len(first) == len(rows)
    (tmp_path / "shard-00001.json").unlink()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    # As after a kill: only the missing shard is computed, by whatever model is given now.
    second = reference_log_probs(enable_scoring(make_tiny_model(seed=3)), rows, **arguments)
    assert {n: t for n, t in kept.items() if (tmp_path / n).stat().st_mtime_ns != t} == {}
    assert second[:SHARD] == first[:SHARD] and second[2 * SHARD :] == first[2 * SHARD :]
    assert second[SHARD : 2 * SHARD] != first[SHARD : 2 * SHARD]


def test_the_private_names_of_trl_that_we_override_are_still_there():
    for owner, names in (
        (DPOTrainer, ("_prepare_dataset", "_precompute_ref_logps", "compute_loss", "_metrics")),
        (SFTTrainer, ("compute_loss", "_save_checkpoint", "_get_num_items_in_batch")),
    ):
        for name in names:
            if name != "_metrics":
                assert callable(getattr(owner, name)), name
    assert DPOTrainer.loss_is_scaled_for_ga is not True  # as PackedTrainer sets it
    assert "hash_module(" in inspect.getsource(
        DPOTrainer.__init__
    )  # skipped by `_skip_weight_hash`
