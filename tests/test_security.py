"""Hostile templates, YAML, paths and keys: refused, kept in a sandbox or masked.

A test checks that each test named in SECURITY.md exists.
"""

import ast
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from files import ROOT
from made_up_tasks import CHOICE, change

from eval.report.report import write_report
from eval.results.external_results import import_measures
from eval.tasks.task_files import TaskSource, check_tasks, load_tasks
from sft.chat_template import render
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset
from sft.config.secrets import mask_secrets
from sft.config.sections import EvalSection, ModelSection, Preset, RunSection
from sft.distributed.watchdog import clear, watching
from sft.errors import UserError
from sft.run.command import run_command
from sft.run.directory import open_run
from sft.run.run_record import write_run_record
from sft.system.atomic_files import write_json, write_text

PRESET = "model: {name_or_path: m}\ndata: {sft: [{path: a}]}\npairs: {prompts: [{path: a}]}\n"
KEY = "hf_" + "aB3" * 11


# Templates


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "'__class__'|unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('x') }}", "unsafe"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "0.5 s"),
        ("{{ 'x' * 4000 }}", "4,000 characters"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ range(999999999)|list }}", "Range too big"),
    ],
)
def test_chat_templates_are_kept_in_their_sandbox_and_end(
    tiny_tokenizer, monkeypatch, template, words
):
    monkeypatch.setattr(render, "PATIENCE", 0.5)
    monkeypatch.setattr(render, "LONGEST", 3000)
    tiny_tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"refuses a conversation .*(?:{words})"):
        ensure_template(tiny_tokenizer)


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


@pytest.mark.parametrize(
    "changes",
    [
        {"doc_to_text": ESCAPE},
        {"doc_to_target": "{{ question.__class__ }}"},
        {"doc_to_choice": "{{ choices.__init__.__globals__ }}"},
        {"dataset_kwargs": CHOICE["dataset_kwargs"] | {"where": "''.__class__.__mro__"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_templates_of_tasks_are_kept_in_a_sandbox(task_dir, changes):
    change(task_dir, **changes)
    with pytest.raises(UserError, match="accesses '__"):
        task = load_tasks(["mine_choice"], source=TaskSource(str(task_dir)), shots=0, seed=0)
        document = task["mine_choice"].eval_docs[0]
        for text in ("doc_to_text", "doc_to_target", "doc_to_choice"):
            getattr(task["mine_choice"], text)(document)


# YAML


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100,000 values"),
        ("run: {seed: " + "9" * 5_000 + "}", "a value cannot be read: Exceeds the limit"),
        ("run: {seed: !!int many}", "a value cannot be read: invalid literal"),
        ("run: {seed: !!bool many}", "a value cannot be read: it is not a truth value"),
        ("run: " + "[" * 2_000, "more than 50 levels"),
        ("run: &a [*a]", "contains itself"),
        ("run: !!python/object/apply:os.system ['touch mark']", "could not determine a constr"),
        ("run: {dir: '${oc.env:HOME}'}", r"run.dir holds \$\{...\}; write the value out"),
    ],
    ids=["bomb", "digits", "int", "bool", "depth", "loop", "object", "environment"],
)
def test_hostile_yaml_is_refused_in_presets_and_tasks(tmp_path, mark, text, words):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as no:
        load_preset(tmp_path / "p.yaml")
    assert os.environ["HOME"] not in str(no.value).replace(str(tmp_path), "")
    if "HOME" not in text:
        with pytest.raises(UserError, match=r"is not valid YAML|plain data here"):
            check_tasks(["x"], source=TaskSource(str(tmp_path)))
    preset = Preset(run=RunSection(str(tmp_path / "run")), model=ModelSection("m"))
    with open_run(preset) as folder:
        write_json(folder / "results.json", {"models": ["base"]})
    (folder / "preset.yaml").write_text(text)
    write_report(folder)
    (folder / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match=r"is damaged|another preset"), open_run(preset):
        pass


# Paths and names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "../../out"}, "cannot be the name of its samples file"),
        ({"task": "a\nb"}, "cannot be the name of its samples file"),
        ({"include": "../../secret.yaml"}, "does not exist"),
        ({"include": "mine_choice.yaml"}, "includes itself"),
        ({"dataset_kwargs": {"data_files": {"test": "../../rows.jsonl"}}}, "is outside"),
        ({"dataset_kwargs": {"data_files": {"test": "/etc/hosts"}}}, "is outside"),
        ({"dataset_kwargs": {"data_files": {"test": "file:///etc/hosts"}}}, "is no https"),
        ({"dataset_kwargs": {"data_files": {"test": "https://u:w0rd@h/x.json"}}}, r"\*\*\*@h"),
        ({"metric_list": [{"metric": "./evil"}]}, "is not part of lm-eval"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "is not part of lm-eval"),
        ({"use_prompt": "../x.yaml:a"}, "use_prompt reads other files"),
    ],
)
def test_task_files_lead_nowhere_else(task_dir, tmp_path, changes, words):
    (tmp_path / "secret.yaml").write_text("task: x")
    change(task_dir, **changes)
    with pytest.raises(UserError, match=words) as no:
        check_tasks([changes.get("task", "mine_choice")], source=TaskSource(str(task_dir)))
    assert "w0rd" not in str(no.value)


def test_data_files_stay_in_the_folder_of_data(task_dir, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "x", "choices": ["a"], "gold": 0}\n')
    source = TaskSource(str(task_dir), str(tmp_path / "data"))
    for name in ("../rows.jsonl", "/etc/hosts"):
        change(task_dir, dataset_kwargs={"data_files": {"test": name}})
        with pytest.raises(UserError, match="is outside"):
            source.configs(["mine_choice"])
    change(task_dir, dataset_kwargs={"data_files": {"test": "choice.jsonl"}})
    assert source.configs(["mine_choice"])


def test_measures_of_others_are_written_inside_the_run(tmp_path):
    rows = tmp_path / "theirs" / "samples" / ".." / ".." / "out.jsonl"
    (tmp_path / "theirs" / "samples").mkdir(parents=True)
    rows.write_text("{}")
    write_json(tmp_path / "theirs" / "scores.json", {"benchmarks": {"../../out": {}}})
    into = tmp_path / "run" / "eval" / "x"
    with pytest.raises(UserError, match="no name for a file"):
        import_measures(tmp_path / "theirs", into, section=EvalSection())
    write_json(tmp_path / "theirs" / "results.json", {"models": ["../../x"]})
    with pytest.raises(UserError, match="no name for a file"):
        import_measures(tmp_path / "theirs", into, section=EvalSection())
    assert not list(into.rglob("*.jsonl"))


def test_links_that_lead_out_of_a_run_directory_are_refused(tmp_path):
    (tmp_path / "secret.txt").write_text("kept")
    preset = Preset(run=RunSection(str(tmp_path / "run")), model=ModelSection("m"))
    with open_run(preset) as folder:
        (folder / "1-sft-all").mkdir()
        write_text(folder / "1-sft-all" / "log.jsonl", "")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "run")
    with open_run(Preset(run=RunSection(str(tmp_path / "elsewhere")), model=ModelSection("m"))):
        pass  # the run directory itself may be a link, and links may stay inside
    (folder / "inside").symlink_to(folder / "1-sft-all")
    with open_run(preset):
        pass
    (folder / "1-sft-all" / "log.jsonl").unlink()
    (folder / "1-sft-all" / "log.jsonl").symlink_to(tmp_path / "secret.txt")
    with (
        pytest.raises(UserError, match=r"log\.jsonl is a link that leads out of it"),
        open_run(preset),
    ):
        pass
    with pytest.raises(UserError, match=r"from this run .inside"), open_run(preset, fresh=True):
        pass
    (folder / "inside").unlink()
    with open_run(preset, fresh=True):
        assert not (folder / "1-sft-all").exists()
    assert (tmp_path / "secret.txt").read_text() == "kept"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", [".lock", ".preset.yaml.tmp", "preset.yaml"])
def test_nothing_is_written_through_a_link_before_links_are_refused(tmp_path, name, fresh):
    preset = Preset(run=RunSection(str(tmp_path / "run")), model=ModelSection("m"))
    with open_run(preset) as folder:
        pass
    (tmp_path / "secret.txt").write_text("kept")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret.txt")
    refused = pytest.raises(UserError, match=re.escape(f"{name} is a link"))
    with nullcontext() if fresh and name != ".lock" else refused, open_run(preset, fresh=fresh):
        pass
    assert (tmp_path / "secret.txt").read_text() == "kept"


def test_records_of_processes_are_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.json").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".processes").symlink_to(tmp_path / "elsewhere")
    clear(tmp_path / "run")
    with watching(tmp_path / "run", rank=0, count=2):
        pass
    assert (tmp_path / "elsewhere" / "0.json").read_text() == "kept"


# Passwords and keys


def test_presets_with_passwords_or_keys_are_refused_unsaid(tmp_path):
    (tmp_path / "p.yaml").write_text(PRESET)
    for override, where in (
        (f"sft_all.run_name={KEY}", "sft_all.run_name"),
        ("data.sft=[{path: 'https://me:word@host/x.json'}]", r"data.sft\[0\].path"),
        ("model.license=sk-" + "a1" * 12, "model.license"),
    ):
        with pytest.raises(UserError, match=f"{where} holds a password or a key") as no:
            load_preset(tmp_path / "p.yaml", overrides=[override, f"run.seed={KEY}"])
        assert KEY not in str(no.value) and "word@" not in str(no.value)
    with pytest.raises(UserError, match=r"hub_token is decided by the environment"):
        load_preset(tmp_path / "p.yaml", overrides=["sft_all.hub_token=abc"])


def test_what_is_said_holds_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("MY_API_KEY", "swordfish-swordfish")
    said = f"https://me:word@host/x {KEY} swordfish-swordfish ghp_{'a' * 36}"
    assert mask_secrets(said) == "https://***@host/x *** *** ***"
    plain = "hf://datasets/org/name@main/x.json, https://host/a@b, sk-learn and task-force"
    assert mask_secrets(plain) == plain

    def work():
        raise UserError(said)

    assert run_command(work) == 2
    text = capsys.readouterr().err
    assert "***" in text
    assert not re.search(f"{KEY}|word@|swordfish|ghp_a", text)


def test_no_file_of_a_run_holds_the_environments_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + "b2" * 20)
    preset = Preset(run=RunSection(str(tmp_path / "run")), model=ModelSection("m"))
    with open_run(preset) as folder:
        write_run_record(folder, preset)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {"run.json", "preset.yaml", ".lock"} <= {path.name for path in files}
        for path in files:
            assert KEY not in path.read_text() and "sk-" not in path.read_text()


# Nothing is sent


def test_every_package_switches_statistics_off_before_any_library(monkeypatch):
    """In a process that imports one package alone, and before the libraries that would ask."""
    switches = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_UPDATE_DOWNLOAD_COUNTS",
                "WANDB_ERROR_REPORTING", "DISABLE_SAFETENSORS_CONVERSION")  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name not in switches}
    for package in ("sft", "dpo", "eval"):
        script = (
            f"import {package}, os, sys\n"
            f"assert not {{'huggingface_hub', 'datasets', 'transformers'}} & set(sys.modules)\n"
            f"print([os.environ[name] for name in {switches!r}])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=clean, capture_output=True, text=True
        )
        assert done.stdout.strip() == "['1', '1', '0', 'false', '1']", done.stderr
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY
    for recipe in (ROOT / "recipes").glob("*.py"):
        tops = [n for n in ast.parse(recipe.read_text()).body if isinstance(n, ast.ImportFrom)]
        names = [node.module.partition(".")[0] for node in tops]
        heavy = {"torch", "transformers", "datasets", "trl", "accelerate", "lm_eval", "peft"}
        assert not heavy & set(names), recipe


def test_training_reports_to_nobody_unless_asked():
    from trl import DPOConfig, SFTConfig

    for config in (SFTConfig, DPOConfig):
        assert config(output_dir="x", use_cpu=True, gradient_checkpointing=None).report_to == []


# The table


def test_every_test_of_the_threat_table_exists():
    table = (ROOT / "SECURITY.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+)\.py::(test_\w+)`", table)
    assert len(named) > 15
    threats = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    assert len(threats) == len(set(threats))
    for file, test in named:
        text = (ROOT / "tests" / f"{file}.py").read_text("utf-8")
        assert f"def {test}(" in text, f"{file}.py::{test}"
    for line in table.splitlines():
        if line.startswith("|") and not line.startswith(("| Threat", "| ---")):
            assert re.search(r"`[\w/]+\.py::test_\w+`", line), line
    mentioned = {Path(file).stem for file, _ in named}
    assert "test_security" in mentioned and "test_report" in mentioned
