"""Hostile folders of models, adapters and samples: no field chooses code, no path leads out."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from files import ROOT
from hostile_adapters import save_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from eval.report import report
from eval.results.external_results import import_measures
from recipes import base_vs_chat, export
from sft.config.sections import EvalSection, ModelSection
from sft.errors import UserError
from sft.model.architecture import meta_model
from sft.model.loading import check_model, load_model, load_tokenizer
from sft.model.model_config import read_model_config
from sft.model.placement import choose_placement
from sft.system.atomic_files import write_json
from sft.tokenization.input_hashes import weights_fingerprint


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer):
    """A whole model."""
    path = tmp_path / "model"
    tiny_model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def sharded(folder, *names):
    """The weights of a folder in files of these names, with their index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {name: {} for name in names}
    for i, (key, tensor) in enumerate(weights.items()):
        parts[names[i % len(names)]][key] = tensor
    for name, part in parts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        save_file(part, folder / name, {"format": "pt"})
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}} | index)


# Fields that choose code


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": "org/kernel:mark"},
        {"attn_implementation": {"": "org/kernel"}},
        {"experts_implementation": "sonicmoe"},
        {"_attn_implementation": "flash_attention_2", "use_kernels": True},
        {"transformers_weights": "other.safetensors"},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_fields_of_a_configuration_choose_no_kernels_and_no_files(folder, tiny_model, fields):
    """A kernel of the hub would be fetched, or refused, where a model is made: while planning, too.
    Of two files of weights the one is read that the hash covers."""
    change(folder / "config.json", **fields)
    save_file(
        {k: torch.zeros_like(v) for k, v in load_file(folder / "model.safetensors").items()},
        folder / "other.safetensors",
        {"format": "pt"},
    )
    section = ModelSection(str(folder), dtype="float32")
    path = check_model(section)
    config = read_model_config(path, trust_remote_code=False)
    assert config._attn_implementation is None and config._experts_implementation is None
    with torch.device("meta"):
        assert meta_model(config).config._attn_implementation == "sdpa"
    loaded = load_model(path, choose_placement(section))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_fields_of_a_models_parts_choose_nothing_either(tmp_path):
    part = {"attn_implementation": "org/kernel", "_experts_implementation": "sonicmoe"}
    AutoConfig.for_model("gemma3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("text_config", "vision_config"):
        config[name] |= part
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_model_config(str(tmp_path), trust_remote_code=False)
    for each in (read, read.text_config, read.vision_config):
        assert each._attn_implementation is None and each._experts_implementation is None
    config["text_config"]["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is quantized already"):
        check_model(ModelSection(str(tmp_path)))


@pytest.mark.parametrize(
    "fields",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
        {"layer_replication": [[0, 1000]]},
        {"loftq_config": {"loftq_bits": 4}},
        {"corda_config": {"cache_file": "/etc/passwd"}},
        {"arrow_config": {"top_k": 3}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_of_an_adapter_choose_no_code(tmp_path, folder, fields):
    adapter = tmp_path / "adapter"
    save_adapter("lora", adapter, base=folder)
    change(adapter / "adapter_config.json", loftq_config={}, megatron_core="megatron.core")
    assert check_model(ModelSection(str(adapter)))
    change(adapter / "adapter_config.json", **fields)
    for load in (
        lambda: check_model(ModelSection(str(adapter))),
        lambda: load_model(str(adapter), choose_placement(ModelSection(str(adapter)))),
    ):
        with pytest.raises(UserError, match=f"sets {next(iter(fields))}, with which no adapter"):
            load()


def test_a_repository_that_holds_an_adapter_is_not_taken_for_a_model(tmp_path, folder):
    """Upstream would load the adapter, of any kind, over the base that it names."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    folder.rename(snapshot)
    ask = "from sft.config.sections import ModelSection\n"
    ask += "from sft.model.loading import check_model\n"
    ask += "print(check_model(ModelSection('org/name')))"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def answer():
        return subprocess.run(
            [sys.executable, "-c", ask], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    assert answer().stdout.strip() == "org/name@" + "a" * 40
    adapter = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "org/other"}
    write_json(snapshot / "adapter_config.json", adapter)
    assert "holds an adapter; download it" in answer().stderr


# Paths


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "parts/a.safetensors", "a.bin", ".a.safetensors", "ABSOLUTE"]
)
def test_an_index_names_files_of_the_models_folder_alone(tmp_path, folder, name):
    name = name.replace("ABSOLUTE", str(tmp_path / "other.safetensors"))
    sharded(folder, name)
    placement = choose_placement(ModelSection(str(folder)))
    for load in (
        lambda: check_model(ModelSection(str(folder))),
        lambda: load_model(str(folder), placement),
    ):
        with pytest.raises(UserError, match=r"of the model's own folder alone; move them there"):
            load()


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "config.json", "model.safetensors", "parts"]
)
def test_links_that_lead_out_of_a_models_folder_are_refused(tmp_path, folder, name):
    entry, elsewhere = folder / name, tmp_path / "elsewhere"
    if name == "parts":
        elsewhere.mkdir()
    elif entry.exists():
        entry.rename(elsewhere)
    else:
        elsewhere.write_text("secret")
    entry.symlink_to(elsewhere)
    section = ModelSection(str(folder))
    for load in (
        lambda: check_model(section),
        lambda: load_tokenizer(str(folder), section),
        lambda: load_model(str(folder), choose_placement(section)),
    ):
        with pytest.raises(UserError, match=rf"{name} is a link that leads out .*put what it"):
            load()
    entry.unlink()
    entry.symlink_to(entry)
    with pytest.raises(UserError, match=f"{name} is neither a file nor a folder"):
        load_tokenizer(str(folder), section)


def test_links_within_a_models_folder_and_to_blobs_of_the_hub_are_followed(tmp_path, folder):
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "w")
    (folder / "model.safetensors").symlink_to("weights/w")
    assert check_model(ModelSection(str(folder)))
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(path for path in sorted(folder.iterdir()) if path.is_file()):
        (blobs / str(i)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert check_model(ModelSection(str(snapshot))) == str(snapshot)
    (snapshot / "README.md").symlink_to(tmp_path / "models--org--name" / "refs")
    with pytest.raises(UserError, match=r"README\.md is a link that leads out"):
        check_model(ModelSection(str(snapshot)))


def test_a_pipe_in_a_models_folder_is_refused_unread(folder):
    os.mkfifo(folder / "chat_template.jinja")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        check_model(ModelSection(str(folder)))


def test_every_byte_that_a_model_is_loaded_from_is_in_its_hash(folder):
    sharded(folder, "a.safetensors", "b.safetensors")
    (folder / "code").mkdir()
    (folder / "code" / "layers.py").write_text("x = 1\n")
    names = ["a.safetensors", "b.safetensors", "model.safetensors.index.json", "config.json",
             "generation_config.json", "code/layers.py"]  # fmt: skip
    seen = {weights_fingerprint(str(folder))}
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(content)
        seen.add(weights_fingerprint(str(folder)))
    assert len(seen) == len(names) + 1


@pytest.mark.parametrize("name", ["scores.json", "samples/x.jsonl", "generations.jsonl"])
def test_links_in_measures_of_others_are_not_followed(tmp_path, name, capsys):
    theirs, secret = tmp_path / "theirs", tmp_path / "secret"
    (theirs / "samples").mkdir(parents=True)
    write_json(theirs / "scores.json", {"benchmarks": {"x": {}}, "repetition": {}})
    for file in ("samples/x.jsonl", "generations.jsonl"):
        (theirs / file).write_text("{}\n")
    secret.write_text((theirs / name).read_text())
    (theirs / name).unlink()
    (theirs / name).symlink_to(secret)
    into = tmp_path / "run" / "eval" / "x"
    with pytest.raises(UserError, match="is a link that leads out"):
        import_measures(theirs, into, section=EvalSection())
    assert not (into / name).exists()
    both = ["--samples", f"a={theirs}", "--samples", f"b={theirs}", "--to", str(tmp_path / "to")]
    assert base_vs_chat.main(both) == 2
    assert "is a link that leads out" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [False, True])
def test_a_run_of_others_whose_measures_are_a_link_is_not_followed(tmp_path, folder):
    theirs, elsewhere = tmp_path / "theirs", tmp_path / "elsewhere"
    (theirs / "eval").mkdir(parents=True)
    (elsewhere / "dpo").mkdir(parents=True)
    write_json(theirs / "results.json", {"models": ["dpo"]})
    write_json(elsewhere / "dpo" / "scores.json", {"benchmarks": {}})
    if folder:
        (theirs / "eval").rmdir()
        (theirs / "eval").symlink_to(elsewhere)
    else:
        (theirs / "eval" / "dpo").symlink_to(elsewhere / "dpo")
    with pytest.raises(UserError, match="is a link that leads out"):
        import_measures(theirs, tmp_path / "run" / "eval" / "x", section=EvalSection())


@pytest.mark.parametrize(
    "name",
    [
        "data/sft.parquet",  # rows that an export compares logits on
        "eval/dpo/generations.jsonl",
        "3-dpo",  # a folder, with the model in it
        ".report.html.tmp",  # what the report is written to first
        "1-sft-all/log.jsonl",
    ],
)
def test_links_in_runs_of_others_are_followed_by_no_command(tmp_path, name, capsys, monkeypatch):
    """Each command refuses before it reads or writes anything but the folder's own files."""
    run, secret = tmp_path / "run", tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("kept")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / "preset.yaml").write_text("{}")
    write_json(run / "results.json", {"models": []})
    (run / name).symlink_to(secret if name == "3-dpo" else secret / "file")
    words = f"{name} is a link that leads out of it"
    assert export.main([str(run), "--to", str(tmp_path / "to")]) == 2
    assert words in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["report", str(run)])
    assert report.main() == 2
    assert words in capsys.readouterr().err
    with pytest.raises(UserError, match=re.escape(words)):
        check_model(ModelSection(str(run)))
    assert (
        base_vs_chat.main(["--base", str(run), "--tasks", "x", "--to", str(tmp_path / "to")]) == 2
    )
    assert words in capsys.readouterr().err
    assert [file.name for file in secret.iterdir()] == ["file"]
    assert (secret / "file").read_text() == "kept" and not (tmp_path / "to").exists()


@pytest.mark.parametrize("linked", ["samples", "results", "folder"])
def test_links_in_lm_evals_samples_are_not_followed(tmp_path, linked):
    theirs, elsewhere = tmp_path / "theirs", tmp_path / "elsewhere"
    for place in (theirs, elsewhere):
        place.mkdir()
    names = {kind: f"{kind}_2026-01-01T00-00-00.0.json" for kind in ("samples_x", "results")}
    names["samples_x"] += "l"
    for kind, name in names.items():
        (elsewhere / name).write_text("{}")
        if linked in kind:
            (theirs / name).symlink_to(elsewhere / name)
        elif linked != "folder":
            (theirs / name).write_text("{}")
    if linked == "folder":
        (theirs / "deeper").symlink_to(elsewhere)
    words = "holds nothing measured" if linked == "folder" else "is a link that leads out"
    with pytest.raises(UserError, match=words):
        import_measures(theirs, tmp_path / "run", section=EvalSection())
