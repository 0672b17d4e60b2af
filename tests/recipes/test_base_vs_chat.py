"""base_vs_chat.py with failures: kills, unwritable folders, models that differ."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from files import ROOT
from tiny_models import make_tiny_model, make_tiny_tokenizer
from tiny_world import build_world, foreign_files

from recipes import base_vs_chat
from sft.chat_template.template import ensure_template
from sft.run.stage_cache import Stage
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl

RUNS = ("two", "unbroken")
LONG = {
    "task": "long",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "long.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 300},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def world(tmp_path, tiny_tokenizer):
    """The tiny world with a second model, `other`, and a task that takes seconds, `long`."""
    ensure_template(tiny_tokenizer)
    build_world(tmp_path, tiny_tokenizer)
    make_tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "tasks" / "long.yaml").write_text(yaml.safe_dump(LONG))
    rows = [{"question": f"Write about {i}.", "answer": str(i)} for i in range(48)]
    write_jsonl(tmp_path / "tasks" / "long.jsonl", rows)
    return tmp_path


def arguments(world, *, tasks="sums", to="two"):
    given = ["--base", str(world / "base"), "--chat", str(world / "other"), "--base-shots", "2"]
    return [*given, "--task-dir", str(world / "tasks"), "--tasks", tasks, "--to", str(world / to)]


def test_killed_within_a_task_it_ends_as_one_that_was_not(world):
    """SIGKILL while the second task's answers are being written."""
    command = [
        sys.executable,
        ROOT / "recipes/base_vs_chat.py",
        *arguments(world, tasks="sums,long"),
    ]
    done = world / "two" / "eval" / "base" / "kept" / "protocol" / "sums.json"
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not done.is_file() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = world / "two" / "eval" / "base" / "samples" / "sums.jsonl"
    before = kept.stat().st_mtime_ns
    assert not kept.with_name("long.jsonl").exists()

    assert base_vs_chat.main(arguments(world, tasks="sums,long")) == 0
    assert kept.stat().st_mtime_ns == before, "what was measured is measured once"
    assert base_vs_chat.main(arguments(world, tasks="sums,long", to="unbroken")) == 0
    for name in (
        "base/samples/sums",
        "base/samples/long",
        "chat/samples/sums",
        "chat/samples/long",
    ):
        rows, whole = (read_jsonl(world / run / "eval" / f"{name}.jsonl") for run in RUNS)
        for row, beside in zip(rows, whole, strict=True):
            # Another process may add in another order.
            assert row.pop("log_probs", []) == pytest.approx(beside.pop("log_probs", []), abs=1e-4)
            assert row == beside
    results = [read_json(world / run / "results.json") for run in RUNS]
    assert results[0] == results[1] and set(results[0]["benchmarks"]) == {"sums", "long"}
    assert foreign_files(world / "two") == []


def refusal(given, capsys):
    assert base_vs_chat.main(given) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_of_samples_alone_the_tasks_that_can_be_compared_can_be_named(world, capsys):
    assert base_vs_chat.main(arguments(world, tasks="sums,long", to="whole")) == 0
    own = world / "whole" / "eval" / "chat" / "samples" / "long.jsonl"
    rows = read_jsonl(own)
    write_jsonl(own, [rows[0] | {"doc_id": "new", "doc_hash": "new"}, *rows[1:]])
    Stage(own.parents[1], {}).finish(outputs=["scores.json", "samples"], facts={})
    given = [arg for n in ("base", "chat") for arg in ("--samples", str(own.parents[2] / n))]
    told = refusal([*given, "--to", str(world / "all")], capsys)
    assert "long: base and chat were measured on different documents" in told
    assert "name the tasks that can be compared (base_vs_chat.py --tasks)" in told
    told = refusal([*given, "--to", str(world / "none"), "--tasks", "sum"], capsys)
    assert told == "error: task sum was not measured for any of base, chat; they have sums, long"
    to = world / "some"
    assert base_vs_chat.main([*given, "--to", str(to), "--tasks", "sums"]) == 0
    assert list(read_json(to / "results.json")["benchmarks"]) == ["sums"]


def test_where_weights_lie_changes_no_measure(world):
    given = [*arguments(world), "--preset", str(world / "preset.yaml")]
    assert base_vs_chat.main([*given, "eval.repetition.prompts=null"]) == 0
    file = world / "two" / "eval" / "base" / "samples" / "sums.jsonl"
    before = file.stat().st_mtime_ns
    again = [*given, "eval.repetition.prompts=null", "eval.in_parts=false"]
    assert base_vs_chat.main(again) == 0
    assert file.stat().st_mtime_ns == before


def test_command_line_options_follow_a_presets_rules(world, capsys):
    given = [*arguments(world), "--limit", "0", "--base-shots", "-1"]
    assert refusal(given, capsys) == (
        "error: eval.limit=0 must be at least one document of each task, or null for all; "
        "eval.tasks=[] skips the benchmarks; eval.base_shots=-1 must be a number of examples, "
        "0 or more"
    )


def test_an_unknown_format_is_refused_and_spaces_between_tasks_are_ignored(world, capsys):
    """An unknown format must not be measured as plain and reported under its own name."""
    with pytest.raises(SystemExit) as stopped:
        base_vs_chat.main([*arguments(world), "--same-format", "chatty"])
    assert stopped.value.code == 2
    assert "invalid choice: 'chatty'" in capsys.readouterr().err
    asked = refusal([*arguments(world), "--tasks", "sums, summs"], capsys)
    assert asked.startswith("error: eval.tasks: 'summs' is no task")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("kernel", "cannot be written"),
        ("closed", "cannot be written"),
        ("file", "is a file, or lies in one"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence_before_any_model(
    world, capsys, place, words, monkeypatch
):
    to = world / place
    if place == "kernel":
        to = "/proc/nope"
    elif place == "file":
        to.write_text("")
    else:
        if os.geteuid() == 0:
            pytest.skip("root writes into any folder")
        to.mkdir(mode=0o555)
    monkeypatch.delattr("transformers.AutoModelForCausalLM.from_pretrained")  # never called
    sentence = refusal(arguments(world, to=to), capsys)
    assert sentence.startswith("error: ") and words in sentence


def test_prompts_that_do_not_fit_are_counted_on_record_and_refused_beyond_a_share(world, capsys):
    rows = read_jsonl(world / "tasks" / "long.jsonl")[:12]
    rows[3]["question"] = "too long " * 60
    write_jsonl(world / "tasks" / "long.jsonl", rows)
    given = arguments(world, tasks="long")
    assert base_vs_chat.main(given) == 0
    entry = read_json(world / "two" / "results.json")["benchmarks"]["long"]
    assert entry["base"]["cut_prompts"] == entry["chat"]["cut_prompts"] == 1
    assert "1 prompt cut" in (world / "two" / "report.html").read_text()
    rows[4]["question"] = "too long " * 60
    write_jsonl(world / "tasks" / "long.jsonl", rows)
    sentence = refusal(given, capsys)
    assert "long: 2 of 12 prompts are longer than the context window of 512 tokens" in sentence


def test_models_with_other_tokenizers_or_templates_are_warned_of(world, caplog):
    caplog.set_level(logging.WARNING)
    given = arguments(world)
    assert base_vs_chat.main(given) == 0
    assert "different" not in caplog.text and "no chat template" not in caplog.text

    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    tokenizer.save_pretrained(world / "other")
    assert base_vs_chat.main([*given[:-1], str(world / "templates")]) == 0
    assert "base, chat: different chat templates" in caplog.text

    tokenizer.add_tokens(["Question"])
    make_tiny_model(seed=1, vocab_size=261).save_pretrained(world / "other")
    tokenizer.save_pretrained(world / "other")
    assert base_vs_chat.main([*given[:-1], str(world / "tokenizers")]) == 0
    assert "base, chat: different tokenizers: scores can be compared, but" in caplog.text


def test_a_chat_model_without_a_template_is_named(world, caplog):
    make_tiny_tokenizer().save_pretrained(world / "other")
    (world / "other" / "chat_template.jinja").unlink()
    caplog.set_level(logging.WARNING)
    assert base_vs_chat.main(arguments(world)) == 0
    assert f"chat: {world / 'other'} has no chat template, so that the built-in one" in caplog.text


def measured(world, to, *more):
    models = ["--base", str(world / "base"), "--chat", str(world / "other")]
    preset = ["--preset", str(world / "preset.yaml"), "--to", str(world / to)]
    assert base_vs_chat.main([*models, *preset, *more]) == 0
    return read_json(world / to / "results.json")


def test_tasks_narrow_a_preset_to_tasks_and_the_limit_holds_for_all(world):
    safety = world / "safety.jsonl"
    due = [{"prompt": f"say {i}?", "reference": {"refuse": i % 2 == 0}} for i in range(10)]
    write_jsonl(safety, due)
    asked = (f"eval.safety.prompts={safety}", "eval.safety.cap=8")
    tasks = measured(world, "narrow", "--tasks", "sums", "--limit", "3", "eval.safety.cap=8")
    assert tasks["repetition"] == {} and "safety" not in tasks
    assert tasks["benchmarks"]["sums"]["base"]["n"] == 3
    named = measured(world, "named", "--tasks", "sums", "--limit", "3", *asked)
    assert named["repetition"] == {} and named["safety"]["base"]["secure"]["n"] == 2
    every = measured(world, "all", "--limit", "4", *asked)
    assert every["benchmarks"]["sums"]["base"]["n"] == every["repetition"]["chat"]["n"] == 4
    # Prompts 0, 2, 5 and 7 of ten, at equal distances: two of each kind.
    rates = every["safety"]["chat"]
    assert rates["secure"]["n"] == rates["over_refusal"]["n"] == 2
    rows = read_jsonl(world / "all" / "eval" / "base" / "generations.jsonl")
    assert [row["id"] for row in rows] == ["0", "1", "3", "4"]


def test_a_limit_of_no_prompts_is_refused(world, capsys):
    given = [*arguments(world), "--limit", "0", "--prompts", str(world / "prompts.jsonl")]
    assert "eval.repetition.limit=0 must be at least one prompt" in refusal(given, capsys)


def long_choices(world, count, *, characters=600):
    rows = [
        {"question": f"{i}+1", "choices": [str(i + 1), "x" * (characters if i < count else 2)]}
        for i in range(40)
    ]
    write_jsonl(world / "tasks" / "sums.jsonl", [row | {"gold": 0} for row in rows])


def test_what_would_stop_a_later_task_is_found_before_any_model_is_loaded(
    world, capsys, monkeypatch
):
    monkeypatch.delattr("transformers.AutoModelForCausalLM.from_pretrained")  # never called
    long_choices(world, 5)
    given = arguments(world, tasks="long,sums")
    words = "sums: 5 of 40 questions have a choice that alone fills the context window of 512"
    assert words in refusal(given, capsys)
    long_choices(world, 0)
    (world / "tasks" / "sums.jsonl").write_text('{"question": "1+1", "choices": ["2"]}\n')
    assert "sums" in refusal(given, capsys)
    assert not (world / "two" / "eval").exists()


def test_models_of_different_windows_are_compared_on_the_questions_that_both_answer(world):
    long_choices(world, 2)
    wide = make_tiny_model(seed=1, max_position_embeddings=2048)
    wide.save_pretrained(world / "other")
    assert base_vs_chat.main(arguments(world)) == 0
    results = read_json(world / "two" / "results.json")
    entries = results["benchmarks"]["sums"]
    assert (entries["base"]["n"], entries["base"]["left_out"], entries["chat"]["n"]) == (38, 2, 40)
    (delta,) = results["deltas"]
    assert (delta["n"], delta["left_out"]) == (38, 2)
    scores = {
        name: {
            row["doc_id"]: row["score"]
            for row in read_jsonl(world / "two" / "eval" / name / "samples" / "sums.jsonl")
        }
        for name in ("base", "chat")
    }
    changes = [scores["chat"][doc] - score for doc, score in scores["base"].items()]
    assert delta["delta"] == pytest.approx(sum(changes) / 38)
    assert "38 (2 left out)" in (world / "two" / "report.md").read_text()
    assert "38 (2 left out)" in (world / "two" / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"until": [5]}, "generation_kwargs.until is [5]; give a text or a list of texts"),
        (
            {"max_gen_toks": "many"},
            "generation_kwargs.max_gen_toks is 'many'; give a positive number",
        ),
        ({"max_new_tokens": 0}, "generation_kwargs.max_new_tokens is 0; give a positive number"),
        ({"temperature": "warm"}, "generation_kwargs.temperature is 'warm'; give a number"),
        (["until"], "generation_kwargs is ['until']; give keys and values"),
        ({"until": [], "num_beams": 4}, "generation_kwargs.num_beams is not supported"),
    ],
)
def test_settings_of_answers_that_cannot_be_read_are_refused_before_any_model_is_loaded(
    world, capsys, monkeypatch, settings, words
):
    monkeypatch.delattr("transformers.AutoModelForCausalLM.from_pretrained")  # never called
    (world / "tasks" / "long.yaml").write_text(
        yaml.safe_dump(LONG | {"generation_kwargs": settings})
    )
    assert f"long: {words}" in refusal(arguments(world, tasks="long"), capsys)
