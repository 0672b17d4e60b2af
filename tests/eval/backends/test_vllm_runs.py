"""A comparison by vLLM has the rows of one by transformers; the two are never mixed."""

import json
import os
import subprocess
import sys

import pytest
import vllm_stand_in
from files import ROOT
from tiny_models import make_tiny_model, make_tiny_tokenizer
from tiny_world import build_world
from vllm_tests import draws_as_ours, on_path

from eval.backends.vllm_backend import find_vllm
from recipes import base_vs_chat
from sft.system.atomic_files import read_json, read_jsonl

BY_VLLM = ["--vllm", sys.executable]  # the stand-in


def assert_same_rows(one, other, *, files):
    names = {path.relative_to(one) for path in one.rglob("*.jsonl")}
    assert len(names) == files
    for name in names:
        for left, right in zip(read_jsonl(one / name), read_jsonl(other / name), strict=True):
            logs = [row.pop("log_probs", []) for row in (left, right)]
            assert logs[1] == pytest.approx(logs[0], abs=1e-4)
            assert left == right


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """base_vs_chat by transformers and by the stand-in: the folder that holds ours/ and theirs/,
    and what each start was told."""
    folder, tokenizer = tmp_path_factory.mktemp("compared"), make_tiny_tokenizer()
    build_world(folder, tokenizer)
    make_tiny_model(1).save_pretrained(folder / "chat")
    tokenizer.save_pretrained(folder / "chat")
    (folder / "safety.jsonl").write_text(
        json.dumps({"id": "a", "prompt": "say it", "reference": {"refuse": True}}) + "\n"
    )
    common = ["--base", str(folder / "base"), "--preset", str(folder / "preset.yaml")]
    common += ["--safety", str(folder / "safety.jsonl")]
    both = [*common, "--chat", str(folder / "chat")]
    with pytest.MonkeyPatch.context() as patch:
        on_path(patch, vllm_stand_in.install(folder / "packages"))
        assert base_vs_chat.main([*both, "--to", str(folder / "ours")]) == 0
        assert base_vs_chat.main([*both, *BY_VLLM, "--to", str(folder / "theirs")]) == 0
        yield folder, common
    find_vllm.cache_clear()


@draws_as_ours
def test_base_vs_chat_has_the_same_rows_with_either(compared):
    folder, _ = compared
    runs = [folder / "ours", folder / "theirs"]
    assert_same_rows(*(run / "eval" for run in runs), files=6)
    done = [read_json(run / "eval" / "chat" / "done.json")["inputs"] for run in runs]
    assert "backend" not in done[0]
    assert done[1]["backend"] == "vllm 0.33.0 torch.float32"
    kept = runs[1] / "eval" / "chat" / "kept"
    assert {read_json(p)["inputs"]["backend"] for p in kept.rglob("*.json")} == {done[1]["backend"]}


@draws_as_ours
@pytest.mark.parametrize(
    "sides",
    [
        ["--samples", "a=ours", "--samples", "b=theirs"],
        ["--base", "base", "--samples", "b=theirs"],
        ["--base", "base", "--samples", "a=ours", *BY_VLLM],
    ],
    ids=["both measured before", "here by transformers", "here by vllm"],
)
def test_what_one_backend_measured_is_not_compared_with_the_other_s(
    compared, sides, tmp_path, monkeypatch, capsys
):
    folder, _ = compared
    monkeypatch.chdir(folder)
    options = ["--preset", "preset.yaml", "--to", str(tmp_path)]
    assert base_vs_chat.main([*sides, *options]) == 2
    words = capsys.readouterr().err
    assert "error: measured by different backends" in words and "by transformers" in words
    assert not (tmp_path / "eval" / "base").exists()


@draws_as_ours
def test_two_processes_share_the_questions_with_a_vllm_each(compared, tmp_path):
    folder, common = compared
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "recipes/base_vs_chat.py", *common, *BY_VLLM, "--to", tmp_path]
    ended = subprocess.run(
        [*command, "--samples", f"chat={folder / 'theirs'}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "measured by: vLLM 0.33.0, cpu, float32" in ended.stderr
    assert_same_rows(folder / "theirs" / "eval" / "base", tmp_path / "eval" / "base", files=3)
    deltas = [read_json(run / "results.json")["deltas"] for run in (folder / "theirs", tmp_path)]
    assert deltas[0] == deltas[1]
    assert not (tmp_path / ".vllm").exists()
