"""The chain from end to end on a model of two layers: what it writes, skips, redoes and refuses."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from files import ROOT
from safetensors.torch import load_file
from tiny_models import make_tiny_model
from tiny_world import TASK, build_world, chat, foreign_files
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from eval.measures import repetition
from eval.metrics.paired_comparison import compare
from recipes import base_vs_chat
from recipes.preview import main as preview
from recipes.sft_then_dpo import main
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl

MODELS = ["base", "sft-all", "sft-dialogue", "dpo"]
PAPER = ROOT / "recipes" / "paper"
STAGES = ["1-sft-all", "2-sft-dialogue", "3-dpo"]


@pytest.fixture
def world(tmp_path, tiny_tokenizer):
    return build_world(tmp_path, tiny_tokenizer)


def run(world, *arguments):
    return main([str(world / "preset.yaml"), *arguments])


def weights(world, stage):
    return load_file(world / "run" / stage / "model" / "model.safetensors")


def times(folder):
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()
    }


def test_the_chain_writes_what_the_contract_says_and_a_second_call_skips_it(world, capsys):
    assert run(world) == 0
    folder = world / "run"
    for name in ("preset.yaml", "run.json", "results.json", "report.html", "report.md"):
        assert (folder / name).is_file(), name
    assert (folder / "data" / "data.json").is_file()
    for stage in STAGES:
        assert (folder / stage / "done.json").is_file()
        assert (folder / stage / "log.jsonl").is_file()
        assert list((folder / stage).glob("checkpoint-*"))
        model = AutoModelForCausalLM.from_pretrained(folder / stage / "model")
        tokenizer = AutoTokenizer.from_pretrained(folder / stage / "model")
        assert tokenizer.chat_template
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert end in model.generation_config.eos_token_id
    assert (folder / "3-dpo" / "pairs.jsonl").is_file()
    assert list((folder / "3-dpo" / "reference").rglob("shard-*.json"))

    results = read_json(folder / "results.json")
    assert results["models"] == MODELS
    assert set(results["repetition"]) == set(MODELS)
    assert set(results["repetition"]["dpo"]) == {
        "rate",
        "ci",
        "n",
        "distinct_loops",
        "truncated",
        "cap",
        "seq_rep_4",
    }
    entry = results["benchmarks"]["sums"]["base"]
    assert {"score", "ci", "n", "metric", "shots", "chat_template"} <= set(entry)
    assert (entry["shots"], entry["chat_template"]) == (2, False)
    assert results["benchmarks"]["sums"]["dpo"]["chat_template"] is True
    assert set(results["stages"]) == {"sft-all", "sft-dialogue", "dpo"}
    for facts in results["stages"].values():
        assert set(facts) == {"tokens", "steps", "seconds", "loss_first", "loss_last"}
    steps = [(d["task"], d["from"], d["to"]) for d in results["deltas"]]
    assert ("repetition", "base", "dpo") in steps and ("sums", "sft-all", "sft-dialogue") in steps

    said = capsys.readouterr()
    assert "repetition" in said.out and "mix by kind" in said.err
    before = times(folder)
    assert run(world) == 0
    said = capsys.readouterr()
    line = f"finished already, nothing was left to do; the report is {folder / 'report.html'}\n"
    assert said.out == line and "mix by kind" not in said.err and "pairs   " not in said.err
    changed = {name for name, time in times(folder).items() if before.get(name) != time}
    assert not any(name.startswith(("1-", "2-", "3-", "eval", "data")) for name in changed)
    assert foreign_files(folder) == []


def test_every_number_can_be_computed_again_from_the_samples(world):
    assert run(world) == 0
    folder = world / "run"
    results = read_json(folder / "results.json")
    rows = {name: read_jsonl(folder / "eval" / name / "generations.jsonl") for name in MODELS}
    scores = {
        name: read_jsonl(folder / "eval" / name / "samples" / "sums.jsonl") for name in MODELS
    }
    for name in MODELS:
        assert repetition.summarise(rows[name]) == results["repetition"][name]
        mean = sum(s["score"] for s in scores[name]) / len(scores[name])
        assert mean == pytest.approx(results["benchmarks"]["sums"][name]["score"])
    for delta in results["deltas"]:
        samples = rows if delta["task"] == "repetition" else scores
        pair = (delta["from"], delta["to"])
        again = compare(delta["task"], samples[pair[0]], samples[pair[1]], names=pair)
        assert (again.delta, again.p, again.n) == (delta["delta"], delta["p"], delta["n"])
    for pair in read_jsonl(folder / "3-dpo" / "pairs.jsonl"):
        by_score = sorted(pair["samples"], key=lambda s: s["score"])
        assert by_score[-1]["score"] > by_score[0]["score"]
        texts = {s["text"] for s in pair["samples"]}
        assert pair["chosen"][0]["content"] in texts


def test_changing_one_input_redoes_exactly_what_depends_on_it(world, capsys):
    assert run(world) == 0
    folder = world / "run"
    before = times(folder)
    assert run(world, "dpo.beta=0.3") == 2
    assert "dpo.beta" in capsys.readouterr().err
    assert run(world, "dpo.beta=0.3", "--rerun") == 0
    now = times(folder)
    redone = {name.split("/")[0] for name in now if before.get(name) != now[name]}
    assert {"3-dpo"} <= redone and not redone & {"1-sft-all", "2-sft-dialogue", "data"}
    measured = {name.split("/")[1] for name in now if name.startswith("eval/")
                and before.get(name) != now[name]}  # fmt: skip
    assert measured == {"dpo"}
    shards = [name for name in now if "/reference/" in name]
    assert shards and all(before[name] == now[name] for name in shards)

    rows = read_jsonl(world / "rows.jsonl")
    write_jsonl(world / "rows.jsonl", rows[:-1])
    assert run(world, "dpo.beta=0.3") == 2
    assert "rows.jsonl" in capsys.readouterr().err
    assert run(world, "dpo.beta=0.3", "--rerun") == 0
    later = times(folder)
    for stage in STAGES:
        assert later[f"{stage}/done.json"] != now[f"{stage}/done.json"]
    assert later["eval/base/done.json"] == now["eval/base/done.json"]


def test_a_run_cut_off_between_and_within_stages_ends_as_one_that_was_not(world):
    assert run(world) == 0
    whole = {stage: weights(world, stage) for stage in STAGES}
    results = read_json(world / "run" / "results.json")
    # As if killed in stage 2 after its first checkpoint: no marker, no model, nothing later.
    for name in ("3-dpo", "eval/dpo", "eval/sft-dialogue", "2-sft-dialogue/model"):
        shutil.rmtree(world / "run" / name)
    for name in ("2-sft-dialogue/done.json", "results.json"):
        (world / "run" / name).unlink()
    newest = sorted((world / "run" / "2-sft-dialogue").glob("checkpoint-*"))[-1]
    shutil.rmtree(newest)
    assert run(world) == 0
    for stage in STAGES:
        for name, tensor in weights(world, stage).items():
            assert torch.equal(tensor, whole[stage][name]), (stage, name)
    again = read_json(world / "run" / "results.json")
    for value in (results, again):
        for facts in value["stages"].values():
            facts.pop("seconds")
    assert again == results


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


def test_an_adapter_is_a_model_to_measure_and_to_go_on_from(world, capsys):
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


def test_a_kind_that_is_nearly_another_is_warned_of_and_a_new_one_is_not(world, caplog):
    rows = [{"messages": chat(f"tell {c}", c * 2)} for c in "abc"]
    write_jsonl(world / "more.jsonl", rows)
    for kind, warned in (("dialog", True), ("poems", False)):
        more = f"{{path: {world / 'more.jsonl'}, kind: {kind}}}"
        sources = f"data.sft=[{{path: {world / 'rows.jsonl'}}}, {more}]"
        caplog.clear()
        assert main([str(world / "preset.yaml"), sources, "--dry-run"]) == 0
        assert ("kind dialog, of 3 rows, is near dialogue and another" in caplog.text) is warned


def test_given_preferences_take_the_place_of_sampled_ones(world):
    write_jsonl(
        world / "given.jsonl",
        [{"prompt": f"say {c}", "chosen": c * 3, "rejected": "no" + c} for c in "abcdefgh"],
    )
    given = f"data.preference=[{{path: {world / 'given.jsonl'}}}]"
    assert run(world, given, "pairs.prompts=[]", "sft_dialogue.enabled=false") == 0
    assert not (world / "run" / "3-dpo" / "pairs.jsonl").exists()
    assert read_json(world / "run" / "results.json")["models"] == ["base", "sft-all", "dpo"]


def test_a_question_of_the_benchmark_is_not_trained_on(world, capsys):
    question = "How many shells does a child find who finds seven and then three more of them?"
    documents = read_jsonl(world / "tasks" / "sums.jsonl")
    write_jsonl(world / "tasks" / "sums.jsonl", [*documents, documents[0] | {"question": question}])
    rows = read_jsonl(world / "rows.jsonl")
    copy = {"messages": chat(f"Tell me: {question.upper()}", "ten"), "kind": "math"}
    write_jsonl(world / "rows.jsonl", [*rows, copy])
    assert run(world) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "rows.jsonl:25: holds 100% of question 8 of sums" in message

    short = ("sft_dialogue.enabled=false", "eval.repetition.prompts=null")
    assert run(world, "data.on_error=drop", *short, "--rerun") == 0
    facts = read_json(world / "run" / "data" / "data.json")
    assert facts["sources"][0]["dropped"] == {"contaminated": 1} and facts["mixed"] == len(rows)
    evidence = world / "run" / "data"
    origins = [read_jsonl(evidence / p / "contamination.jsonl") for p in ("", "prompts")]
    assert origins[0][0]["origin"].endswith("rows.jsonl:25") and len(origins[1]) == 1
    prompts = [p["prompt"] for p in read_jsonl(world / "run" / "3-dpo" / "pairs.jsonl")]
    assert prompts and copy["messages"][:1] not in prompts


def test_a_dry_run_shows_rows_and_masks_and_trains_nothing(world, capsys, caplog):
    caplog.set_level("INFO")
    assert run(world, "--dry-run") == 0
    said = capsys.readouterr()
    shown, told = said.out, " ".join(said.err.split())
    assert "math" in shown and "dialogue" in shown
    assert "⟦0<|im_end|>⟧" in shown and "\x1b" not in said.out + said.err, "no terminal"
    assert "46.6%" in told, "the paper's mix stands beside ours"
    assert "24 of 24 trained turns end with a trained end-of-turn, 0 are cut" in told
    assert re.search(r"dpo: at most 24 pairs, .* batches of 8, at most 3 steps$", caplog.text, re.M)
    assert not (world / "run").exists() and "takes all of its" not in caplog.text
    assert run(world, "--dry-run", "sft_all.warmup_steps=9", "dpo.warmup_steps=5") == 0
    assert "sft-all: warmup_steps=9 takes all of its 3 steps: the learning rate ends" in caplog.text
    assert "at most 3 steps; warmup_steps=5 takes all of its 3 steps" in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", ["preview", "dry run"])
def test_rows_are_shown_on_a_stdout_of_any_encoding(world, monkeypatch, command, encoding):
    """Its encoding lacks characters of rows, paths and tables, and the brackets of trained text."""
    rows = read_jsonl(world / "rows.jsonl")
    rows[0] = {"messages": chat("你", "é你"), "kind": "数学"}
    write_jsonl(world / "数.jsonl", rows)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    sources = f"data.sft=[{{path: {world / '数.jsonl'}}}]"
    if command == "preview":
        assert preview([str(world / "preset.yaml"), sources]) == 0
    else:
        assert run(world, "--dry-run", sources) == 0
    stdout.flush()
    said = stdout.buffer.getvalue().decode(encoding)
    answer = "é\\u4f60" if encoding == "latin-1" else "\\xe9\\u4f60"
    assert f"[[{answer}<|im_end|>]]" in said and "trained tokens are in [[ ]]" in said
    assert "\\u6570\\u5b66" in said and "\\u6570.jsonl:1" in said


def test_the_preview_shows_the_first_row_of_a_kind_that_fits(world, capsys):
    """Longer rows in front of it are counted, and so is a kind without any row that fits."""
    answers = [("a", "no " * 400), ("a", "yes " * 400), ("a", "fits"), ("b", "x" * 999)]
    rows = [{"messages": chat("ask", answer), "kind": kind} for kind, answer in answers]
    write_jsonl(world / "mixed.jsonl", rows)
    sources = f"data.sft=[{{path: {world / 'mixed.jsonl'}}}]"
    assert preview([str(world / "preset.yaml"), sources]) == 0
    said = capsys.readouterr().out
    assert "mixed.jsonl:3 (a)" in said and "⟦fits<|im_end|>⟧" in said
    assert "(rows of this kind before it, longer than max_length=" in said
    assert "left out: 2)" in said and "b: all 1 rows are longer than max_length=" in said


def test_programs_of_models_run_only_when_asked_for(world, capsys):
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


def test_tasks_are_kept_one_by_one_and_every_model_is_asked_in_one_format_too(world, capsys):
    (world / "tasks" / "sums.yaml").write_text(TASK + "metadata: {version: 1.0}\n")
    broken = TASK.replace("task: sums", "task: late").replace("{{gold}}", "{{answer}}")
    (world / "tasks" / "late.yaml").write_text(broken)
    make_tiny_model(seed=1).save_pretrained(world / "other")
    AutoTokenizer.from_pretrained(world / "base").save_pretrained(world / "other")
    given = ["--base", str(world / "base"), "--chat", str(world / "other"), "--base-shots", "2"]
    given += ["--task-dir", str(world / "tasks"), "--to", str(world / "two")]
    given += ["--same-format", "plain"]
    # A task that cannot be loaded is found before a model is loaded or anything is measured.
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 2
    assert "task late cannot be loaded" in capsys.readouterr().err
    assert times(world / "two" / "eval") == {}
    # What is measured stays, with its samples, when the next start is refused.
    assert base_vs_chat.main([*given, "--tasks", "sums"]) == 0
    before = times(world / "two" / "eval" / "base")
    assert "samples/sums.jsonl" in before and "kept/protocol/sums.json" in before
    before = {name: before[name] for name in ("samples/sums.jsonl", "kept/protocol/sums.json")}
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 2
    (world / "tasks" / "late.yaml").write_text(TASK.replace("task: sums", "task: late"))
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 0
    now = times(world / "two" / "eval")
    assert all(now[f"base/{name}"] == time for name, time in before.items())
    # Another definition of one task measures that task again, alone.
    (world / "tasks" / "late.yaml").write_text(TASK.replace("task: sums", "task: late") + "\n")
    assert base_vs_chat.main([*given, "--tasks", "sums,late"]) == 0
    assert times(world / "two" / "eval") == now
    changed = TASK.replace("task: sums", "task: late").replace("Question", "Q")
    (world / "tasks" / "late.yaml").write_text(changed)
    assert base_vs_chat.main([*given, "--tasks", "late,sums"]) == 0
    later = times(world / "two" / "eval")
    redone = {name for name in now if later[name] != now[name]}
    assert {Path(name).stem for name in redone} == {"late", "scores", "done"}

    results = read_json(world / "two" / "results.json")
    plain = results["same_format"]["plain"]
    one = plain["benchmarks"]["sums"]
    assert one["base"] == results["benchmarks"]["sums"]["base"]
    assert (one["chat"]["shots"], one["chat"]["chat_template"]) == (2, False)
    # base -> chat of the protocol = base -> chat in one format + what the format does to chat.
    row = next(d for d in results["deltas"] if d["task"] == "sums")
    same = next(d for d in plain["deltas"] if d["task"] == "sums")
    share = next(d for d in plain["formats"] if d["task"] == "sums")
    assert share["model"] == "chat"
    assert row["delta"] == pytest.approx(same["delta"] + share["delta"])
    assert "## Same prompt format" in (world / "two" / "report.md").read_text()


def test_comparisons_that_cannot_be_are_refused_in_one_sentence(world, capsys):
    def sentence(*given):
        assert base_vs_chat.main([*given, "--to", str(world / "two")]) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        return line

    base = str(world / "base")
    assert "name a model (--base, --chat) or measures" in sentence("--tasks", "copa")
    assert "--samples runs/nope: no such file or folder" in sentence(
        *("--base", base, "--samples", "runs/nope", "--tasks", "copa")
    )
    assert "give --tasks, --prompts or --safety" in sentence("--base", base, "--chat", base)
    nowhere = sentence(
        *("--base", base, "--chat", base, "--tasks", "copa"),
        *("--task-dir", str(PAPER / "tasks"), "--data-dir", "/nothere"),
    )
    assert "eval.data_dir=/nothere is no folder" in nowhere
    assert "two of what is compared are called 'base'" in sentence(
        "--base", base, "--samples", base
    )
    assert "overrides a preset; name one" in sentence(
        "--base", base, "--chat", base, "eval.limit=1"
    )
    assert "holds nothing measured" in sentence(
        "--samples", base, "--samples", str(world / "tasks")
    )
    assert "is no name for a folder" in sentence("--base", base, "--chat", f"../up={base}")
    measured = ["--tasks", "sums", "--task-dir", str(world / "tasks"), "--base-shots", "2"]
    assert (
        base_vs_chat.main(["--base", base, "--chat", base, *measured, "--to", str(world / "two")])
        == 0
    )
    make_tiny_model(seed=1).save_pretrained(world / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(world / "other")
    other = sentence("--base", base, "--chat", str(world / "other"), *measured)
    assert "holds measures of another model" in other and "NAME=PATH" in other
    # A file in the place of a folder: as with a full disk, what was measured before is kept.
    shutil.rmtree(world / "two" / "eval" / "chat" / "samples")
    (world / "two" / "eval" / "chat" / "samples").write_text("")
    assert "cannot be written" in sentence("--base", base, "--chat", base, *measured)


def test_a_stage_that_is_not_needed_is_left_out_and_the_next_goes_on_from_before(world):
    """The tiny model repeats itself always or never, so either threshold decides."""
    auto = ["sft_dialogue.enabled=auto", "dpo.enabled=false"]
    assert run(world, *auto, "sft_dialogue.min_repetition=1") == 0
    results = read_json(world / "run" / "results.json")
    assert results["models"] == ["base", "sft-all"]
    (decision,) = results["decisions"]
    assert (decision["stage"], decision["verdict"]) == ("sft-dialogue", "skipped")
    assert not (world / "run" / "2-sft-dialogue").exists()
    assert "Decision." in (world / "run" / "report.html").read_text()


@pytest.mark.parametrize("stage", ["sft_dialogue", "dpo"])
def test_a_stage_that_keeps_what_was_won_is_kept(world, stage):
    assert run(world, f"{stage}.enabled=auto", "sft_dialogue.min_repetition=0") == 0
    results = read_json(world / "run" / "results.json")
    decided = [d for d in results["decisions"] if d["verdict"] in ("kept", "set aside")]
    rate = results["repetition"]["sft-all"]["rate"]
    if stage == "sft_dialogue" and rate == 0:
        assert [d["verdict"] for d in results["decisions"]] == ["skipped"]
        return
    (last,) = decided
    assert last["verdict"] == "kept" and last["stage"] in results["models"]
    for row in last["evidence"]:
        table = [r for r in results["deltas"] if r["task"] == row["task"] and r["to"] == row["to"]]
        assert any(r["delta"] == row["delta"] and r["p"] == row["p"] for r in table)


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


def test_a_model_with_code_of_its_own_takes_the_same_road_once_it_is_trusted(world, capsys):
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
