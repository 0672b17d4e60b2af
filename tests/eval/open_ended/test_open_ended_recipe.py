"""The recipe of open-ended questions: answers, judging, resuming, refusals."""

import re

import pytest
from judge_server import completion, says, serving
from tiny_models import make_tiny_model
from tiny_world import foreign_files
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from recipes import open_ended
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl


@pytest.fixture
def command(tmp_path, tiny_tokenizer, monkeypatch):
    """The recipe on two models of two layers; a key that must not be seen anywhere."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("JUDGE_KEY", "sk-do-not-show")
    for seed, name in enumerate(("one", "two")):
        make_tiny_model(seed).save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    write_jsonl(
        tmp_path / "q.jsonl",
        [
            {"question_id": 81, "category": "writing", "turns": ["Tea.", "Rain."]},
            {"question_id": 111, "category": "math", "turns": ["6 * 7?"], "reference": ["42"]},
        ],
    )
    models = [part for n in ("one", "two") for part in ("--model", f"{n}={tmp_path / n}")]
    common = ["--questions", str(tmp_path / "q.jsonl"), "--to", str(tmp_path / "out"), "--cap", "8"]
    judged = ["--judge-model", "judge-1", "--key-variable", "JUDGE_KEY", "--tries", "1"]
    return tmp_path / "out", [*models, *common, *judged]


def scripted(body, number):
    system, *_ = body["messages"]
    code = re.search(r"\[\[(\w+) (N|X)\]\]", system["content"])
    text = "OK" if code is None else f"[[{code[1]} {'7' if code[2] == 'N' else 'A'}]]"
    return 200, {}, completion(text)


def test_the_recipe_resumes_after_the_endpoint_failed(command, capsys):
    folder, arguments = command
    assert open_ended.main(arguments) == 0  # answers alone
    assert "judge them with --judge-url" in capsys.readouterr().out
    answers = {p: p.stat().st_mtime_ns for p in folder.rglob("answers.jsonl")}
    assert len(answers) == 2

    def until_the_fifth(body, number):
        return scripted(body, number) if number < 5 else (503, {}, b"sk-do-not-show")

    with serving(until_the_fifth) as server:
        assert open_ended.main([*arguments, "--judge-url", server.url, "--workers", "1"]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"error: the endpoint .* did not answer in 1 tries \(last: HTTP 503\)", err)
    assert len(read_jsonl(folder / "judgments.jsonl")) == 4  # the first request checks the endpoint

    with serving(scripted) as server:
        on = [*arguments, "--judge-url", server.url, "--prices", "2", "8"]
        assert open_ended.main(on) == 0
        assert len(server.requests) == 1 + (6 + 4) - 4
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("answers.jsonl")} == answers
    results = read_json(folder / "open_ended.json")
    assert {name: entry["score"] for name, entry in results["grades"].items()} == {
        "one": 7.0,
        "two": 7.0,
    }
    assert results["pairs"]["one -> two"]["ties"] == 2
    assert results["usage"]["requests"] == 10
    assert results["usage"]["cost"] == pytest.approx((1000 * 2 + 100 * 8) / 1e6)
    shown = capsys.readouterr()
    assert "writing" in shown.out and "cost 0.0028" in shown.out
    written = [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    assert not any(b"sk-do-not-show" in content for content in written)
    assert "sk-do-not-show" not in out + err + shown.out + shown.err
    assert foreign_files(folder) == []


def test_an_endpoint_that_is_down_is_reported_before_any_model_answers(command, capsys):
    folder, arguments = command
    with serving(says("gone")) as server:
        url = server.url
    assert open_ended.main([*arguments, "--judge-url", url]) == 2
    assert "did not answer in 1 tries (last: " in capsys.readouterr().err
    assert not folder.exists()
    assert open_ended.main([*arguments, "--model", "one=x"]) == 2
    assert (
        "--model 'one=x' is not of the form NAME=PATH, with a new name" in capsys.readouterr().err
    )


def test_an_invalid_results_folder_is_refused_before_the_judge_is_called(command, capsys):
    folder, arguments = command
    with serving(says("OK")) as server:
        given = [*arguments, "--judge-url", server.url, "--to", str(folder.parent)]
        assert open_ended.main(given) == 2
        assert server.requests == []
    assert "which is or holds" in capsys.readouterr().err


def test_questions_that_a_tokenizer_cannot_write_are_refused_before_a_model_loads(command, capsys):
    folder, arguments = command
    vocabulary = {"<unk>": 0, "</s>": 1, "6": 2, "7": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
    )
    tokenizer.save_pretrained(folder.parent / "two")
    assert open_ended.main(arguments) == 2
    assert re.search(r"q\.jsonl: \d\d\.\d% of the characters .*vocab", capsys.readouterr().err)
    assert not folder.exists()
