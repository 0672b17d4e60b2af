"""The chain from end to end on a model of two layers: files, skipped and repeated stages."""

import shutil

import pytest
import torch
from chain_runs import MODELS, STAGES, run, times, weights
from tiny_world import chat, foreign_files
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.measures import repetition
from eval.metrics.paired_comparison import compare
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl


def test_the_chain_writes_the_documented_files_and_a_second_call_skips_it(world, capsys):
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
        assert repetition.summarize(rows[name]) == results["repetition"][name]
        mean = sum(s["score"] for s in scores[name]) / len(scores[name])
        assert mean == pytest.approx(results["benchmarks"]["sums"][name]["score"])
    for delta in results["deltas"]:
        samples = rows if delta["task"] == "repetition" else scores
        pair = (delta["from"], delta["to"])
        again = compare(delta["task"], samples[pair[0]], samples[pair[1]], names=pair).comparison
        assert (again.delta, again.p, again.n) == (delta["delta"], delta["p"], delta["n"])
    for pair in read_jsonl(folder / "3-dpo" / "pairs.jsonl"):
        by_score = sorted(pair["samples"], key=lambda s: s["score"])
        assert by_score[-1]["score"] > by_score[0]["score"]
        texts = {s["text"] for s in pair["samples"]}
        assert pair["chosen"][0]["content"] in texts


def test_changing_one_input_reruns_exactly_what_depends_on_it(world, capsys):
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


def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(world):
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


def test_given_preferences_replace_sampled_ones(world):
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


def test_a_stage_that_is_not_needed_is_skipped(world):
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
def test_a_stage_without_regression_is_kept(world, stage):
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
