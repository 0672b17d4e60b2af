"""The dry run refuses everything that can be known to fail without weights."""

import shutil

import pytest
from chain_runs import run
from tiny_world import chat

from sft.system.atomic_files import read_json, read_jsonl, write_jsonl


def refusal(world, capsys, *arguments):
    assert run(world, "--dry-run", *arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def long_choices(world, count):
    """Write forty questions, `count` of which have a choice that exceeds 512 tokens."""
    rows = [
        {"question": f"{i}+1", "choices": [str(i + 1), "x" * (600 if i < count else 2)], "gold": 0}
        for i in range(40)
    ]
    write_jsonl(world / "tasks" / "sums.jsonl", rows)


def test_one_choice_too_long_costs_its_question_and_not_the_task(world, caplog):
    long_choices(world, 1)
    alone = ("sft_all.enabled=false", "sft_dialogue.enabled=false", "dpo.enabled=false")
    assert run(world, "--dry-run", *alone) == 0
    words = "1 of 40 questions have a choice that alone fills the context window of 512 tokens"
    assert words in caplog.text
    assert run(world, *alone, "eval.repetition.prompts=null") == 0
    entry = read_json(world / "run" / "results.json")["benchmarks"]["sums"]["base"]
    assert (entry["n"], entry["left_out"]) == (39, 1)
    rows = read_jsonl(world / "run" / "eval" / "base" / "samples" / "sums.jsonl")
    assert "0" not in {row["doc_id"] for row in rows} and len(rows) == 39
    assert "1 question left out, too long" in (world / "run" / "report.html").read_text()


def test_many_choices_too_long_are_refused_before_anything_is_trained(world, capsys):
    long_choices(world, 5)
    told = refusal(world, capsys)
    assert "5 of 40 questions have a choice that alone fills" in told and "leave the task" in told


def test_a_safety_prompt_that_fills_the_window_is_refused(world, capsys):
    due = {"reference": {"refuse": True}}
    rows = [{"prompt": "say a", "id": "a"} | due, {"prompt": "b" * 480, "id": "long"} | due]
    write_jsonl(world / "safety.jsonl", rows)
    told = refusal(world, capsys, f"eval.safety.prompts={world / 'safety.jsonl'}")
    assert "eval.safety.cap=256: prompt long has" in told and "window is 512" in told


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ({"finale": "42"}, "reference key 'finale' is unknown; known are all_of, any_of, final"),
        ({"any_of": "42"}, "reference.any_of is '42'; give a list of texts"),
        ({"refuse": "no"}, "reference.refuse is 'no'; give true or false"),
        ("42", "reference '42' must be an object"),
        (0, "reference 0 must be an object"),
        ({"any_of": []}, "reference.any_of is empty"),
        ({"final": ["42"]}, "reference.final is ['42']; give a text or a number"),
        ({"final": None}, "reference.final is None; give a text or a number"),
    ],
)
def test_a_reference_that_no_answer_can_be_judged_by_is_refused(world, capsys, reference, words):
    good = {"messages": chat("say y", "")[:1], "reference": {"final": 42}}
    prompts = [good, {"messages": chat("say x", "")[:1], "id": "odd", "reference": reference}]
    write_jsonl(world / "pairs.jsonl", prompts)
    told = refusal(world, capsys, f"pairs.prompts=[{{path: {world / 'pairs.jsonl'}}}]")
    assert f"pairs.jsonl:2: {words}" in told


def test_prompts_that_leave_no_tokens_for_an_answer_are_refused(world, capsys):
    write_jsonl(world / "pairs.jsonl", [{"messages": chat("x " * 80, "")[:1]}])
    told = refusal(world, capsys, f"pairs.prompts=[{{path: {world / 'pairs.jsonl'}}}]")
    assert "each of 1 prompts fills dpo.max_length=128 tokens" in told


def test_the_data_of_a_task_that_was_not_measured_may_be_corrected(world, capsys):
    alone = ("sft_dialogue.enabled=false", "dpo.enabled=false", "eval.repetition.prompts=null")
    assert run(world, *alone) == 0
    long_choices(world, 0)
    assert run(world, *alone) == 2
    assert "changed since the run began: the data of task sums" in capsys.readouterr().err
    # As after a start that this task ended: it is trained, and the task is not measured.
    before = (world / "run" / "1-sft-all" / "done.json").read_bytes()
    for model in ("base", "sft-all"):
        shutil.rmtree(world / "run" / "eval" / model / "kept")
        (world / "run" / "eval" / model / "done.json").unlink()
    (world / "run" / "results.json").unlink()
    assert run(world, *alone) == 0
    assert read_json(world / "run" / "results.json")["benchmarks"]["sums"]["sft-all"]["n"] == 40
    assert (world / "run" / "1-sft-all" / "done.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["sft_all.lr_scheduler_kwargs={foo: 1}"], "lr_scheduler_kwargs"),
        (["sft_all.lr_scheduler_kwargs=foo"], "lr_scheduler_kwargs='foo' is no mapping"),
        (
            [
                "sft_all.lr_scheduler_type=multi_step",
                "sft_all.lr_scheduler_kwargs={milestones: [0.5], factors: []}",
            ],
            "lr_scheduler_kwargs",
        ),
        (["sft_all.lr_scheduler_type=cosine_with_min_lr"], "lr_scheduler_kwargs"),
        (["sft_all.warmup_steps=.nan"], "warmup_steps"),
        (["sft_all.optim_args=foo"], "optim_args"),
        (["dpo.adam_beta1=2"], "dpo: optim, optim_args, adam_"),
        (["sft_dialogue.adam_epsilon=-1"], "sft_dialogue: optim, optim_args, adam_"),
        (["sft_all.weight_decay=-1"], "weight_decay"),
        (["sft_all.log_level=nonesuch"], "log_level"),
        (["sft_all.torch_compile_backend=nonesuch"], "torch_compile_"),
        (["sft_all.torch_compile_mode=nonesuch"], "torch_compile_"),
        (["sft_all.activation_checkpointing_kwargs={foo: 1}"], "activation_checkpointing_kwargs"),
        (["sft_all.gradient_checkpointing_kwargs=os.system"], "activation_checkpointing_kwargs"),
        (
            ["sft_all.activation_checkpointing_kwargs={use_reentrant: false, context_fn: f}"],
            "activation_checkpointing_kwargs",
        ),
        (["sft_all.neftune_noise_alpha=.inf"], "must be a number, zero or above"),
        (["sft_all.dataloader_num_workers=-1"], "must be from 0 to 256"),
        (["dpo.dataloader_num_workers=1000000"], "must be from 0 to 256"),
        (
            [
                "sft_all.dataloader_num_workers=1",
                "sft_all.dataloader_multiprocessing_context=nonesuch",
            ],
            "dataloader_",
        ),
        (
            ["sft_all.dataloader_num_workers=1", "sft_all.dataloader_prefetch_factor=-1"],
            "dataloader_",
        ),
    ],
)
def test_an_option_that_would_fail_when_training_begins_is_refused(world, capsys, given, words):
    """Upstream checks these only after the rows are prepared and the base is measured."""
    assert words in refusal(world, capsys, *given)


@pytest.mark.parametrize(
    "given",
    [
        ["sft_all.optim=sgd", "sft_all.optim_args=momentum=0.9"],
        ["sft_all.lr_scheduler_type=polynomial", "sft_all.lr_scheduler_kwargs={power: 2.0}"],
        ["sft_all.dataloader_num_workers=2", "sft_all.dataloader_prefetch_factor=3"],
        ["sft_all.activation_checkpointing_kwargs={use_reentrant: false}"],
    ],
)
def test_a_supported_option_is_accepted(world, given):
    assert run(world, "--dry-run", *given) == 0
