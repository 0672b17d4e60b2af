import json

import pytest
from benchmark_runs import read, run
from made_up_tasks import change
from tiny_models import make_tiny_model

from eval.metrics.paired_comparison import delta_table
from eval.tasks.lm_eval_model import LmEvalModel
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring


@pytest.fixture
def model():
    return enable_scoring(make_tiny_model())


REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


TURNS = (
    "{% for m in messages if m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [REFUSES + TURNS, TURNS], ids=["refuses", "leaves out"])
def test_a_description_is_told_where_a_template_has_no_system_turn(
    model, tiny_tokenizer, task_dir, tmp_path, caplog, template
):
    """lm-eval would leave it out; the questions, the verdict's keys and the pairing stay."""
    told = "These are questions about numbers.\n\n"
    change(task_dir, description=told)
    ensure_template(tiny_tokenizer)
    asked = {"tasks": ["mine_choice"], "chat": True, "shots": 1}
    usual = run(model, tiny_tokenizer, task_dir, tmp_path / "usual", **asked)["mine_choice"]
    assert "description" not in usual and "description is at the head" not in caplog.text
    tiny_tokenizer.chat_template = template
    entry = run(model, tiny_tokenizer, task_dir, tmp_path / "moved", **asked)["mine_choice"]
    assert entry["description"] == "in the user turn"
    assert caplog.text.count("description is at the start of the first user turn") == 1
    usual_rows = read(tmp_path / "usual" / "mine_choice.jsonl")
    rows = read(tmp_path / "moved" / "mine_choice.jsonl")
    for row, beside in zip(rows, usual_rows, strict=True):
        first = f"<|im_start|>user\n{told}Question: what is number 7?\nAnswer:<|im_end|>\n"
        assert row["prompt"].startswith(first) and row["prompt"].count(told) == 1
        assert row["prompt"].endswith(beside["prompt"][-40:])
    assert delta_table({"mine_choice": {"a": usual_rows, "b": rows}}, models=["a", "b"])


def test_a_template_that_takes_no_turn_at_all_is_one_sentence(
    model, tiny_tokenizer, task_dir, tmp_path
):
    tiny_tokenizer.chat_template = "{{ raise_exception('nothing pleases me') }}"
    with pytest.raises(UserError, match=r"refuses a conversation of roles user \(nothing pleases"):
        run(model, tiny_tokenizer, task_dir, tmp_path, chat=True)


@pytest.mark.real
def test_real_templates_are_told_the_description(real_data, model, tiny_tokenizer):
    """Of published templates, Gemma 2's raises at a system turn."""
    history = [
        {"role": "system", "content": "The following are questions about law.\n\n"},
        {"role": "user", "content": "May he?"},
        {"role": "assistant", "content": "No"},
        {"role": "user", "content": "May she?"},
    ]
    moved = {}
    lines = (real_data / "tokenizers/llamacpp_chat_templates.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        if row["name"].endswith(("-tool_use", "firefunction-v2")):
            continue  # they ask for tools
        tiny_tokenizer.chat_template = row["template"]
        tiny_tokenizer.bos_token = "<|endoftext|>"
        engine = LmEvalModel(model, tiny_tokenizer, chat=True)
        text = engine.apply_chat_template(history)
        assert text.count("The following are questions about law.") == 1, row["name"]
        assert text.index("May he?") < text.index("May she?")
        moved[row["name"]] = engine.system_merged
    assert [name for name, was in moved.items() if was] == ["google-gemma-2-2b-it"]
    assert len(moved) == 12
