"""Pickles and code in weights, checkpoints and data do not run.

The tests leave a mark on the disk if a hostile file has been run.
"""

import ast
import json
import os
import pickle
import shlex
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from files import ROOT
from hostile_adapters import save_adapter
from made_up_tasks import change
from safetensors.torch import load_file
from training import train

from eval.tasks.task_files import TaskSource, load_tasks
from recipes import export
from sft.config.sections import ModelSection, Source
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.model.loading import check_model, load_tokenizer
from sft.model.weight_files import conversion
from sft.run.checkpoint import newest_first, seal
from sft.run.stage_cache import Stage

PRESET = "model: {name_or_path: m}\ndata: {sft: [{path: a}]}\npairs: {prompts: [{path: a}]}\n"


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


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
            load_tasks(["mine_choice"], source=TaskSource(str(task_dir)), shots=0, seed=0)
    for path in ("set", "./set"):
        with pytest.raises(UserError):
            read_sft([Source(path)])


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
