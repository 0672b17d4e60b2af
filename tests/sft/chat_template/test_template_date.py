"""Templates that write today's date: one date for training, measuring, export and comparison."""

import re
from datetime import date, datetime

import pyarrow.parquet as pq
import pytest
import yaml
from chat_templates import make_tokenizer, templates
from files import ROOT
from tiny_models import make_tiny_model
from transformers import AutoTokenizer

from recipes import base_vs_chat, export, sft_then_dpo
from sft.chat_template.encoding import encode_chat, encode_prompt
from sft.chat_template.render import render
from sft.chat_template.template import ensure_template
from sft.chat_template.template_date import apply_template, set_date
from sft.config.preset import load_preset
from sft.config.sections import Preset, RunSection
from sft.errors import UserError
from sft.run.run_record import with_date
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl, write_record

QUESTION = [{"role": "user", "content": "hi"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "yo"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
DATED = (
    "{%- if messages[0].role != 'system' -%}"
    "{{- '<|im_start|>system\\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}"
    "{%- endif -%}\n"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "written", "clock"),
    [
        ("meta-llama-Llama-3.2-3B-Instruct", "Today Date: 06 Jul 2019", "%d %b %Y"),
        ("LiquidAI/LFM2.5-VL-450M", "Today's date: 2019-07-06", "%Y-%m-%d"),
    ],
)
def test_real_templates_write_the_given_day_and_nothing_else_changes(
    real_data, name, written, clock
):
    tokenizer = make_tokenizer(dict(templates(real_data))[name], bos="<|begin_of_text|>")
    plain = apply_template(tokenizer, ANSWERED, tools=[TOOL], tokenize=False)
    set_date(tokenizer, "2019-07-06")
    dated = apply_template(tokenizer, ANSWERED, tools=[TOOL], tokenize=False)
    today = datetime.now().strftime(clock)
    assert written in dated and today not in dated
    assert dated.replace(written, written.partition(":")[0] + ": " + today) == plain


@pytest.mark.parametrize("directive", "aAbBcdDeFGhHIjmMpRSTuUVwWxXyY")
def test_every_directive_is_as_strftime_has_it(directive):
    """At midnight, so that rows of one run do not differ by the minute."""
    tokenizer = make_tokenizer(f"{{{{ strftime_now('[%{directive}] 100%%') }}}}")
    set_date(tokenizer, "2024-07-06")
    expected = datetime(2024, 7, 6).strftime(f"[%{directive}] 100%%")
    assert render(tokenizer, QUESTION, prompt=False) == expected


def test_lines_and_leading_spaces_of_a_template_are_those_without_a_date():
    """transformers drops the line break after a block and spaces before one."""
    template = "\n  {% if true %}\n  a{{ strftime_now('') }}\n  {%- endif %}\nb"
    for text in (template, template.lstrip(), "  " + template.lstrip()):
        tokenizer = make_tokenizer(text)
        plain = render(tokenizer, QUESTION, prompt=False)
        set_date(tokenizer, "2024-07-06")
        assert render(tokenizer, QUESTION, prompt=False) == plain


def test_rows_with_generation_marks_get_the_date_too():
    marked = DATED.replace(
        "'<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}",
        "'<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' -}}",
    )
    tokenizer = make_tokenizer(marked)
    set_date(tokenizer, "2019-07-06")
    row = encode_chat(tokenizer, ANSWERED)
    assert "06 Jul 2019" in tokenizer.decode(row.input_ids)
    trained = [i for i, flag in zip(row.input_ids, row.trained, strict=True) if flag]
    assert tokenizer.decode(trained) == "yo<|im_end|>"


def test_nothing_renders_a_template_past_the_date():
    """`Engine.apply_chat_template` is lm-eval's interface and renders through `apply_template`."""
    calls = {
        path.relative_to(ROOT).as_posix()
        for room in ("sft", "dpo", "eval", "recipes")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"(?<!super\(\))\.apply_chat_template\(", path.read_text("utf-8"))
    }
    assert calls == {"sft/chat_template/template_date.py"}


def test_a_new_run_takes_today_a_resumed_one_its_own_and_a_given_date_wins(tmp_path):
    def dated(folder, day=None, **options):
        preset = Preset(run=RunSection(str(folder), date=day))
        return with_date(preset, **options).run.date

    run = tmp_path / "run"
    model = run / "1-sft-all" / "model"
    model.mkdir(parents=True)
    today = date.today().isoformat()
    assert dated(run) == today
    write_record(run / "run.json", {"date": "2019-07-06"})
    assert dated(run) == "2019-07-06"
    assert dated(run, fresh=True) == today
    assert dated(run, "2018-01-01") == "2018-01-01"
    other = tmp_path / "compared"
    assert dated(other, models=["org/name", str(model)]) == "2019-07-06"
    write_record(run / "run.json", {"seed": 0})  # a run from before there was a date
    assert dated(run) == today


@pytest.mark.parametrize("day", ["2024-7-6", "6 Jul 2024", "2024-02-30", "20240706", ""])
def test_what_is_no_date_is_refused_by_name(tmp_path, day):
    preset = tmp_path / "preset.yaml"
    preset.write_text(yaml.safe_dump({"run": {"date": day}, "model": {"name_or_path": "x"}}))
    with pytest.raises(UserError, match=f"run.date='{day}' is not a date"):
        load_preset(preset)


def test_a_run_is_trained_measured_exported_and_compared_on_its_own_date(tmp_path, tiny_tokenizer):
    """Begun in 2020, and everything after it today."""
    ensure_template(tiny_tokenizer, template=DATED)
    make_tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"messages": [*QUESTION, {"role": "assistant", "content": c * 3}]} for c in "abcdefgh"]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": "0", "messages": QUESTION}])
    preset = {
        "run": {"dir": str(tmp_path / "run"), "loop_checks": 0},
        "model": {"name_or_path": str(tmp_path / "base"), "dtype": "float32"},
        "data": {"sft": [{"path": str(tmp_path / "rows.jsonl")}], "near_duplicates": 0},
        "sft_all": {"learning_rate": 1e-2, "num_train_epochs": 1, "max_length": 96},
        "sft_dialogue": {"enabled": False},
        "dpo": {"enabled": False},
        "eval": {"repetition": {"prompts": str(tmp_path / "prompts.jsonl"), "cap": 64}},
    }
    file, run = tmp_path / "preset.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(preset))
    assert sft_then_dpo.main([str(file), "run.date=2020-01-05"]) == 0
    assert read_json(run / "run.json")["date"] == "2020-01-05"
    assert load_preset(run / "preset.yaml").run.date == "2020-01-05"

    def written(ids):
        text = tiny_tokenizer.decode(ids)
        return text[text.index("Today is ") + 9 :][:11]

    token_rows = pq.read_table(run / "data" / "sft.parquet")["input_ids"].to_pylist()
    assert {written(ids) for ids in token_rows} == {"05 Jan 2020"}
    for model in ("base", "sft-all"):
        (answer,) = read_jsonl(run / "eval" / model / "generations.jsonl")
        assert written(answer["prompt_ids"]) == "05 Jan 2020"

    done = (run / "1-sft-all" / "done.json").read_bytes()
    assert sft_then_dpo.main([str(file)]) == 0  # resumed without a word of the date
    assert (run / "1-sft-all" / "done.json").read_bytes() == done
    assert sft_then_dpo.main([str(file), "run.date=2020-01-06"]) == 2

    to = tmp_path / "out"
    assert export.main([str(run), "--to", str(to)]) == 0
    modelfile = (to / "Modelfile").read_text()
    assert "05 Jan 2020" in modelfile
    assert modelfile.startswith("# The chat template writes the date") and "2020-01-05" in modelfile
    assert "wrote 2020-01-05 (run.date)" in (to / "README.md").read_text()
    where = "where a chat has no system turn, the template and the Modelfile write"
    assert f"{where} 'Today is 05 Jan 2020'" in (to / "README.md").read_text()
    published = AutoTokenizer.from_pretrained(to)
    assert written(encode_prompt(published, QUESTION)) == datetime.now().strftime("%d %b %Y")

    compared = tmp_path / "compared"
    arguments = ["--base", str(tmp_path / "base"), "--chat", str(run), "--to", str(compared)]
    prompts = ["--prompts", str(tmp_path / "prompts.jsonl"), "--cap", "64"]
    assert base_vs_chat.main([*arguments, *prompts]) == 0
    for model in ("base", "chat"):
        (answer,) = read_jsonl(compared / "eval" / model / "generations.jsonl")
        assert written(answer["prompt_ids"]) == "05 Jan 2020"
