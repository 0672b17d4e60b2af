"""Rows as the dry run and the preview print them, and warnings about their kinds."""

import io
import re
import sys

import pytest
from chain_runs import run
from tiny_world import chat

from recipes.preview import main as preview
from sft.system.atomic_files import read_jsonl, write_jsonl


def test_a_dry_run_shows_rows_and_masks_and_trains_nothing(world, capsys, caplog):
    caplog.set_level("INFO")
    assert run(world, "--dry-run") == 0
    said = capsys.readouterr()
    shown, told = said.out, " ".join(said.err.split())
    assert "math" in shown and "dialogue" in shown
    assert "⟦0<|im_end|>⟧" in shown and "\x1b" not in said.out + said.err, "no terminal"
    assert "46.6%" in told, "the paper's mix stands beside ours"
    assert "24 of 24 trained turns end with a trained end-of-turn, 0 are cut" in told
    assert re.search(r"dpo: at most 24 pairs, .* batches of 8, at most 3 steps$", caplog.text, re.M)
    assert not (world / "run").exists() and "takes all of its" not in caplog.text
    assert run(world, "--dry-run", "sft_all.warmup_steps=9", "dpo.warmup_steps=5") == 0
    assert "sft-all: warmup_steps=9 takes all of its 3 steps: the learning rate ends" in caplog.text
    assert "at most 3 steps; warmup_steps=5 takes all of its 3 steps" in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", ["preview", "dry run"])
def test_rows_are_shown_on_a_stdout_of_any_encoding(world, monkeypatch, command, encoding):
    """The encoding lacks characters of rows, paths and tables, and the brackets of trained text."""
    rows = read_jsonl(world / "rows.jsonl")
    rows[0] = {"messages": chat("你", "é你"), "kind": "数学"}
    write_jsonl(world / "数.jsonl", rows)
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    sources = f"data.sft=[{{path: {world / '数.jsonl'}}}]"
    if command == "preview":
        assert preview([str(world / "preset.yaml"), sources]) == 0
    else:
        assert run(world, "--dry-run", sources) == 0
    stdout.flush()
    said = stdout.buffer.getvalue().decode(encoding)
    answer = "é\\u4f60" if encoding == "latin-1" else "\\xe9\\u4f60"
    assert f"[[{answer}<|im_end|>]]" in said and "trained tokens are in [[ ]]" in said
    assert "\\u6570\\u5b66" in said and "\\u6570.jsonl:1" in said


def test_the_preview_shows_the_first_row_of_a_kind_that_fits(world, capsys):
    """Longer rows before it are counted, and so are those of a kind of which no row fits."""
    answers = [("a", "no " * 400), ("a", "yes " * 400), ("a", "fits"), ("b", "x" * 999)]
    rows = [{"messages": chat("ask", answer), "kind": kind} for kind, answer in answers]
    write_jsonl(world / "mixed.jsonl", rows)
    sources = f"data.sft=[{{path: {world / 'mixed.jsonl'}}}]"
    assert preview([str(world / "preset.yaml"), sources]) == 0
    said = capsys.readouterr().out
    assert "mixed.jsonl:3 (a)" in said and "⟦fits<|im_end|>⟧" in said
    assert "(rows of this kind before it, longer than max_length=" in said
    assert "left out: 2)" in said and "b: all 1 rows are longer than max_length=" in said


def test_a_misspelled_kind_is_warned_of_and_a_new_one_is_not(world, caplog):
    rows = [{"messages": chat(f"tell {c}", c * 2)} for c in "abc"]
    write_jsonl(world / "more.jsonl", rows)
    for kind, warned in (("dialog", True), ("poems", False)):
        more = f"{{path: {world / 'more.jsonl'}, kind: {kind}}}"
        sources = f"data.sft=[{{path: {world / 'rows.jsonl'}}}, {more}]"
        caplog.clear()
        assert run(world, sources, "--dry-run") == 0
        assert (
            "kind dialog, of 3 rows, resembles dialogue but is another" in caplog.text
        ) is warned
