"""Exports of a run's model: merged, compared, with card and Modelfile, or refused."""

import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.results.model_card import public_name
from eval.results.stage_gate import write_decisions
from recipes.export import find_model, main
from recipes.sft_then_dpo import main as train
from sft.chat_template.encoding import encode_prompt
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.export.merge import export_weights
from sft.export.merge_check import TrainedModel, compare_logits
from sft.model.loading import load_model, resolve_model_path
from sft.model.placement import Placement
from sft.run.stage_cache import Stage
from sft.system.atomic_files import read_json, read_jsonl, read_record, write_json, write_jsonl

PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one LoRA stage on a bfloat16 base, measured on a few prompts."""
    folder = tmp_path_factory.mktemp("export")
    make_tiny_model().to(torch.bfloat16).save_pretrained(folder / "base")
    make_tiny_tokenizer().save_pretrained(folder / "base")
    rows = [{"messages": chat(f"say {c}", c * 3)} for c in "abcdefghijklmnop"]
    rows.append({"messages": chat("say q", "q" * 99)})  # longer than max_length, so left out
    write_jsonl(folder / "rows.jsonl", rows)
    prompts = [{"id": str(i), "messages": chat(f"say {i}", "")[:1]} for i in range(4)]
    write_jsonl(folder / "prompts.jsonl", prompts)
    preset = {
        "run": {"dir": str(folder / "run")},
        "model": {
            "name_or_path": str(folder / "base"),
            "dtype": "float32",
            "base_model": "org/base",
            "license": "mit",
        },
        "lora": {"r": 4},
        "data": {"sft": [{"path": str(folder / "rows.jsonl"), "license": "cc-by-4.0"}]},
        # 16 chats, 8 a step: four epochs.
        "sft_all": {"learning_rate": 5e-2, "max_steps": 8, "max_length": 64},
        "sft_dialogue": {"enabled": False},
        "dpo": {"enabled": False},
        "eval": {"repetition": {"prompts": str(folder / "prompts.jsonl"), "cap": 64}},
    }
    (folder / "preset.yaml").write_text(yaml.safe_dump(preset))
    assert train([str(folder / "preset.yaml")]) == 0
    return folder / "run"


def test_an_adapter_is_exported_as_a_merged_model(run, tmp_path, capsys):
    to = tmp_path / "out"
    assert main([str(run), "--to", str(to), "--push-to", "me/out", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"transformers chat {to}" in shown and f"mlx_lm.convert --hf-path {to}" in shown
    assert "dry run: nothing was uploaded" in shown and "model.safetensors" in shown
    weights = load_file(to / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}  # the base's
    assert not any("lora" in name for name in weights)

    adapter = load_model(str(run / "1-sft-all" / "model"), PLACEMENT)
    merged = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(run.parent / "base", dtype=torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        expected, found, before = (m(ids).logits for m in (adapter, merged, base))
    assert (found - expected).abs().max() < 0.1 * (before - expected).abs().max()

    tokenizer = AutoTokenizer.from_pretrained(to)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert merged.generation_config.eos_token_id == merged.config.eos_token_id == [end, 0]
    assert merged.config.use_cache and merged.generation_config.use_cache
    text = (to / "Modelfile").read_text()
    assert text.startswith("FROM .\n") and 'PARAMETER stop "<|im_end|>"' in text
    assert (to / "preset.yaml").read_text() == (run / "preset.yaml").read_text()


def test_the_card_holds_results_licences_and_how_it_was_made(run, tmp_path):
    assert main([str(run), "--to", str(tmp_path / "out"), "--dtype", "float32"]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit" and card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["truing", "sft"]
    results = json.loads((run / "results.json").read_text())
    rate = f"{results['repetition']['sft-all']['rate']:.1%}"
    for words in ("repetition", rate, "cc-by-4.0", "rows.jsonl", "| sft-all |", "0.05", "Seed 0"):
        assert words.replace("-", "\\-") in card.text or words in card.text, words
    assert "published in float32" in card.text
    assert card.data.base_model == "org/base"
    assert re.search(r"^\| sft\\?-all \| 0\.05 \| 4 \| 8 \|", card.text, re.MULTILINE)
    assert re.search(r"\d\.\d{3} \S+ \d\.\d{3} \|$", card.text, re.MULTILINE)  # of 8 steps
    source = r"^\| chats \| rows\\?\.jsonl \| cc.*4.*0 \| sft\\?-all 16 \|$"
    assert re.search(source, card.text, re.MULTILINE)
    assert str(run.parent) not in card.text and "org/base, trained" in card.text
    assert "preference" not in card.text  # what a DPO that was left out would have read
    weights, config = (
        (tmp_path / "out" / n).stat().st_mode for n in ("model.safetensors", "config.json")
    )
    assert weights == config  # a server may run as somebody else
    assert "transformers chat, Ollama's template (10 chats)" in card.text


def test_a_card_names_hub_ids_in_full_and_files_by_their_last_part():
    assert public_name("org/name") == "org/name"
    for path in ("gone/chats.jsonl", "./gone", "/somewhere/gone/chats.jsonl"):
        assert public_name(path) == path.rpartition("/")[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "dpo"], "finished are sft-all"),
        (["--dry-run"], "give both"),
        (["--push-to", "nobody", "--dry-run"], "names no owner"),
        (["--push-to", "a/b/c", "--dry-run"], "--push-to a/b/c"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, capsys, arguments, words):
    assert main([str(run), "--to", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_the_gate_rejected_is_exported_only_by_name(run, tmp_path, capsys):
    """It is neither exported, nor compared as the run's model, nor listed among its stages."""
    own = tmp_path / "run"
    shutil.copytree(run, own)
    shutil.copytree(own / "1-sft-all", own / "2-sft-dialogue")
    decided = [{"stage": "sft-dialogue", "verdict": "set aside", "reason": "worse on sums"}]
    write_json(own / "decisions.json", decided)
    write_json(own / "results.json", read_json(own / "results.json") | {"decisions": decided})
    Stage(own, {}).finish(outputs=["results.json", "decisions.json"], facts={})
    assert resolve_model_path(str(own)) == str(own / "1-sft-all" / "model")
    assert find_model(own, None)[1] == "sft-all"
    for name, told in (("sft-all", "| sft-all |"), ("sft-dialogue", "aside: worse on sums.")):
        assert main([str(own), "--to", str(tmp_path / name), "--model", name]) == 0
        card = (tmp_path / name / "README.md").read_text()
        assert told in card and ("| sft-dialogue |" in card) == (name == "sft-dialogue")
    shutil.rmtree(own / "1-sft-all")
    capsys.readouterr()
    assert main([str(own), "--to", str(tmp_path / "no")]) == 2
    assert "set aside by its gate, and no other stage is finished" in capsys.readouterr().err
    write_decisions(own, [])
    Stage(own, {}).finish(outputs=["results.json"], facts={})
    assert find_model(own, None)[1] == "sft-dialogue"


def test_folders_that_are_no_run_or_not_empty_are_refused(run, tmp_path, capsys):
    assert main([str(tmp_path), "--to", str(tmp_path / "out")]) == 2
    assert "no run's folder" in capsys.readouterr().err
    assert main([str(run), "--to", str(tmp_path.parent)]) == 2
    assert "holds files already" in capsys.readouterr().err


def test_an_export_that_was_killed_when_complete_continues_with_the_upload(run, tmp_path, capsys):
    """The folder has its final name, and only the lock of the working folder is left."""
    to, lock = tmp_path / "out", tmp_path / ".out.tmp" / ".lock"
    command = [str(run), "--to", str(to), "--push-to", "me/out", "--dry-run"]
    assert main(command) == 0
    first = capsys.readouterr().out
    written = {path.name: path.stat().st_mtime_ns for path in to.iterdir()}
    lock.parent.mkdir()
    lock.touch()
    assert main(command) == 0
    said, _, again = capsys.readouterr().out.partition("\n")
    assert "holds this export already" in said and again == first
    assert "done.json" not in first and "model.safetensors" in first
    assert {path.name: path.stat().st_mtime_ns for path in to.iterdir()} == written
    assert not lock.parent.exists()

    assert main([*command, "--dtype", "float32"]) == 2  # another export
    (to / "thesis.txt").touch()
    assert main(command) == 2
    (to / "thesis.txt").unlink()
    (to / "README.md").write_text("mine")
    assert main(command) == 2
    assert capsys.readouterr().err.count("holds files already") == 3
    assert (to / "README.md").read_text() == "mine"


def test_a_refused_export_leaves_nothing_and_touches_nothing(run, tmp_path, capsys):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    answered = own / "eval" / "sft-all" / "generations.jsonl"
    rows = [row | {"prompt_ids": row["prompt_ids"][1:]} for row in read_jsonl(answered)]
    write_jsonl(answered, rows)
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "mine").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main([str(own), "--to", str(tmp_path / "out"), "--dtype", "float32"]) == 2
    assert "error: " in capsys.readouterr().err
    assert main([str(run), "--to", str(tmp_path / "file")]) == 2
    assert "file is a file; give a new folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_hub_out_of_reach_is_one_sentence(run, tmp_path, capsys):
    assert main([str(run), "--to", str(tmp_path / "out"), "--push-to", "me/out"]) == 2
    error = capsys.readouterr().err
    assert "could not be reached or refused" in error and "\n" not in error.strip()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_change_that_rounding_swallows_is_refused(tiny_tokenizer, tmp_path):
    base = make_tiny_model()
    base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1 + 1e-3)  # a quarter of bfloat16's step
    trained.save_pretrained(tmp_path / "trained")
    ensure_template(tiny_tokenizer)
    base, path = str(tmp_path / "base"), str(tmp_path / "trained")
    model = TrainedModel(path, base, [list(range(5, 45))], PLACEMENT)
    with pytest.raises(
        UserError, match=r"8 significant bits .* rounding to it loses \d+% .*--dtype float32"
    ):
        export_weights(model, tiny_tokenizer, folder=tmp_path / "a", dtype=torch.bfloat16)
    assert not (tmp_path / "a").exists()
    whole = export_weights(
        model, tiny_tokenizer, folder=tmp_path / "c", dtype=torch.bfloat16, or_float32=True
    )
    assert whole.dtype == "float32" and "rounding to it loses" in whole.instead_of
    found = load_file(tmp_path / "c" / "model.safetensors")
    wanted = load_file(tmp_path / "trained" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    kept = export_weights(model, tiny_tokenizer, folder=tmp_path / "b", dtype=torch.float32)
    assert kept.lost < 1e-6 < kept.changed and kept.agree == 1 and kept.positions == 16


def test_weights_that_float16_cannot_hold_are_not_exported_in_it(tiny_tokenizer, tmp_path):
    """float16 ends at 65,504; larger weights become infinite, and the logits NaN."""
    model = make_tiny_model()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "trained")
    ensure_template(tiny_tokenizer)
    trained = TrainedModel(
        str(tmp_path / "trained"), str(tmp_path / "base"), [list(range(5, 45))], PLACEMENT
    )
    with pytest.raises(UserError, match="rounding to it loses"):
        export_weights(trained, tiny_tokenizer, folder=tmp_path / "a", dtype=torch.float16)
    assert not (tmp_path / "a").exists()


def test_an_export_after_little_training_is_in_float32_and_says_why(run, tmp_path, capsys):
    """The run's adapter is scaled down to that of a step or two; its base is in bfloat16."""
    own = tmp_path / "run"
    shutil.copytree(run, own)
    file = own / "1-sft-all" / "model" / "adapter_model.safetensors"
    little = {n: t * (1e-3 if "lora_B" in n else 1) for n, t in load_file(file).items()}
    save_file(little, file, metadata={"format": "pt"})
    done = read_record(own / "1-sft-all" / "done.json")
    stage = Stage(own / "1-sft-all", done["inputs"])
    stage.finish(outputs=["model", "log.jsonl"], facts=done["facts"])
    assert main([str(own), "--to", str(tmp_path / "no"), "--dtype", "bfloat16"]) == 2
    assert "of the little that training changed" in capsys.readouterr().err
    assert main([str(own), "--to", str(tmp_path / "out")]) == 0
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert "published in float32, since bfloat16 keeps 8 significant bits" in (
        tmp_path / "out" / "README.md"
    ).read_text().replace("\\", "")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_published_weights_are_the_merged_ones_rounded_once_to_nearest(run, tmp_path, kind):
    """The error is at most half a step; two roundings, or a merge in `kind`, would exceed it."""
    name = str(kind).removeprefix("torch.")
    assert main([str(run), "--to", str(tmp_path / "out"), "--dtype", name]) == 0
    published = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(run.parent / "base" / "model.safetensors")
    adapter = load_file(run / "1-sft-all" / "model" / "adapter_model.safetensors")
    scale = read_json(run / "1-sft-all" / "model" / "adapter_config.json")["lora_alpha"] / 4
    compared = 0
    for key, tensor in published.items():
        exact = base[key].double()
        lora = f"base_model.model.{key.removesuffix('.weight')}.lora_"
        if f"{lora}A.weight" in adapter:
            product = adapter[f"{lora}B.weight"].double() @ adapter[f"{lora}A.weight"].double()
            exact = exact + scale * product
            compared += 1
        step = torch.finfo(kind).eps * exact.abs() + torch.finfo(kind).smallest_normal
        assert ((tensor.double() - exact).abs() <= 0.501 * step).all(), key
    assert compared == 14


def test_the_comparison_is_blind_to_what_the_softmax_does_not_see():
    trained = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    shifted = trained + torch.tensor([[1.0], [-5.0], [2.0]])
    check = compare_logits(shifted, trained=trained, base=trained * 0)
    assert check.lost < 1e-6 and check.agree == 1
    assert check.changed == pytest.approx(
        (trained - trained.mean(1, keepdim=True)).square().mean().sqrt()
    )
    doubled = compare_logits(2 * trained, trained=trained, base=trained * 0)
    assert doubled.share == pytest.approx(1)


def test_prompts_of_the_export_are_those_of_training(run, tmp_path):
    assert main([str(run), "--to", str(tmp_path / "out")]) == 0
    trained = AutoTokenizer.from_pretrained(run / "1-sft-all" / "model")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "Two\nlines, 两行"}]
    asked = exported.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == encode_prompt(trained, messages)
