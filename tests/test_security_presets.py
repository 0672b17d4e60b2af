"""Hostile presets: what a stranger's preset may not do, whichever command reads it."""

import random
import re
import string

import pytest
from files import ROOT

from eval.backends.vllm_backend import find_vllm
from recipes import base_vs_chat, plan_run, preview, sft_then_dpo
from sft.config.preset import load_preset
from sft.config.restricted_keys import COMMAND_LINE_ONLY
from sft.config.secrets import mask_secrets, secret_places
from sft.errors import UserError

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
        lambda: preview.main([preset]),
    ):
        assert start() == 2
        said = capsys.readouterr().err
        assert "eval.vllm_python=" in said and "on the command line" in said
        assert not mark.exists()
    with pytest.raises(UserError, match="is no Python"):
        find_vllm(str(path))  # as the command line names it
    assert mark.exists()


@pytest.mark.parametrize("at", COMMAND_LINE_ONLY)
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


def _drawn(alphabet, count):
    return "".join(random.Random(count).choices(alphabet, k=count))


ANY, HEX = string.ascii_letters + string.digits, "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
# Made up in the form of each maker, in two pieces, so that no scanner takes this file's for real.
MADE_UP = [
    *[("hf" + "_", _drawn(ANY, 34)), ("gs" + "k_", _drawn(ANY, 52)), ("sk" + "-", _drawn(HEX, 32))],
    *[("sk" + "-proj-", _drawn(ANY, 20) + "_" + _drawn(ANY, 60)), ("AI" + "za", _drawn(ANY, 35))],
    *[("sk" + "-ant-api03-", _drawn(ANY, 93)), ("AS" + "IA", _drawn(UPPER, 16))],
    *[("ya" + "29.", _drawn(ANY, 60)), ("AccountKey" + "=", _drawn(ANY, 86) + "==")],
    *[
        ("do" + "p_v1_", _drawn(HEX, 64)),
        ("da" + "pi", _drawn(HEX, 32)),
        ("hv" + "s.", _drawn(ANY, 24)),
    ],
    *[("gh" + "s_", _drawn(ANY, 36)), ("github" + "_pat_", _drawn(ANY, 82))],
    *[
        ("gl" + "pat-", _drawn(ANY, 20)),
        ("AT" + "ATT3", _drawn(ANY, 80)),
        ("np" + "m_", _drawn(ANY, 36)),
    ],
    *[("py" + "pi-AgE", _drawn(ANY, 150)), ("dc" + "kr_pat_", _drawn(ANY, 27))],
    *[("xox" + "b-", "123456789012-" + _drawn(ANY, 24)), ("s" + "k_live_", _drawn(ANY, 24))],
    *[
        ("S" + "G.", _drawn(ANY, 22) + "." + _drawn(ANY, 43)),
        ("123456789" + ":AA", _drawn(ANY, 33)),
    ],
    ("ey" + "J", _drawn(ANY, 33) + ".ey" + _drawn(ANY, 60) + "." + _drawn(ANY, 43)),
    ("-----BEGIN RSA PRIVATE" + " KEY-----", _drawn(ANY, 64) + "-----END RSA PRIVATE KEY-----"),
    ("-----BEGIN" + " PRIVATE KEY-----", _drawn(ANY, 64)),
    *[("https://h/x.json?X-Amz-Signature" + "=", _drawn(HEX, 64))],
    *[
        ("https://h/x.json?sv=1&sig" + "=", _drawn(ANY, 43)),
        ("https://h/x?token" + "=", _drawn(ANY, 9)),
    ],
    *[("https://h/x?a=1&x-goog-credential" + "=", _drawn(ANY, 30))],
    *[("https://h/x?hf_api_key" + "=", _drawn(ANY, 12)), ("https://me:", "w0rd@h/x")],
]


@pytest.mark.parametrize("made_up", MADE_UP, ids=lambda pieces: pieces[0][:24])
def test_keys_of_many_makers_are_refused_in_presets_and_blotted_out(tmp_path, made_up):
    secret, rest = "".join(made_up), made_up[1]
    for text in (secret, f"it is {secret}, twice: {secret}", f"a_{secret}\nb"):
        assert rest not in mask_secrets(text) and "***" in mask_secrets(text)
        assert mask_secrets(mask_secrets(text)) == mask_secrets(text)
    (tmp_path / "p.yaml").write_text(PRESET + f"eval: {{task_dir: {secret!r}}}\n")
    with pytest.raises(UserError, match=r"eval\.task_dir holds a password or a key") as no:
        load_preset(tmp_path / "p.yaml")
    assert rest not in str(no.value)


def test_what_is_no_key_is_said_as_it_is():
    """Names, hashes, addresses without a signature; and all that this project has written."""
    plain = [
        *("org/sk-learn-documentation-questions-v2", "a1b2" * 10, "a1b2" * 16, "hf_model_of_mine"),
        "https://host/rows.json?download=true&split=train&key=value&page_token_count=3",
        *("https://host/a@b", "npm_install and ms-marco", "bearer of news", "basic training of it"),
        *("ghost_writers_of_a_long_name_here", "eyJ.a.b", "SKILLS", "task_sk-1", "12:30:45"),
    ]
    for text in plain:
        assert mask_secrets(text) == text
    for pattern in ("*.md", "recipes/**/*.md", "recipes/**/*.yaml", "eval/**/*.jsonl"):
        for path in ROOT.glob(pattern):
            text = path.read_text(encoding="utf-8")
            assert mask_secrets(text) == text, path


def test_every_value_of_a_preset_is_looked_at():
    secret = "".join(MADE_UP[0])
    nested = {"a": [{"b": secret}, {secret: 1}], "c": {"d": ["x", secret]}}
    assert list(secret_places(nested)) == ["a[0].b", "a[1].***", "c.d[1]"]
