"""Hostile files: nothing in them runs, leads elsewhere, fills the memory, or is passed on.

Each test named in SECURITY.md exists; those of this file leave a mark on the disk if what a hostile
file holds has been run.
"""

import ast
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from files import ROOT
from hostile_adapters import save_adapter
from made_up_tasks import CHOICE, change
from safetensors.torch import load_file
from training import train

from eval.report.report import write_report
from eval.results.imported import import_measures
from eval.tasks.task_files import Tasks, check_tasks, load_tasks
from recipes import export
from sft.chat_template import render
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset
from sft.config.secrets import mask_secrets
from sft.config.sections import EvalSection, ModelSection, Preset, RunSection, Source
from sft.data.sources import read_sft
from sft.distributed.watchdog import clear, watching
from sft.errors import UserError
from sft.model.loading import check_model, load_tokenizer
from sft.model.weight_files import conversion
from sft.run.checkpoint import newest_first, seal
from sft.run.command import run_command
from sft.run.directory import open_run
from sft.run.run_record import write_run_record
from sft.run.stage_cache import Stage
from sft.system.atomic_files import write_json, write_text

PRESET = "model: {name_or_path: m}\ndata: {sft: [{path: a}]}\npairs: {prompts: [{path: a}]}\n"
KEY = "hf_" + "aB3" * 11


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path):
    """What a hostile file would make if it were run; it is not there at the end."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "what a hostile file holds was run"


def code(mark):
    return f"open({str(mark)!r}, 'w')\n"


def test_the_bombs_of_these_tests_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


# Weights, checkpoints and code that come with a model


def test_pickled_weights_are_refused_and_the_way_to_convert_them_works(tmp_path, mark, tiny_model):
    tiny_model.save_pretrained(tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    file = tmp_path / "m" / "pytorch_model.bin"
    torch.save(weights | {"x": Bomb(mark)}, file)
    section = ModelSection(str(tmp_path / "m"))
    with pytest.raises(UserError, match=r"holds pytorch_model.bin, a pickle, .*: python -c") as no:
        check_model(section)
    told = shlex.split(str(no.value).partition("new folder: ")[2])
    without_tokenizer = told[2].partition("; T.from")[0]
    with pytest.raises(pickle.UnpicklingError):
        exec(without_tokenizer)
    torch.save(weights, file)
    exec(without_tokenizer)
    new = tmp_path / "m-safetensors"
    assert check_model(ModelSection(str(new))) == str(new)
    for name, tensor in load_file(new / "model.safetensors").items():
        assert torch.equal(tensor, weights[name])


def adapter(folder, base, **changes):
    save_adapter("lora", folder, base=base)
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return ModelSection(str(folder))


def test_adapters_of_other_kinds_and_over_pickles_are_refused(tmp_path, mark, tiny_model):
    tiny_model.save_pretrained(tmp_path / "base")
    assert check_model(adapter(tmp_path / "good", tmp_path / "base"))
    prompt = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 1}
    with pytest.raises(UserError, match="kind 'PROMPT_TUNING', and only LORA"):
        check_model(adapter(tmp_path / "a", tmp_path / "base", **prompt))
    with pytest.raises(UserError, match=r"no such|no model could be read"):
        nowhere = {"base_model_name_or_path": str(tmp_path / "nowhere")}
        check_model(adapter(tmp_path / "b", tmp_path / "base", **nowhere))
    pickled = adapter(tmp_path / "c", tmp_path / "base")
    (tmp_path / "c" / "adapter_model.safetensors").unlink()
    torch.save({"a.lora_A": torch.zeros(2), "b": Bomb(mark)}, tmp_path / "c" / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin, a pickle") as no:
        check_model(pickled)
    with pytest.raises(pickle.UnpicklingError):
        exec(shlex.split(str(no.value).partition("new folder: ")[2])[2])
    over = adapter(tmp_path / "d", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"its base, .*pytorch_model.bin, a pickle"):
        check_model(over)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_conversion_is_one_command_whatever_the_path_holds(adapter):
    """What is pasted into a shell holds the path as it is, and runs nothing that stands in it."""
    path = """/m/$(touch x) `id` "a" 'b' [c]\\d $HOME é"""
    script = f"set -- {conversion(path, adapter=adapter)}; printf '%s' \"$3\""
    steps = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    texts = {n.value for n in ast.walk(ast.parse(steps)) if isinstance(n, ast.Constant)}
    assert path in texts and f"{path}-safetensors" in texts


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, mark, tiny_tokenizer):
    rows = Dataset.from_list([{"input_ids": [5] * 9, "trained": [False] + [True] * 8}] * 8)
    options = {"batch": 4, "micro": 4, "num_train_epochs": 1, "save_steps": 1}
    train(rows, tiny_tokenizer, tmp_path / "s", **options, save_total_limit=9)
    last, first = newest_first(tmp_path / "s")
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    held = sorted(p.name for p in first.iterdir() if p.suffix in (".pt", ".pth", ".bin"))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} <= set(held)
    for name in held:
        before = (first / name).read_bytes()
        torch.save({"state": Bomb(mark), "param_groups": []}, first / name)
        seal(first)  # whoever makes a run directory makes its manifest, too
        if name == "training_args.bin":  # which nobody reads
            continue
        with pytest.raises(pickle.UnpicklingError):
            train(rows, tiny_tokenizer, tmp_path / "s", **options)
        (first / name).write_bytes(before)
    assert not mark.exists()
    seal(first)
    train(rows, tiny_tokenizer, tmp_path / "s", **options)


@pytest.mark.parametrize("kind", ["llama", "mine"])
def test_python_files_of_a_model_do_not_run_unless_asked_for(
    tmp_path, mark, tiny_tokenizer, tiny_model, kind
):
    folder = tmp_path / "m"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder / "evil.py").write_text(code(mark) + "class C: pass\n")
    for name, auto in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.C", "evil.C"]}),
    ):
        config = json.loads((folder / name).read_text()) | {"auto_map": auto}
        if name == "config.json":
            config["model_type"] = kind
        else:
            config["tokenizer_class"] = "C"
        (folder / name).write_text(json.dumps(config))
    section = ModelSection(str(folder))
    assert section.trust_remote_code is False
    for load in (check_model, lambda s: load_tokenizer(s.name_or_path, s)):
        try:
            load(section)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_runs_word_is_not_enough_to_run_its_models_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "preset.yaml").write_text(PRESET.replace("{name", "{trust_remote_code: true, name"))
    (tmp_path / "1-sft-all").mkdir()
    Stage(tmp_path / "1-sft-all", {}).finish(outputs=[], facts={})
    assert export.main([str(tmp_path), "--to", str(tmp_path / "out")]) == 2
    assert "pass --trust-remote-code" in capsys.readouterr().err


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
    with pytest.raises(UserError, match="reaches for '__"):
        task = load_tasks(["mine_choice"], source=Tasks(str(task_dir)), shots=0, seed=0)
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
            check_tasks(["x"], source=Tasks(str(tmp_path)))
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
        ({"task": "../../out"}, "no name for a file"),
        ({"task": "a\nb"}, "no name for a file"),
        ({"include": "../../secret.yaml"}, "is not there"),
        ({"include": "mine_choice.yaml"}, "comes back to where it began"),
        ({"dataset_kwargs": {"data_files": {"test": "../../rows.jsonl"}}}, "leads out of"),
        ({"dataset_kwargs": {"data_files": {"test": "/etc/hosts"}}}, "leads out of"),
        ({"dataset_kwargs": {"data_files": {"test": "file:///etc/hosts"}}}, "is no https"),
        ({"dataset_kwargs": {"data_files": {"test": "https://u:w0rd@h/x.json"}}}, r"\*\*\*@h"),
        ({"metric_list": [{"metric": "./evil"}]}, "none of lm-eval's own"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "none of lm-eval's own"),
        ({"use_prompt": "../x.yaml:a"}, "use_prompt reads other files"),
    ],
)
def test_task_files_lead_nowhere_else(task_dir, tmp_path, changes, words):
    (tmp_path / "secret.yaml").write_text("task: x")
    change(task_dir, **changes)
    with pytest.raises(UserError, match=words) as no:
        check_tasks([changes.get("task", "mine_choice")], source=Tasks(str(task_dir)))
    assert "w0rd" not in str(no.value)


def test_data_files_stay_in_the_folder_of_data(task_dir, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "x", "choices": ["a"], "gold": 0}\n')
    source = Tasks(str(task_dir), str(tmp_path / "data"))
    for name in ("../rows.jsonl", "/etc/hosts"):
        change(task_dir, dataset_kwargs={"data_files": {"test": name}})
        with pytest.raises(UserError, match="leads out of"):
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


# Data that might be unpickled


@pytest.mark.filterwarnings("ignore:The Pandas builder is deprecated:FutureWarning")
def test_data_that_hold_pickles_or_scripts_are_not_run(tmp_path, mark, task_dir, monkeypatch):
    class Kind(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.string(), "arrow.py_extension_type")

        def __arrow_ext_serialize__(self):
            return pickle.dumps(Bomb(mark))

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type, serialized):
            return cls()

    column = pa.ExtensionArray.from_storage(Kind(), pa.array(["a", "b"]))
    text = pa.array([[{"role": "user", "content": "a"}, {"role": "assistant", "content": c}]
                     for c in "xy"])  # fmt: skip
    pq.write_table(pa.table({"messages": text, "x": column}), tmp_path / "rows.parquet")
    assert len(read_sft([Source(str(tmp_path / "rows.parquet"))]).rows) == 2

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(code(mark))
    (folder / "data.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    monkeypatch.chdir(tmp_path)
    for kind in (str(folder), "set", "pandas"):
        kwargs = {"data_files": {"test": "../set/data.pkl"}} if kind == "pandas" else {}
        change(task_dir, dataset_path=kind, dataset_kwargs=kwargs)
        with pytest.raises(UserError):
            load_tasks(["mine_choice"], source=Tasks(str(task_dir)), shots=0, seed=0)
    for path in ("set", "./set"):
        with pytest.raises(UserError):
            read_sft([Source(path)])


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


def test_code_here_loads_nothing_by_pickle_and_no_yaml_unsafely():
    forbidden = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    for path in (p for room in ("sft", "dpo", "eval") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert node.module not in forbidden, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"), path
                if called == "torch.load":
                    assert any(k.arg == "weights_only" for k in node.keywords), path
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) != "True", path
