"""Adapters, added tokens and models with their own code through the whole chain."""

import json

import torch
from chain_runs import STAGES, run, times
from safetensors.torch import load_file
from tiny_world import foreign_files
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recipes import base_vs_chat
from sft.system.atomic_files import read_json, write_jsonl


def test_lora_goes_through_the_whole_chain(world):
    assert run(world, "lora.r=16") == 0
    base = load_file(world / "base" / "model.safetensors")
    for stage in STAGES:
        model = world / "run" / stage / "model"
        assert (model / "adapter_model.safetensors").is_file()
        config = read_json(model / "adapter_config.json")
        assert config["base_model_name_or_path"] == str(world / "base")
        assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 0
        assert end_of_turn(model) in GenerationConfig.from_pretrained(model).eos_token_id
    assert base.keys() == load_file(world / "base" / "model.safetensors").keys()
    # Each stage went on from the adapter of the one before.
    first, second = (
        load_file(world / "run" / s / "model" / "adapter_model.safetensors") for s in STAGES[:2]
    )
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_an_adapter_can_be_measured_and_trained_further(world, capsys):
    assert run(world, "lora.r=16", "sft_dialogue.enabled=false", "dpo.enabled=false") == 0
    adapter = world / "run" / "1-sft-all" / "model"
    tasks = ["--tasks", "sums", "--task-dir", str(world / "tasks"), "--to", str(world / "two")]
    given = ["--base", str(world / "base"), "--chat", str(adapter), "--base-shots", "2"]
    assert base_vs_chat.main([*given, *tasks]) == 0
    measured = read_json(world / "two" / "results.json")["benchmarks"]["sums"]
    own = read_json(world / "run" / "results.json")["benchmarks"]["sums"]
    assert measured == {"base": own["base"], "chat": own["sft-all"]}
    # A run stands for its last model, and a run's measures need no model at all.
    assert (
        base_vs_chat.main(["--base", given[1], "--chat", str(world / "run"), *given[4:], *tasks])
        == 0
    )
    before = times(world / "two" / "eval")
    assert base_vs_chat.main([*given, *tasks]) == 0 and times(world / "two" / "eval") == before
    known = ["--samples", f"one={world / 'run' / 'eval' / 'base'}", "--samples", str(world / "run")]
    assert base_vs_chat.main([*known, "--to", str(world / "known")]) == 0
    known = read_json(world / "known" / "results.json")
    assert known["benchmarks"]["sums"] == {"one": own["base"], "run": own["sft-all"]}
    steps = read_json(world / "run" / "results.json")["deltas"]
    assert [d["p"] for d in known["deltas"]] == [d["p"] for d in steps]
    assert base_vs_chat.main([*given, *tasks, "--limit", "3"]) == 2
    assert "give --to a new folder" in capsys.readouterr().err
    on = [f"model.name_or_path={adapter}", f"run.dir={world / 'on'}"]
    assert run(world, *on) == 2
    assert "is a LoRA adapter, which lora.r=0" in capsys.readouterr().err
    assert run(world, *on, "lora.r=16", "sft_dialogue.enabled=false", "dpo.enabled=false") == 0
    before, after = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (adapter, world / "on" / "1-sft-all" / "model")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_tokens_that_the_base_lacks_go_through_the_whole_chain_under_lora(world):
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|done|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    (world / "own.jinja").write_text(template)
    write_jsonl(
        world / "given.jsonl",
        [{"prompt": f"say {c}", "chosen": c * 3, "rejected": "no" + c} for c in "abcdefgh"],
    )
    options = (
        "lora.r=4",
        f"model.chat_template={world / 'own.jinja'}",
        "sft_dialogue.enabled=false",
        f"data.preference=[{{path: {world / 'given.jsonl'}}}]",
        "data.too_long=split",
        "dpo.num_train_epochs=3",
    )
    assert run(world, *options) == 2, "the end of a turn is no token yet"
    assert run(world, *options, "model.add_tokens=['<|user|>', '<|assistant|>', '<|done|>']") == 0
    assert foreign_files(world / "run") == []
    base = AutoModelForCausalLM.from_pretrained(world / "run" / "base" / "model")
    start = base.get_input_embeddings().weight
    rows = []
    for stage in ("1-sft-all", "3-dpo"):
        folder = world / "run" / stage / "model"
        ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["<|user|>", "<|done|>"])
        config = read_json(folder / "adapter_config.json")
        assert config["base_model_name_or_path"] == str(world / "run" / "base" / "model")
        assert ids[1] in GenerationConfig.from_pretrained(folder).eos_token_id
        (name,) = (
            n for n in load_file(folder / "adapter_model.safetensors") if "trainable_tokens" in n
        )
        rows.append(load_file(folder / "adapter_model.safetensors")[name])
    assert rows[0].shape == (3, start.shape[1])
    assert not torch.equal(rows[0], start[-3:]) and not torch.equal(rows[0], rows[1])
    facts = read_json(world / "run" / "data" / "preference.json")
    assert (facts["pairs"], facts["uneven"], facts["chosen_longer"]) == (8, 0, 0.5)
    assert (facts["chosen_tokens"], facts["rejected_tokens"]) == (4.0, 4.0)
    checks = read_json(world / "run" / "data" / "checks.json")["sft-all"]
    assert sum(tally["rows"] for tally in checks) == 24


def end_of_turn(folder):
    return AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")


CONFIGURATION = """
from transformers import LlamaConfig

class TwinConfig(LlamaConfig):
    model_type = "twin"
"""
MODELING = """
from transformers import LlamaForCausalLM

from .configuration_twin import TwinConfig

class TwinForCausalLM(LlamaForCausalLM):
    config_class = TwinConfig
"""


def test_a_trusted_model_with_its_own_code_trains_as_others_do(world, capsys):
    """A Llama by another name, whose class transformers lacks, must end with a Llama's weights."""
    short = ["sft_dialogue.enabled=false", "dpo.enabled=false", "eval.tasks=[]", "lora.r=2"]
    assert run(world, *short, f"run.dir={world}/known") == 0
    base = world / "base"
    (base / "configuration_twin.py").write_text(CONFIGURATION)
    (base / "modeling_twin.py").write_text(MODELING)
    auto = {
        "AutoConfig": "configuration_twin.TwinConfig",
        "AutoModelForCausalLM": "modeling_twin.TwinForCausalLM",
    }
    config = json.loads((base / "config.json").read_text())
    own = {"model_type": "twin", "architectures": ["TwinForCausalLM"]}
    headless = {"auto_map": {"AutoConfig": auto["AutoConfig"]}}
    (base / "config.json").write_text(json.dumps(config | own | headless))
    capsys.readouterr()
    assert run(world, *short, "model.trust_remote_code=true") == 2
    assert "'twin' model, not a causal language model" in capsys.readouterr().err
    (base / "config.json").write_text(json.dumps(config | own | {"auto_map": auto}))
    assert run(world, *short) == 2
    assert "set model.trust_remote_code=true" in capsys.readouterr().err
    assert run(world, *short, "model.trust_remote_code=true") == 0
    known, twin = (
        load_file(world / folder / "1-sft-all/model/adapter_model.safetensors")
        for folder in ("known", "run")
    )
    assert known.keys() == twin.keys()
    assert all(torch.equal(known[name], twin[name]) for name in known)
