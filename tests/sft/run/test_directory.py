"""The run directory: one writer, one preset, and the cache of its stages."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from sft.config.sections import ModelSection, Preset, RunSection, SftStage
from sft.errors import UserError
from sft.run.directory import open_run
from sft.run.fingerprint import fingerprint
from sft.run.run_record import write_run_record
from sft.run.stage_cache import Stage
from sft.system.atomic_files import read_json, read_record, write_json, write_record


def preset(folder, seed=0):
    return Preset(run=RunSection(str(folder), seed), model=ModelSection(name_or_path="m"))


def work(stage, text):
    stage.begin()
    (stage.folder / "out.txt").write_text(text)
    stage.finish(outputs=["out.txt"], facts={"text": text})


def test_a_stage_is_finished_only_with_its_inputs_and_outputs(tmp_path):
    stage = Stage(tmp_path / "1-a", {"rows": "x", "weights": "y"})
    assert stage.finished() is None
    stage.begin()
    (stage.folder / "out.txt").write_text("hello")
    assert stage.finished() is None
    stage.finish(outputs=["out.txt"], facts={"steps": 3})
    assert stage.finished() == {"steps": 3}
    assert Stage(stage.folder, {"rows": "z", "weights": "y"}).finished() is None
    (stage.folder / "out.txt").write_text("hell")
    assert stage.finished() is None


def test_a_changed_input_removes_the_work_except_entries_with_their_own_key(tmp_path, caplog):
    stage = Stage(tmp_path / "3-dpo", {"rows": "x"}, keep=("reference",))
    work(stage, "old")
    (stage.folder / "reference").mkdir()
    changed = Stage(stage.folder, {"rows": "y"}, keep=("reference",))
    changed.begin()
    assert "rows changed" in caplog.text
    assert sorted(p.name for p in stage.folder.iterdir()) == ["begun.json", "reference"]


def test_begun_work_on_the_same_inputs_is_kept(tmp_path):
    stage = Stage(tmp_path / "1-a", {"rows": "x"})
    stage.begin()
    (stage.folder / "checkpoint-3").mkdir()
    stage.begin()
    assert (stage.folder / "checkpoint-3").is_dir()


def test_another_preset_is_refused_by_the_keys_that_differ(tmp_path):
    with open_run(preset(tmp_path / "r")) as folder:
        stage_in(folder)
    with (
        pytest.raises(UserError, match=r"another preset \(it differs in run.seed\)"),
        open_run(preset(tmp_path / "r", seed=1)),
    ):
        pass
    with open_run(preset(tmp_path / "r", seed=1), rerun=True) as folder:
        assert (folder / "1-a").is_dir()
    with open_run(preset(tmp_path / "r", seed=2), fresh=True) as folder:
        assert not (folder / "1-a").exists()


def test_a_new_key_at_its_default_is_no_change(tmp_path):
    with open_run(preset(tmp_path / "r")) as folder:
        stage_in(folder)
    recorded = yaml.safe_load((folder / "preset.yaml").read_text())
    assert recorded["run"].pop("loop_budget") is not None
    assert recorded["eval"].pop("allow_unconfined_code") is False
    del recorded["eval"]["repetition"]["cap"]
    (folder / "preset.yaml").write_text(yaml.safe_dump(recorded))
    with open_run(preset(tmp_path / "r")):
        pass
    (folder / "preset.yaml").write_text(yaml.safe_dump(recorded))
    changed = preset(tmp_path / "r")
    changed = replace(changed, run=replace(changed.run, loop_budget=0.5))
    with pytest.raises(UserError, match=r"it differs in run.loop_budget\)"), open_run(changed):
        pass


def test_a_command_without_the_keys_of_the_dialogue_stage_continues_the_run(tmp_path):
    given = replace(preset(tmp_path / "r"), sft_dialogue=SftStage(enabled=False))
    with open_run(given) as folder:
        stage_in(folder)
    with open_run(given) as folder:
        assert (folder / "1-a" / "done.json").is_file()


def stage_in(folder):
    stage = Stage(folder / "1-a", {})
    stage.begin()
    stage.finish(outputs=[], facts={})


def test_a_corrected_preset_starts_after_one_that_stopped_before_training(tmp_path):
    with pytest.raises(UserError, match="no such file"), open_run(preset(tmp_path / "r")) as folder:
        stage = Stage(folder / "data", {"sources": "wrong"})
        stage.begin()
        stage.finish(outputs=[], facts={})  # rows are prepared before a cap is found too large
        raise UserError("x: no such file")
    with open_run(preset(tmp_path / "r", seed=1)) as folder:
        (folder / "1-sft-all" / "checkpoint-2").mkdir(parents=True)
    with (
        pytest.raises(UserError, match="another preset"),
        open_run(preset(tmp_path / "r"), ways_on="x"),
    ):
        pass


def test_a_run_may_be_moved(tmp_path):
    with open_run(preset(tmp_path / "r")):
        pass
    (tmp_path / "r").rename(tmp_path / "s")
    with open_run(preset(tmp_path / "s")) as folder:
        assert folder == tmp_path / "s"


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not from a run"), open_run(preset(tmp_path)):
        pass


def test_a_second_process_learns_which_process_holds_the_lock(tmp_path):
    script = (
        "import sys\nfrom sft.config.sections import *\nfrom sft.errors import UserError\n"
        "from sft.run.directory import open_run\n"
        "preset = Preset(run=RunSection(sys.argv[1], 0), model=ModelSection(name_or_path='m'))\n"
        "try:\n  with open_run(preset): pass\nexcept UserError as e: print(e)"
    )
    with open_run(preset(tmp_path / "r")):
        second = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "r")], capture_output=True, text=True
        )
    assert f"is in use by process {os.getpid()}" in second.stdout
    third = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "r")], capture_output=True, text=True
    )
    assert third.stdout == ""


def refuse(folder, words, **given):
    with pytest.raises(UserError, match=words), open_run(preset(folder), **given):
        pass


def test_a_changed_input_is_refused_by_its_name_until_rerun(tmp_path):
    before, now = {"data.sft rows.jsonl": "x", "the tokenizer": "t"}, {"data.sft rows.jsonl": "y"}
    with open_run(preset(tmp_path / "r"), inputs=before) as folder:
        write_run_record(folder, preset(folder), inputs=before)
        stage_in(folder)
    refuse(
        tmp_path / "r", r"changed since the run began: data.sft rows.jsonl; .*--rerun", inputs=now
    )
    with open_run(preset(tmp_path / "r"), inputs=now, rerun=True) as folder:
        write_run_record(folder, preset(folder), inputs=now)
    with open_run(preset(tmp_path / "r"), inputs=now):
        pass


def test_changed_libraries_are_logged_and_another_number_of_processes_is_refused(tmp_path, caplog):
    with open_run(preset(tmp_path / "r")) as folder:
        write_run_record(folder, preset(folder))
        stage_in(folder)
    record = read_record(folder / "run.json")
    record["versions"]["torch"] = "2.0.0"
    write_record(folder / "run.json", record)
    with open_run(preset(tmp_path / "r")):
        write_run_record(folder, preset(folder))
    assert "torch: 2.0.0 in the last start of this run, now" in caplog.text
    write_record(folder / "run.json", record | {"num_processes": 2})
    refuse(tmp_path / "r", "begun by 2 process.*start it with --num_processes 2")
    for name in ("1-sft-all", "2-sft-dialogue"):
        for checkpoint, processes in (("checkpoint-3", 2), ("checkpoint-4", 1)):
            (folder / name / checkpoint).mkdir(parents=True)
            write_record(folder / name / checkpoint / "manifest.json", {"processes": processes})
    write_record(folder / "run.json", record)  # as a start that was refused later has left it
    (folder / "1-sft-all" / "done.json").touch()
    with open_run(preset(tmp_path / "r"), rerun=True):
        pass
    assert [p.parent.name for p in folder.glob("*/checkpoint-3")] == ["1-sft-all"]
    assert (folder / "2-sft-dialogue" / "checkpoint-4").is_dir(), "its own it can go on with"


def test_a_run_without_its_preset_file_continues_with_the_same_preset_only(tmp_path, caplog):
    def begun():
        with open_run(preset(tmp_path / "r"), rerun=True) as folder:
            write_run_record(folder, preset(folder))
            stage_in(folder)
        (folder / "preset.yaml").unlink()
        return folder

    folder = begun()
    with open_run(preset(folder)):
        assert (folder / "preset.yaml").is_file()
    assert "preset.yaml is gone; it is written again" in caplog.text
    folder = begun()
    other = preset(folder, seed=3)
    words = r"is gone, and this is not the preset .* --rerun"
    with pytest.raises(UserError, match=words), open_run(other):
        pass
    with open_run(other, rerun=True):
        assert list(folder.rglob("done.json"))
    (folder / "preset.yaml").unlink()
    with open_run(other, fresh=True):
        assert not list(folder.rglob("done.json"))


def test_fresh_empties_runs_only(tmp_path):
    (tmp_path / "thesis.tex").touch()
    refuse(tmp_path, "not from a run", fresh=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_of_a_start_killed_at_once_is_accepted_by_the_next(tmp_path):
    for name in (".lock", ".preset.yaml.tmp"):
        (tmp_path / name).touch()
    with open_run(preset(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["out.txt", "done.json"])
def test_an_output_of_the_same_size_with_other_bytes_is_done_again(tmp_path, name):
    stage = Stage(tmp_path / "1-a", {"rows": "x"})
    work(stage, "hello")
    assert stage.finished()
    path = stage.folder / name
    path.write_bytes(bytes(path.stat().st_size))
    assert stage.finished() is None


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("done.json", '"loss": 1.5', '"loss": 1.7'),  # one bit
        ("done.json", '"inputs"', '"inputr"'),
        ("done.json", "{", "["),
        ("begun.json", '"inputs"', '"inputr"'),
    ],
)
def test_a_record_with_a_flipped_bit_is_logged_and_the_work_done_again(
    tmp_path, caplog, name, old, new
):
    stage = Stage(tmp_path / "1-a", {"rows": "x"})
    stage.begin()
    stage.finish(outputs=[], facts={"loss": 1.5})
    assert stage.finished() == {"loss": 1.5}
    path = stage.folder / name
    path.write_text(path.read_text().replace(old, new, 1))
    assert (stage.finished() is None) == (name == "done.json")
    stage.begin()
    assert stage.finished() is None
    assert ("done.json is damaged" in caplog.text) == (name == "done.json")


def test_a_record_of_an_earlier_version_without_a_hash_is_accepted(tmp_path):
    stage = Stage(tmp_path / "1-a", {"rows": "x"})
    stage.begin()
    write_json(
        stage.folder / "done.json", {"inputs": {"rows": "x"}, "outputs": {}, "facts": {"loss": 1.5}}
    )
    assert stage.finished() == {"loss": 1.5}


def test_an_interrupted_removal_of_work_on_other_inputs_is_completed(tmp_path):
    stage = Stage(tmp_path / "1-a", {"rows": "x"})
    stage.begin()
    (stage.folder / "checkpoint-3").mkdir()
    (stage.folder / "begun.json").write_bytes(bytes(30))  # damaged: whose work is it?
    stage.begin()
    assert [p.name for p in stage.folder.iterdir()] == ["begun.json"]


def test_an_unwritable_path_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"is a file, or lies in one; set run\.dir= to a folder"),
        open_run(preset(tmp_path / "file" / "run")),
    ):
        pass


def test_fingerprints_see_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "x.json", [1])
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "x.json").rename(tmp_path / "b" / "y.json")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    assert fingerprint({"k": 1, "l": 2}) == fingerprint({"l": 2, "k": 1})


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
