"""The default system prompt of a template: found, counted, replaced, taken out."""

import pytest
import yaml
from chat_templates import CHATML, DEFAULT_SYSTEM, LLAMA2, TOOL, make_tokenizer, templates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import make_tiny_model
from transformers import AutoTokenizer

from recipes.sft_then_dpo import main
from sft.chat_template.encoding import encode_chat, encode_prompt
from sft.chat_template.render import render
from sft.chat_template.system_prompt import default_system, set_system_prompt
from sft.config.preset import load_preset
from sft.config.sections import ModelSection
from sft.errors import UserError
from sft.export.ollama import find_turn_format
from sft.model.loading import load_tokenizer
from sft.system.atomic_files import write_jsonl

QUESTION = [{"role": "user", "content": "Q"}]
INSTRUCTED = [{"role": "system", "content": "sys"}, *QUESTION]
ANSWER = {"role": "assistant", "content": "A"}
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
TURN = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"


def written(tokenizer, messages=QUESTION, tools=None):
    return render(tokenizer, messages, tools=tools, prompt=True)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "default", "bare"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", QWEN, TURN),
        ("Qwen/Qwen1.5-72B-Chat", "You are a helpful assistant", TURN),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "You are a helpful assistant.", TURN),
        # No literal holds the complete turn, so an empty one remains.
        (
            "MadeAgents/Hammer2.1",
            "You are a helpful assistant.",
            "<|im_start|>system\n<|im_end|>\n" + TURN,
        ),
        (
            "deepseek-ai/deepseek-coder-33b-instruct",
            "You are an AI programming assistant, utilizing the Deepseek Coder model",
            "<s>### Instruction:\nQ\n### Response:\n",
        ),
    ],
)
def test_defaults_of_real_templates_are_found_and_taken_out(real_data, name, default, bare):
    tokenizer = make_tokenizer(dict(templates(real_data))[name], bos="<s>")
    assert default_system(tokenizer).startswith(default)
    before = [written(tokenizer, INSTRUCTED), written(tokenizer, INSTRUCTED, [TOOL])]
    set_system_prompt(tokenizer, "none")
    assert written(tokenizer) == bare
    assert default not in written(tokenizer, tools=[TOOL])
    assert [written(tokenizer, INSTRUCTED), written(tokenizer, INSTRUCTED, [TOOL])] == before
    assert default_system(tokenizer) is None


@pytest.mark.real
def test_of_the_other_real_templates_none_has_a_default(real_data):
    """A preamble in every conversation (Llama 3) is no default system prompt; neither
    is the opening of the first turn (Mistral's [INST])."""
    found = set()
    for name, template in templates(real_data):
        tokenizer = make_tokenizer(template, bos="<s>") if isinstance(template, str) else None
        if tokenizer is not None and default_system(tokenizer):
            found.add(name)
    assert found == {
        *("Qwen-Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen1.5-72B-Chat"),
        *("Qwen/Qwen2.5-VL-7B-Instruct", "MadeAgents/Hammer2.1"),
        "deepseek-ai/deepseek-coder-33b-instruct",
    }


@pytest.mark.real
def test_a_text_stands_in_rows_and_prompts_of_a_real_tokenizer(real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers/qwen2.5")
    said = [{"role": "system", "content": "Antworte kurz."}, *QUESTION, ANSWER]
    expected = encode_chat(tokenizer, said)
    assert encode_chat(tokenizer, said[1:]) != expected
    set_system_prompt(tokenizer, "Antworte kurz.")
    assert encode_chat(tokenizer, said[1:]) == expected == encode_chat(tokenizer, said)
    assert encode_prompt(tokenizer, QUESTION) == encode_prompt(tokenizer, said[:-1])


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("'\"\\\n{}%#")))
def test_any_text_is_written_as_it_is(text):
    if not text.strip() or text in ("none", "template"):
        return
    for template in (DEFAULT_SYSTEM, CHATML):
        tokenizer = make_tokenizer(template)
        expected = written(tokenizer, [{"role": "system", "content": text}, *QUESTION])
        instructed = written(tokenizer, INSTRUCTED)
        set_system_prompt(tokenizer, text)
        assert written(tokenizer) == expected
        assert written(tokenizer, INSTRUCTED) == instructed


def test_the_modelfile_follows():
    tokenizer = make_tokenizer(DEFAULT_SYSTEM)
    assert find_turn_format(tokenizer).default == "<|im_start|>system\nBe kind.<|im_end|>\n"
    set_system_prompt(tokenizer, "Be brief.")
    assert find_turn_format(tokenizer).default == "<|im_start|>system\nBe brief.<|im_end|>\n"
    set_system_prompt(tokenizer := make_tokenizer(DEFAULT_SYSTEM), "none")
    assert find_turn_format(tokenizer).default == ""


@pytest.mark.parametrize(
    ("template", "wanted", "words"),
    [
        (LLAMA2, "Be brief.", "data.system_prompt='Be brief.' cannot be used .*no system"),
        (DEFAULT_SYSTEM, "a<|im_end|>b", "contains '<|im_end|>'"),
        (
            DEFAULT_SYSTEM.replace("Be kind.", "' + 'Be ' + 'kind.' + '"),
            "none",
            "data.system_prompt=none: .*'Be kind.' is not one literal text",
        ),
    ],
)
def test_what_a_template_cannot_do_is_refused_and_it_stays_as_it_was(template, wanted, words):
    tokenizer = make_tokenizer(template)
    with pytest.raises(UserError, match=words.replace("|", r"\|")):
        set_system_prompt(tokenizer, wanted)
    assert tokenizer.chat_template == template


def test_a_dry_run_shows_the_default_and_its_rows(tmp_path, tiny_tokenizer, capsys):
    tiny_tokenizer.chat_template = DEFAULT_SYSTEM
    make_tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"messages": [*QUESTION, {"role": "assistant", "content": c * 3}]} for c in "abcde"]
    rows.append({"messages": [*INSTRUCTED, ANSWER]})
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": "0", "messages": QUESTION}])
    preset = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"name_or_path": str(tmp_path / "base"), "dtype": "float32"},
        "data": {"sft": [{"path": str(tmp_path / "rows.jsonl")}], "near_duplicates": 0},
        "sft_dialogue": {"enabled": False},
        "dpo": {"enabled": False},
        "eval": {"repetition": {"prompts": str(tmp_path / "prompts.jsonl"), "cap": 64}},
    }
    file = tmp_path / "preset.yaml"
    file.write_text(yaml.safe_dump(preset))

    def shown(*given):
        assert main([str(file), "--dry-run", *given]) == 0
        out, log = capsys.readouterr()
        return out, " ".join(log.split())

    rows, table = shown()
    assert "5 of 6 rows have no system turn, and the template writes 'Be kind.'" in table
    assert "Be kind." in rows
    rows, table = shown("data.system_prompt=Be brief.")
    assert "the template writes 'Be brief.' there (data.system_prompt;" in table
    assert "Be brief." in rows and "Be kind." not in rows
    rows, table = shown("data.system_prompt=none")
    assert "system prompt:" not in table and "Be kind." not in rows
    with pytest.raises(UserError, match=r"data\.system_prompt is empty"):
        load_preset(file, overrides=["data.system_prompt=''"])


def test_the_stored_tokenizer_has_it(tmp_path):
    tokenizer = make_tokenizer(DEFAULT_SYSTEM)
    make_tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = load_tokenizer(str(tmp_path), ModelSection(str(tmp_path)), system_prompt="Be brief.")
    made.save_pretrained(tmp_path / "out")
    stored = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert "Be brief." in written(stored) and "Be kind." not in written(stored)
