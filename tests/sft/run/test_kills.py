"""Killed before any touch of a file, a command loses nothing and the next one goes on.

`kill_resume.py` kills the whole chain at random; here parts of it are killed at every place.
"""

import os
import shutil
import sys
import traceback
import warnings
from itertools import count

import pytest
from chain_process import TOUCHES
from run_folders import contents, fill, preset, run_of

from sft.run.checkpoint import commit_checkpoint, draft_folder, last_good
from sft.run.directory import open_run
from sft.run.output_folder import RECORD, finished_folder, new_folder
from sft.run.stage_cache import Stage
from sft.system.run_marker import NAME

KILLED = 9


def killed_at(place, action):
    """Whether `action`, in a process of its own, gets to its touch of a file number `place`, where
    it is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of forks with threads
        pid = os.fork()
    if pid == 0:
        left = place

        def hook(event, args):
            nonlocal left
            reading = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in TOUCHES and not reading:
                left -= 1
                if left == 0:
                    os._exit(KILLED)

        code = 1
        try:
            sys.addaudithook(hook)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def open_once(folder, **options):
    with open_run(preset(folder), **options):
        pass


def test_a_run_whose_first_start_is_killed_anywhere_goes_on(tmp_path):
    for place in count(1):
        folder = tmp_path / str(place)
        killed = killed_at(place, lambda folder=folder: open_once(folder))
        open_once(folder)
        assert sorted(contents(folder)) == [NAME, "preset.yaml"]
        if not killed:
            break
    assert place > 5


@pytest.mark.parametrize("first", [1, 5, 10])
def test_fresh_that_is_killed_again_and_again_empties_the_run_in_the_end(tmp_path, first):
    folder = run_of(tmp_path / "run")
    for place in count(first):
        if not killed_at(place, lambda: open_once(folder, fresh=True)):
            break
    assert place > first
    assert sorted(contents(folder)) == [NAME, "preset.yaml"]


def test_a_removal_in_a_run_that_was_cut_off_is_finished_by_any_start(tmp_path):
    folder = run_of(tmp_path / "run")
    (folder / "1-sft-all").rename(folder / ".gone-1-sft-all")
    open_once(folder)
    assert sorted(contents(folder)) == [NAME, "preset.yaml", "run.json"]


def test_a_checkpoint_that_is_saved_again_is_there_whenever_that_is_killed(tmp_path):
    def save():
        draft = draft_folder(tmp_path) / "checkpoint-4"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name in ("weights", "optimizer"):
            (draft / name).write_bytes(b"x" * 100)
        commit_checkpoint(draft, tmp_path, keep=1)

    save()
    for place in count(1):
        killed = killed_at(place, save)
        assert last_good(tmp_path) == tmp_path / "checkpoint-4"
        if not killed:
            break
    assert place > 5
    assert os.listdir(tmp_path) == ["checkpoint-4"]


class Listing:
    """A folder's entries by their names: file systems list them in any order."""

    def __init__(self, entries, *, backwards):
        self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=backwards))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_a_new_folder_is_complete_or_written_again_after_a_kill_at_any_instant(
    tmp_path, monkeypatch, ends, backwards
):
    to, scandir = tmp_path / "out", os.scandir
    monkeypatch.setattr(os, "scandir", lambda *at: Listing(scandir(*at), backwards=backwards))

    def write():
        with new_folder(to, option="--to") as folder:
            for name in ("a", "b"):
                (folder / name).write_text("weights")
            if not ends:
                raise KeyboardInterrupt

    def stopped():
        with pytest.raises(KeyboardInterrupt):
            write()

    for place in count(1):
        killed = killed_at(place, write if ends else stopped)
        if not to.exists():
            fill(to)
            assert os.listdir(to) == ["model.safetensors"]
        else:
            assert ends and sorted(os.listdir(to)) == ["a", "b"]
        shutil.rmtree(to)
        if not killed:
            break
    assert place > 5
    assert os.listdir(tmp_path) == []


def test_a_new_folder_with_a_record_that_is_killed_anywhere_is_finished_by_the_same_command(
    tmp_path,
):
    to, inputs = tmp_path / "out", {"run": "x"}

    def write():
        if finished_folder(to, inputs, option="--to") is None:
            with new_folder(to, option="--to") as folder:
                (folder / "a").write_text("weights")
                Stage(folder, inputs).finish(outputs=["a"], facts={})

    for place in count(1):
        killed = killed_at(place, write)
        write()
        assert sorted(os.listdir(to)) == ["a", RECORD]
        assert os.listdir(tmp_path) == ["out"]
        shutil.rmtree(to)
        if not killed:
            break
    assert place > 5
