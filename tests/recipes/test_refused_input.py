"""Bad files, settings and programs are refused with one sentence, before any training."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from chain_runs import run
from tiny_world import TASK, chat

from recipes import base_vs_chat
from sft.system.atomic_files import read_json


def spoil(path, line, text):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    lines[line - 1] = text
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda w: (w / "rows.jsonl").unlink(), ["rows.jsonl"]),
        (lambda w: spoil(w / "rows.jsonl", 3, '{"messages": ['), ["rows.jsonl:3"]),
        (
            lambda w: spoil(w / "rows.jsonl", 4, json.dumps({"messages": chat("a", "b")[:1]})),
            ["rows.jsonl:4", "assistant"],
        ),
        (
            lambda w: spoil(w / "rows.jsonl", 5, json.dumps({"messages": chat("a", " ")})),
            ["rows.jsonl:5", "empty"],
        ),
        (
            lambda w: spoil(
                w / "rows.jsonl", 6, json.dumps({"messages": [{"role": "wizard", "content": "x"}]})
            ),
            ["rows.jsonl:6", "wizard"],
        ),
        (lambda w: (w / "base" / "config.json").unlink(), ["config.json"]),
        (lambda w: (w / "base" / "model.safetensors").unlink(), ["safetensors"]),
        (lambda w: shutil.rmtree(w / "base"), ["no such directory"]),
        (lambda w: (w / "prompts.jsonl").unlink(), ["prompts.jsonl"]),
    ],
    ids=[
        "missing file",
        "malformed line",
        "no assistant turn",
        "empty answer",
        "unknown role",
        "no config",
        "no weights",
        "no model",
        "no prompts",
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2_before_training(world, capsys, harm, words):
    harm(world)
    assert run(world) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    for word in words:
        assert word in message
    assert not (world / "run" / "1-sft-all").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft_all.learning_rat=1", "did you mean sft_all.learning_rate?"),
        ("eval.tasks=[summs]", "sums"),
        ("sft_dialogue.kinds=[dialog]", "no row is of kind dialog"),
        ('model.chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"', "end"),
        ("run.dir=/proc/nope", "cannot be written"),
        ("sft_all.max_length=3", "rows are longer; raise it"),
        ("dpo.loss_type=kto", "kto is not offered"),
        ("sft_all.train_batch_size=7", "no multiple of"),
        ("sft_all.lr_scheduler_type=linearr", "linearr"),
        ("sft_all.optim=paged_adamw_8bit", "sft_all.optim=paged_adamw_8bit is not installed here"),
    ],
)
def test_bad_settings_are_refused_before_training(world, capsys, override, words):
    assert run(world, override) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and words in message
    assert not (world / "run" / "1-sft-all" / "checkpoint-1").exists()


def test_programs_of_models_run_only_if_allowed(world, capsys):
    task = yaml.safe_load(TASK) | {"task": "code", "output_type": "generate_until"}
    task |= {"doc_to_choice": None, "doc_to_target": "assert x", "num_fewshot": 0}
    task |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}}
    task["metadata"] = {"program": {"start": "x = 1 #", "entry": "x"}}
    (world / "tasks" / "code.yaml").write_text(yaml.safe_dump(task))
    assert run(world, "eval.tasks=[code]", "--dry-run") == 2
    assert "task code runs programs" in capsys.readouterr().err
    assert run(world, "eval.tasks=[code]", "--dry-run", "--allow-code-execution") == 0
    command = ["--base", str(world / "base"), "--chat", str(world / "base"), "--tasks", "code"]
    command += ["--task-dir", str(world / "tasks"), "--to", str(world / "both")]
    assert base_vs_chat.main(command) == 2
    assert base_vs_chat.main([*command, "--allow-code-execution"]) == 0
    # The comment takes in the answer, so that every program is right.
    scores = read_json(world / "both" / "results.json")["benchmarks"]["code"]
    assert [scores[model]["score"] for model in ("base", "chat")] == [1.0, 1.0]
    assert "limits on CPU" in scores["base"]["isolation"]
