"""Rows with their trained tokens marked, and `recipes/preview.py`."""

import io
import json

import pytest
from chat_templates import CHATML, ONE, TWO

from recipes.preview import main
from sft.chat_template.encoding import encode_chat
from sft.planning.mask_display import bracketed, colored, marking


def test_preview_colors_what_is_trained(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    assert "\x1b[32mHello you<|im_end|>\x1b[0m" in colored(
        tiny_tokenizer, encode_chat(tiny_tokenizer, ONE)
    )


def test_colors_are_for_terminals_that_want_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert marking(Terminal()) == (colored, "green")
    assert marking(io.StringIO())[0] is bracketed
    monkeypatch.setenv("NO_COLOR", "1")
    assert marking(Terminal())[0] is bracketed


def test_command_shows_a_row_of_each_kind(tiny_tokenizer, tiny_model, tmp_path, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"messages": ONE, "kind": "talk"}, {"messages": TWO, "kind": "talk"}]
    rows.append({"messages": TWO, "kind": "more"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    preset = tmp_path / "preset.yaml"
    preset.write_text(
        f"model: {{name_or_path: {tmp_path}/model}}\n"
        f"data: {{sft: [{{path: {tmp_path}/rows.jsonl}}]}}\n"
        "dpo: {enabled: false}\n"
    )
    assert main([str(preset)]) == 0
    shown = capsys.readouterr().out
    assert f"{tmp_path}/rows.jsonl:1 (talk)" in shown
    assert "⟦Hello you<|im_end|>⟧" in shown and "\x1b" not in shown, "no terminal"
    assert main([str(preset), "data.sft=[{path: none.jsonl}]"]) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])
