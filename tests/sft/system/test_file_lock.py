"""Locks of ended processes are taken over, those of running ones are not, with or without flock."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from sft.errors import UserError
from sft.system import file_lock
from sft.system.file_lock import LENGTH, NAME, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from sft.system import file_lock as lock
lock.BEAT = 0.5
with lock.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def holder(folder, seconds=60):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def record(folder, **facts):
    folder.mkdir(exist_ok=True)
    entry = {"process": 4711, "host": "far", "token": "t", "beat": 1, "ending": False} | facts
    (folder / NAME).write_bytes(json.dumps(entry).encode().ljust(LENGTH))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(file_lock, "STALE", 1.5)
    monkeypatch.setattr(file_lock, "BEAT", 0.5)
    monkeypatch.setattr(file_lock, "PATIENCE", 0.5)


@pytest.fixture
def without_flock(monkeypatch, quick):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_said(tmp_path, quick, caplog):
    with holder(tmp_path) as child:
        child.kill()
    with lock_folder(tmp_path):
        assert f"the run of process {child.pid} on" in caplog.text
    assert not (tmp_path / NAME).read_bytes(), "a run that ended in order leaves no record"


def test_a_holder_that_ends_within_the_patience_is_waited_for(tmp_path):
    with holder(tmp_path, seconds=1), lock_folder(tmp_path):
        pass


def test_a_living_holder_is_named_even_where_the_kernel_keeps_no_locks(tmp_path, without_flock):
    with (
        holder(tmp_path) as child,
        pytest.raises(UserError, match=f"in use by process {child.pid} on"),
        lock_folder(tmp_path),
    ):
        pass


@pytest.mark.parametrize("kernel", [True, False])
def test_a_record_of_another_host_that_stands_still_is_stale(tmp_path, request, kernel, caplog):
    request.getfixturevalue("quick" if kernel else "without_flock")
    record(tmp_path / "run")
    begun = time.monotonic()
    with lock_folder(tmp_path / "run"):
        assert time.monotonic() - begun >= 1.5
        assert "process 4711 on far was cut off" in caplog.text
    with lock_folder(tmp_path / "run"):
        assert time.monotonic() - begun < 8, "nothing to wait for after an orderly end"


def test_a_pipe_in_place_of_the_lock_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(UserError, match=r"\.lock is not a file; remove it"), lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"\0" * 50, b"[" * 500_000])
def test_a_damaged_lock_file_does_not_hold_up_the_run(tmp_path, quick, content):
    tmp_path.joinpath(NAME).write_bytes(content)
    with lock_folder(tmp_path):
        pass


def test_a_folder_that_datasets_would_take_for_an_address_is_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"run.dir=.*a::b contains `::`"),
        lock_folder(tmp_path / "a::b"),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())


def test_a_start_that_is_refused_leaves_no_trace(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for folder in (mine, tmp_path / "new" / "run"):
        with pytest.raises(UserError, match="refused"), lock_folder(folder):
            raise UserError("refused")
    assert sorted(tmp_path.rglob("*")) == [mine, mine / "thesis.txt"]
    with pytest.raises(UserError), lock_folder(mine):  # one that wrote keeps its lock
        (mine / "preset.yaml").write_text("")
        raise UserError("later")
    assert (mine / NAME).is_file()


def test_a_lock_file_that_a_refused_start_removed_is_not_held(tmp_path, monkeypatch):
    taken = file_lock._take

    def removed_first(stream, folder):
        by_kernel = taken(stream, folder)
        monkeypatch.setattr(file_lock, "_take", taken)
        (folder / NAME).unlink()  # by the start that held it until now
        return by_kernel

    monkeypatch.setattr(file_lock, "_take", removed_first)
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("folder", ["x" * 256, "/".join(["d" * 200] * 30)])
def test_a_name_that_is_too_long_is_said_to_be(tmp_path, folder):
    words = "is too long; give a shorter name or path: most systems take 255 and 4096 bytes"
    with pytest.raises(UserError, match=words), lock_folder(tmp_path / folder):
        pass
