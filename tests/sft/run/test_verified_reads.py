"""Files of a run are compared with its records: a changed byte is reported."""

import json
import os
import shutil
import sys
from dataclasses import replace

import pytest
from run_folders import preset, run_of

from eval.report import report
from eval.results.external_results import import_measures
from recipes.export import find_model
from sft.config.sections import EvalSection, Preset, RunSection
from sft.errors import UserError
from sft.run.command import run_command
from sft.run.directory import open_run
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage, verified_results
from sft.run.stage_folders import find_local_model
from sft.system.atomic_files import (
    NotAFile,
    file_hash,
    open_file,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_record,
    write_text,
)


@pytest.fixture
def run(tmp_path):
    """A finished run of one stage, as far as its readers look before they load the model."""
    folder = tmp_path / "run"
    stage, measured = folder / "1-sft-all", folder / "eval" / "sft-all"
    for place in (stage / "model", measured, folder / "data"):
        place.mkdir(parents=True)
    write_json(stage / "model" / "config.json", {"model_type": "llama"})
    (stage / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    write_jsonl(stage / "log.jsonl", [{"step": 1, "loss": 2.5}])
    write_jsonl(stage / "loops.jsonl", [{"epoch": 0.5, "step": 1, "repetition": {"rate": 0.25}}])
    outputs = ["model", "log.jsonl"]
    Stage(stage, {"seed": "0"}).finish(outputs=outputs, facts={"steps": 1}, kept=("loops.jsonl",))
    repetition = {"rate": 0.25, "ci": [0.1, 0.4], "n": 4}
    write_json(measured / "scores.json", {"benchmarks": {}, "repetition": repetition})
    asked = [{"role": "user", "content": "Why?"}]
    ending = {"finish_reason": "stop_id", "cap": 8, "token_ids": [1]}
    answer = {"id": "0", "messages": asked, "text": "a", "repeats": False} | ending
    write_jsonl(measured / "generations.jsonl", [answer])
    Stage(measured, {}).finish(outputs=["scores.json", "generations.jsonl"], facts={})
    (folder / "data" / "sft.parquet").write_bytes(b"PAR1" * 20)
    Stage(folder / "data", {}).finish(outputs=["sft.parquet"], facts={})
    preset = {
        "run": {"dir": str(folder)},
        "model": {"name_or_path": "org/base"},
        "data": {"sft": [{"path": "org/rows"}]},
        "dpo": {"enabled": False},
    }
    write_text(folder / "preset.yaml", json.dumps(preset))
    write_record(folder / "run.json", {"preset_sha256": fingerprint(preset)})
    write_json(folder / "results.json", {"models": ["sft-all"], "stages": {}})
    Stage(folder, {}).finish(outputs=["results.json"], facts={})
    return folder


READERS = {
    "export": (
        lambda run, _: find_model(run, None),
        *("1-sft-all", "eval/sft-all", "data", "preset.yaml", "run.json", "results.json"),
    ),
    "a run as a model": (lambda run, _: find_local_model(str(run)), "1-sft-all/model"),
    "a stage's model": (
        lambda run, _: find_local_model(str(run / "1-sft-all" / "model")),
        "1-sft-all/model",
    ),
    "samples": (
        lambda run, to: import_measures(run, to, section=EvalSection()),
        *("eval/sft-all", "results.json"),
    ),
    "results": (lambda run, _: verified_results(run), "results.json"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_changed_bit_or_a_lost_file_is_refused_by_every_reader(run, tmp_path, name):
    read, *places = READERS[name]
    read(run, tmp_path / "whole")
    files = [
        p
        for p in run.rglob("*")
        if p.is_file() and f"{p.relative_to(run)}".startswith(tuple(places))
    ]
    assert files
    for number, path in enumerate(files):
        content = path.read_bytes()
        for at in {0, len(content) // 2, len(content) - 2}:
            changed = bytearray(content)
            changed[at] ^= 1 << (number % 7)
            path.write_bytes(changed)
            with pytest.raises(UserError, match=r"start|again"):
                read(run, tmp_path / f"{number}-{at}")
            path.write_bytes(content)


def test_the_log_of_an_earlier_stage_is_verified_too(run):
    dialogue = run / "2-sft-dialogue"
    shutil.copytree(run / "1-sft-all", dialogue)
    assert find_model(run, None)[1] == "sft-dialogue"
    write_jsonl(run / "1-sft-all" / "log.jsonl", [{"step": 1, "loss": 0.5}])
    with pytest.raises(UserError, match=r"1-sft-all/log\.jsonl is missing or not as it was"):
        find_model(run, None)


def test_a_lost_measure_of_training_is_written_again_from_the_record_of_its_stage(run):
    stage = Stage(run / "1-sft-all", {"seed": "0"})
    path = stage.folder / "loops.jsonl"
    written = path.read_bytes()
    for lose in (
        path.unlink,
        lambda: path.write_bytes(written.replace(b"0.25", b"0.75")),
        lambda: (path.unlink(), path.mkdir(), (path / "more").mkdir()),
    ):
        lose()
        assert stage.finished() == {"steps": 1}
        assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("name", "words"),
    [("preset.yaml", "preset.yaml is not as the run"), ("run.json", "run.json is missing or not")],
)
def test_the_report_shows_no_changed_preset_or_environment(run, capsys, monkeypatch, name, words):
    monkeypatch.setattr(sys, "argv", ["report", str(run)])
    assert report.main() == 0
    changed = (run / name).read_text().replace("org/base", "org/other").replace('"', "'", 2)
    (run / name).write_text(changed)
    assert report.main() == 2
    assert words in capsys.readouterr().err


def test_a_picture_is_not_drawn_into_the_run(run, capsys, monkeypatch):
    before = (run / "results.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["report", str(run), str(run / "results.json")])
    assert report.main() == 2
    assert "where only the run writes" in capsys.readouterr().err
    assert (run / "results.json").read_bytes() == before


def test_imported_measures_have_hashes_and_those_without_are_logged(run, tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    for _ in range(2):  # a second start imports again
        import_measures(run, first, section=EvalSection())
    import_measures(first, second, section=EvalSection())
    assert "unverified" not in caplog.text
    altered = (first / "generations.jsonl").read_text().replace("Why?", "How?")
    (first / "generations.jsonl").write_text(altered)
    with pytest.raises(UserError, match=r"generations.jsonl is missing or not as it was written"):
        import_measures(first, tmp_path / "third", section=EvalSection())
    (first / "done.json").unlink()
    import_measures(first, tmp_path / "third", section=EvalSection())
    assert f"{first} has no done.json" in caplog.text and "read unverified" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, capsys, make):
    path = tmp_path / "log.jsonl"
    make(path)
    assert read_json(path) is None
    for read in (read_jsonl, file_hash, open_file):
        with pytest.raises(NotAFile):
            read(path)
    assert run_command(lambda: read_jsonl(path)) == 1
    said = capsys.readouterr().err
    assert str(path) in said and "move it away" in said and "Traceback" not in said


def test_a_folder_in_the_place_of_a_file_that_is_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / "results.json").mkdir()
    (tmp_path / "results.json" / "mine.txt").write_text("words")
    assert run_command(lambda: write_json(tmp_path / "results.json", {})) == 1
    assert "move it away" in capsys.readouterr().err
    assert (tmp_path / "results.json" / "mine.txt").read_text() == "words"


def test_a_run_directory_with_a_pipe_is_refused(tmp_path):
    preset = Preset(run=RunSection(dir=str(tmp_path / "run")))
    with open_run(preset) as folder:
        pass
    os.mkfifo(folder / "loops.jsonl")
    with pytest.raises(UserError, match=r"loops\.jsonl is a pipe"), open_run(preset):
        pass
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["run.json", "preset.yaml"])
def test_a_folder_in_the_place_of_a_record_is_the_reason_that_is_given(tmp_path, name):
    folder = run_of(tmp_path / "run")
    (folder / name).unlink()
    (folder / name).mkdir()
    other = replace(preset(folder), run=RunSection(str(folder), date="2020-01-01"))
    for now in (preset(folder), other):  # run.json held the date
        words = rf"{name} is not a file; put .* or set run\.dir="
        with pytest.raises(UserError, match=words), open_run(now):
            pass
    assert (folder / name).is_dir()
