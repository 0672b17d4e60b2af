"""A new folder is complete or absent, and foreign files are not touched."""

import os

import pytest
from files import files_of_at_most
from run_folders import fill

from sft.errors import UserError
from sft.run.output_folder import new_folder
from sft.system.atomic_files import WriteFailed


def test_it_takes_its_name_when_all_of_it_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("out", "link", "deep/er"):
        fill(tmp_path / name)
        assert os.listdir(tmp_path / name) == ["model.safetensors"]
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["deep", "empty", "link", "out"]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "with a lock"])
def test_a_foreign_folder_or_link_of_the_working_name_is_left_unchanged(tmp_path, kind):
    theirs, working = tmp_path / "theirs", tmp_path / ".out.tmp"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    if kind == "link":
        working.symlink_to(theirs)
    elif kind == "file":
        working.write_text("mine")
    else:
        theirs.rename(working)
        if kind == "with a lock":
            (working / ".lock").touch()
    with pytest.raises(UserError, match=r"--to .*\.out\.tmp.* is not from an export"):
        fill(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if kind == "file":
        assert working.read_text() == "mine"
    else:
        assert (working / "thesis.txt").read_text() == "years of work"


def test_one_process_at_a_time_and_what_a_killed_one_left_is_removed(tmp_path):
    to = tmp_path / "out"
    with new_folder(to, option="--to") as folder:
        (folder / "old").touch()
        with pytest.raises(UserError, match="is in use by process"):
            fill(to)
        assert (folder / "old").exists()
    working = tmp_path / ".two.tmp"
    (working / "model").mkdir(parents=True)
    (working / "model" / "half").touch()
    (working / ".lock").touch()
    fill(tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == ["out", "two"]
    assert os.listdir(tmp_path / "two") == ["model.safetensors"]


def test_files_that_came_meanwhile_stay_and_a_failure_leaves_nothing(tmp_path):
    to = tmp_path / "out"
    with pytest.raises(UserError, match="holds files already"), new_folder(to, option="--to"):
        to.mkdir()
        (to / "thesis.txt").write_text("years of work")
    assert os.listdir(to) == ["thesis.txt"]
    with pytest.raises(WriteFailed), files_of_at_most(10_000):
        fill(tmp_path / "full", "x" * 50_000)
    assert os.listdir(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_named_by_its_option(tmp_path):
    (tmp_path / "file").touch()
    for to, words in (("/proc/x/y", "cannot be written"), (tmp_path / "file" / "x", "is a file")):
        with pytest.raises(UserError, match=rf"--to.* {words}"):
            fill(to)
