"""Failed writes keep the old file and name the reason; no folder is ever partly removed."""

import errno

import pytest
import torch
from files import files_of_at_most
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from sft.system.atomic_files import (
    GONE,
    WriteFailed,
    describe_os_error,
    file_hash,
    read_json,
    remove,
    sweep,
    write_json,
    write_text,
    writing,
)


def save_torch(path):
    torch.save({"a": torch.zeros(50_000)}, path)


def save_safetensors(path):
    save_file({"a": torch.zeros(50_000)}, path)


def save_little(path):
    torch.save({"a": 1}, path)  # it fails where the file is closed


def save_tokenizer(path):
    Tokenizer(BPE({f"{i}": i for i in range(5_000)}, [])).save(str(path))


def want_space(path):
    raise OSError("Not enough disk space. Needed: Unknown size (download: Unknown size)")


@pytest.mark.parametrize(
    ("write", "size"),
    [
        (lambda path: write_json(path, ["x" * 50_000]), 10_000),
        (save_torch, 10_000),
        (save_little, 100),
        (save_safetensors, 10_000),
        (save_tokenizer, 10_000),
        (want_space, 10_000),
    ],
)
def test_a_write_that_the_disk_does_not_take_is_one_sentence(tmp_path, write, size):
    path = tmp_path / "file"
    with pytest.raises(WriteFailed) as failed, files_of_at_most(size), writing(path):
        write(path)
    sentence = describe_os_error(failed.value)
    assert str(path) in sentence and "\n" not in sentence
    assert "what was saved before is complete" in sentence and "same command again" in sentence


def test_a_json_file_that_cannot_be_replaced_stays(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(WriteFailed), files_of_at_most(10_000):
        write_json(path, {"new": "x" * 50_000})
    assert read_json(path) == {"old": 1}


def test_only_the_disks_faults_are_put_into_words(tmp_path):
    assert describe_os_error(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None
    assert "free some space" in describe_os_error(
        OSError(errno.ENOSPC, "No space left on device", "x")
    )
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path / "x"):
        raise RuntimeError("shapes differ")


def test_a_removal_that_was_cut_off_is_finished_later(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").touch()
    remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / f"{GONE}folder").mkdir()
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_json_file_reads_as_none(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\0" * 40)
    assert read_json(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text("[" * 500_000)
    assert read_json(tmp_path / "x.json") is None


@pytest.mark.parametrize("size", [100, 5 << 20])
def test_a_hash_follows_the_contents_and_not_the_name(tmp_path, size):
    for name, byte in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(byte * size)
    hashes = [file_hash(tmp_path / name) for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_text_that_cannot_be_written_leaves_no_half_of_it(tmp_path):
    write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "x" * 10_000 + "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_folder_that_is_removed_while_it_is_written_to_is_named(tmp_path):
    gone = tmp_path / "gone"
    for write in (write_json, lambda path, _: torch_save(path)):
        with pytest.raises(WriteFailed) as failed:
            write(gone / "facts.json", {})
        assert "leave the folder in its place while a command writes" in describe_os_error(
            failed.value
        )


def torch_save(path):
    with writing(path):
        torch.save({}, path)
