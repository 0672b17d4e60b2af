"""Hostile presets: what a stranger's preset may not do, whichever command reads it."""

import re

import pytest

from eval.vllm_backend import find_vllm
from recipes import base_vs_chat, plan_run, sft_then_dpo
from sft import chat
from sft.config import UserError, load_preset
from sft.sections import ASKED_BY_THE_USER

PRESET = "model: {name_or_path: m}\ndata: {sft: [{path: a}]}\npairs: {prompts: [{path: a}]}\n"


def _set(at, value):
    section, key = at.split(".")
    if section == "model":
        return PRESET.replace("{name", f"{{{key}: {value}, name")
    return PRESET + f"{section}: {{{key}: {value}}}\n"


@pytest.fixture
def program(tmp_path):
    """A program that leaves a mark where it is started, and the mark."""
    path, mark = tmp_path / "python", tmp_path / "mark"
    path.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    path.chmod(0o755)
    return path, mark


def test_a_preset_starts_no_program_through_any_command(tmp_path, program, capsys):
    path, mark = program
    preset = str(tmp_path / "p.yaml")
    text = PRESET + f"eval: {{backend: vllm, vllm_python: {path}, tasks: [gsm8k]}}\n"
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    base = str(tmp_path / "m")
    for start in (
        lambda: sft_then_dpo.main([preset, "--dry-run", f"model.name_or_path={base}"]),
        lambda: sft_then_dpo.main([preset, f"run.dir={tmp_path / 'run'}"]),
        lambda: plan_run.main([preset]),
        lambda: base_vs_chat.main(["--base", base, "--chat", base, "--preset", preset]),
        lambda: chat.main([preset]),
    ):
        assert start() == 2
        said = capsys.readouterr().err
        assert "eval.vllm_python=" in said and "on the command line" in said
        assert not mark.exists()
    with pytest.raises(UserError, match="is no Python"):
        find_vllm(str(path))  # as the command line names it
    assert mark.exists()


@pytest.mark.parametrize("at", ASKED_BY_THE_USER)
def test_keys_that_run_code_or_upload_come_from_the_command_line_alone(tmp_path, at):
    """The record of a run is a file as well: it starts nothing when it is given as a preset."""
    value = "/p" if at == "eval.vllm_python" else "true"
    backend = ["eval.backend=vllm"]
    (tmp_path / "p.yaml").write_text(_set(at, value))
    with pytest.raises(UserError, match=re.escape(at) + r"=.* may not ask for; .*command line"):
        load_preset(tmp_path / "p.yaml", overrides=backend)
    default = "null" if at == "eval.vllm_python" else "false"
    preset = load_preset(tmp_path / "p.yaml", overrides=[*backend, f"{at}={default}"])
    (tmp_path / "p.yaml").write_text(_set(at, default))
    assert load_preset(tmp_path / "p.yaml", overrides=backend) == preset
    asked = load_preset(tmp_path / "p.yaml", overrides=[*backend, f"{at}={value}"])
    (tmp_path / "p.yaml").write_text(_set(at, value))
    assert load_preset(tmp_path / "p.yaml", overrides=backend, recorded=True) == asked != preset


def test_a_module_in_the_current_directory_is_not_taken_for_vllm(tmp_path, monkeypatch):
    for name in ("vllm", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    find_vllm.cache_clear()
    with pytest.raises(UserError, match="cannot import vLLM"):
        find_vllm(None)
    assert not (tmp_path / "mark").exists()
