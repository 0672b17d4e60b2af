"""A run directory is known by its marker, and nothing that the run did not write is removed."""

import re
import shutil

import pytest
from run_folders import contents, preset, run_of

from sft.errors import UserError
from sft.run.command import run_command
from sft.run.directory import open_run
from sft.run.stage_cache import Stage
from sft.system.atomic_files import remove, write_json, write_text
from sft.system.run_marker import ASIDE, NAME, read_marker


@pytest.mark.parametrize(
    "name",
    [
        *("thesis.txt", "notes/plan.md", ".git/HEAD", "1-sft-all/chats.jsonl"),
        *("1-sft-all/model/model.gguf", "1-sft-all/checkpoint-3/mine.txt", "data/mine.jsonl"),
        *(".thesis.tmp", ".gone-thesis/a.txt", "1-sft-all/.gone-notes", "1-sft-all/.draft.txt.tmp"),
        # Names of working files where the run has none.
        *(".cache/thesis.txt", "notes/.cache/thesis.txt", "notes/events.out.tfevents.1.host"),
        *("events.out.tfevents.1.host", "notes/.vllm/a.txt", ".saving/a.txt", ".nfsthesis"),
    ],
)
def test_fresh_refuses_while_anything_is_there_that_the_run_did_not_write(tmp_path, name):
    folder = run_of(tmp_path / "run")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    before = contents(folder)
    words = re.escape(f"--fresh would remove what is not from this run ({name})")
    with pytest.raises(UserError, match=words), open_run(preset(folder), fresh=True):
        pass
    assert contents(folder) == before
    (folder / name).unlink()
    with open_run(preset(folder), fresh=True):
        assert sorted(contents(folder)) == [NAME, "preset.yaml"]


def test_what_a_kill_left_of_the_runs_own_writes_and_removals_is_the_runs(tmp_path):
    folder = run_of(tmp_path / "run")
    for name in (".model.tmp", ".gone-model"):
        (folder / "1-sft-all" / name).mkdir()
        (folder / "1-sft-all" / name / "model.safetensors").write_bytes(b"half")
    (folder / "1-sft-all" / ".log.jsonl.tmp").write_text("{")
    with open_run(preset(folder), fresh=True):
        assert sorted(contents(folder)) == [NAME, "preset.yaml"]


def test_what_is_not_there_is_removed_without_a_word(tmp_path, caplog):
    with open_run(preset(run_of(tmp_path / "run"))):
        remove(tmp_path / "run" / "never-written.json")
    assert not caplog.records


def test_what_is_called_as_a_removal_that_was_cut_off_is_kept_if_the_run_did_not_make_it(tmp_path):
    folder = run_of(tmp_path / "run")
    (folder / "1-sft-all" / ".gone-thesis").mkdir()
    (folder / "1-sft-all" / ".gone-thesis" / "a.txt").write_text("mine")
    with open_run(preset(folder)):
        Stage(folder / "1-sft-all", {"rows": "y"}).begin()
    kept = folder / ASIDE / "1-sft-all" / ".gone-thesis" / "a.txt"
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("fresh", "copied", "words"),
    [
        (False, (), "not from a run"),
        (True, (), "not from a run"),
        (True, (NAME,), "would remove what is not from this run .thesis.txt"),
        (True, (NAME, "run.json"), "would remove what is not from this run .thesis.txt"),
    ],
)
def test_a_folder_with_a_preset_in_it_is_no_run(tmp_path, fresh, copied, words):
    """Neither is one with a run's files copied into it, where --fresh finds more than these."""
    run, mine = run_of(tmp_path / "run"), tmp_path / "mine"
    mine.mkdir()
    (mine / "preset.yaml").write_text("# my comment\nrun: {dir: mine}\n")
    (mine / "thesis.txt").write_text("years of work")
    for name in copied:
        (mine / name).write_bytes((run / name).read_bytes())
    before = contents(mine)
    with pytest.raises(UserError, match=words), open_run(preset(mine), fresh=fresh):
        pass
    assert contents(mine) == before


def test_a_run_of_before_runs_had_markers_goes_on_and_is_not_emptied(tmp_path, caplog):
    folder = run_of(tmp_path / "run")
    (folder / NAME).unlink()
    write_json(folder / "older.json", {})
    with open_run(preset(folder)):
        assert Stage(folder / "1-sft-all", {"rows": "x"}).finished() == {}
    assert "files that they do not name count as foreign" in caplog.text
    with (
        pytest.raises(UserError, match=r"run .older.json"),
        open_run(preset(folder), fresh=True),
    ):
        pass
    assert (folder / "1-sft-all" / "model" / "model.safetensors").is_file()
    (folder / "older.json").unlink()
    with open_run(preset(folder), fresh=True):
        assert sorted(contents(folder)) == [NAME, "preset.yaml"]


@pytest.mark.parametrize("place", ["first line", "line", "end"])
def test_a_damaged_marker_makes_files_strangers_and_never_strangers_files(tmp_path, place):
    folder = run_of(tmp_path / "run")
    lines = (folder / NAME).read_bytes().splitlines(keepends=True)
    at = {"first line": 0, "line": 2, "end": len(lines) - 1}[place]
    lines[at] = lines[at][:-9] if place == "end" else lines[at].replace(b"a", b"b", 1)
    (folder / NAME).write_bytes(b"".join(lines))
    (folder / "thesis.txt").write_text("mine")
    with open_run(preset(folder)):
        write_text(folder / "results.json", "{}")
    marker = read_marker(folder)
    assert marker.owns(marker.folder / "results.json"), "a line after a torn one counts"
    assert not marker.owns(marker.folder / "thesis.txt")
    with pytest.raises(UserError, match="not from this run"), open_run(preset(folder), fresh=True):
        pass
    assert (folder / "thesis.txt").is_file()


def test_what_is_not_from_the_run_is_moved_out_of_what_is_done_again(tmp_path, caplog):
    folder = run_of(tmp_path / "run")
    for name in ("notes.txt", "model/model.gguf"):
        (folder / "1-sft-all" / name).write_text("mine")
    with open_run(preset(folder)):
        Stage(folder / "1-sft-all", {"rows": "y"}).begin()
    assert not (folder / "1-sft-all" / "model").exists()
    for name in ("notes.txt", "model/model.gguf"):
        assert (folder / ASIDE / "1-sft-all" / name).read_text() == "mine"
    assert "is not from this run; moved to" in caplog.text


def test_a_run_directory_that_is_removed_while_it_is_open_is_named_in_a_sentence(tmp_path, capsys):
    folder = tmp_path / "run"

    def work():
        with open_run(preset(folder)):
            shutil.rmtree(folder)
            write_text(folder / "report.md", "text")

    assert run_command(work) == 1
    said = capsys.readouterr().err
    assert "could not be written (No such file or directory)" in said
    assert "leave the folder in its place" in said
