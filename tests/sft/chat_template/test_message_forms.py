"""Arguments and thinking reach each template in its own form, in training and at generation."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from chat_templates import CALLS, CHATML, ONE, TOOL, TWO, check_invariants, make_tokenizer, spans

from dpo.data import read_preferences
from sft.chat_template.encoding import encode_chat, encode_prompt
from sft.chat_template.template import ensure_template
from sft.config.sections import Source
from sft.data.sources import read_sft
from sft.errors import UserError

GIVEN = '{"city":"Köln", "n": 1.0}'
HEADER = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
ASKS = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
OPENS = ASKS.replace("assistant\\n", "assistant\\n<think>\\n")
END = "{{ '<|im_end|>\\n' }}"


def calling(arguments):
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    return [CALLS[0], {**CALLS[1], "tool_calls": [call]}, *CALLS[2:]]


def with_arguments(expression):
    return (
        HEADER
        + "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ' ' }}"
        + f"{{{{ {expression} }}}}{{% endfor %}}"
        + END
        + ASKS
    )


TEXT = "'' + c.function.arguments"  # DeepSeek V3: an object is refused
PRINTED = "c.function.arguments"  # an object is written as Python's, {'city': ...}
OBJECT = "c.function.arguments | tojson"  # text is written as a JSON string of JSON
EITHER = "c.function.arguments if c.function.arguments is string else c.function.arguments | tojson"
SPACED = json.dumps(json.loads(GIVEN), ensure_ascii=False)


@pytest.mark.parametrize(
    ("expression", "of_text"),
    [(TEXT, GIVEN), (PRINTED, GIVEN), (OBJECT, SPACED), (EITHER, SPACED)],
    ids=["text", "printed", "object", "either"],
)
def test_arguments_are_given_as_the_template_takes_them(expression, of_text):
    tokenizer = make_tokenizer(with_arguments(expression))
    for arguments, expected in ((GIVEN, of_text), (json.loads(GIVEN), SPACED)):
        messages = calling(arguments)
        chat = encode_chat(tokenizer, messages)
        assert spans(tokenizer, chat)[0] == f"<call>add {expected}<|im_end|>"
        check_invariants(tokenizer, messages, chat)
    assert tokenizer.decode(encode_prompt(tokenizer, calling(GIVEN)[:3])).count(of_text) == 1


def test_our_own_template_writes_one_text_for_both_forms(tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    text, objects = (
        encode_chat(tiny_tokenizer, calling(a), tools=[TOOL]) for a in (GIVEN, json.loads(GIVEN))
    )
    assert text == objects


# Templates by where thinking goes. The generation prompt of the first four opens its block.
WRITTEN = "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + c }}"
SAYS = "{% set c = m.content %}{% if m.role == 'assistant' %}"
PARSES = (
    "{% if '</think>' in c and not m.reasoning_content %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set m = {'role': m.role, 'reasoning_content': t} %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)
ELSE = "{% else %}{{ c }}{% endif %}"
PLACES = {
    "field, or parsed": HEADER + SAYS + PARSES + WRITTEN + ELSE + END + OPENS,  # Qwen3.5
    "field": HEADER + SAYS + WRITTEN + ELSE + END + OPENS,  # Qwen3.8, Nemotron
    "content": HEADER + "{{ m.content }}" + END + OPENS,  # Olmo Thinker
    "behind the tag": HEADER + SAYS + "{{ '<think>\\n' + c }}" + ELSE + END + OPENS,
    "unopened": HEADER + SAYS + WRITTEN + ELSE + END + ASKS,
    "channel": HEADER  # gpt-oss
    + "{% if m.thinking %}{{ '<|analysis|>' + m.thinking + '<|final|>' }}{% endif %}{{ m.content }}"
    + END
    + ASKS,
}
THOUGHTS = {
    "content": {"content": "<think>\nhm\n</think>\n\nHello"},
    "reasoning_content": {"content": "Hello", "reasoning_content": "hm"},
    "thinking": {"content": "Hello", "thinking": "hm"},
}


@pytest.mark.parametrize("template", PLACES.values(), ids=PLACES)
def test_thinking_is_trained_once_whatever_its_spelling(template):
    tokenizer = make_tokenizer(template)
    asked = {"role": "user", "content": "hi"}
    rows = [[asked, {"role": "assistant", **said}] for said in THOUGHTS.values()]
    chats = [encode_chat(tokenizer, row) for row in rows]
    for row, chat in zip(rows, chats, strict=True):
        assert chat == chats[0]
        check_invariants(tokenizer, row, chat)
        text = tokenizer.decode(chat.input_ids)
        assert text.count("hm") == text.count("Hello") == 1
        assert text.count("<think>") == text.count("</think>") == text.count("<|final|>") ^ 1
    (said,) = spans(tokenizer, chats[0])
    opened = "<think>" in tokenizer.decode(encode_prompt(tokenizer, [asked]))
    assert said.startswith("hm") == opened
    history = [*rows[0], asked]
    assert encode_prompt(tokenizer, history) == encode_prompt(tokenizer, [*rows[1], asked])


def test_what_only_names_a_tag_is_no_thinking(tiny_tokenizer):
    said = "Close it with </think> and go on."
    for template in (CHATML, PLACES["unopened"], PLACES["channel"]):
        tokenizer = make_tokenizer(template)
        chat = encode_chat(tokenizer, [ONE[0], {"role": "assistant", "content": said}])
        assert spans(tokenizer, chat)[0].endswith(said + "<|im_end|>")


def test_an_answer_that_no_opened_block_leads_to_is_refused_with_what_works():
    bare = "the generation prompt opens a block of thinking .* and the answer has none; "
    for name in ("content", "behind the tag"):
        tokenizer = make_tokenizer(PLACES[name].replace("'<think>\\n' + c", "'' + c"))
        with pytest.raises(UserError, match=bare + "give it its thinking as reasoning_content"):
            encode_chat(tokenizer, ONE)
    # DeepSeek R1's template writes no thinking, so nothing works.
    drops = HEADER + SAYS + "{{ c.split('</think>')[-1] }}" + ELSE + END + OPENS
    thought = [ONE[0], {"role": "assistant", **THOUGHTS["content"]}]
    for row, why in ((ONE, "none"), (thought, "thinking, which the template leaves out")):
        with pytest.raises(UserError, match=f"the answer has {why}; set model.chat_template"):
            encode_chat(make_tokenizer(drops), row)


def test_thinking_behind_an_empty_block_of_the_template_is_refused():
    """Kimi K2 Thinking: `<think></think>` is before every answer, Qwen3 without thinking:
    in the generation prompt."""
    empty = "<think></think>"
    written = HEADER + SAYS + "{{ '<think></think>' + c }}" + ELSE + END + ASKS
    thought = {"role": "assistant", **THOUGHTS["content"]}
    for template in (written, written.replace("assistant\\n", f"assistant\\n{empty}")):
        tokenizer = make_tokenizer(template)
        assert spans(tokenizer, encode_chat(tokenizer, ONE))[0].endswith("Hello you<|im_end|>")
        for row in ([ONE[0], thought], [ONE[0], thought, *TWO[2:]]):
            with pytest.raises(UserError, match="writes a block of thinking before every"):
                encode_chat(tokenizer, row)


@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "qwen3_8", "nemotron_3_nano"])
def test_published_templates_that_open_a_block(name):
    import trl

    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    tokenizer = make_tokenizer(path.read_text(encoding="utf-8"), eos="<|im_end|>")
    chats = [
        encode_chat(tokenizer, [*TWO[:3], {"role": "assistant", **said}])
        for said in THOUGHTS.values()
    ]
    assert chats[0] == chats[1] == chats[2]
    (said,) = spans(tokenizer, chats[0])[-1:]
    assert "".join(said.split()) == "hm</think>Hello<|im_end|>"


def test_nulls_of_argument_objects_are_cut_and_those_of_text_kept(tmp_path):
    """Arrow gives every call the arguments of all others, as null; it cannot write JSON text so."""
    text = '{"n": null}'
    rows = [
        {"messages": calling(arguments)}
        for arguments in ({"a": {"b": 1, "c": None}, "d": [None]}, {"n": None}, {"n": 1}, text)
    ]
    tools = [{"name": "add", "parameters": {"type": "object", "required": None}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row | {"tools": tools}) for row in rows))
    read = read_sft([Source(str(path))])
    kept = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read.rows]
    assert kept == [{"a": {"b": 1}, "d": [None]}, {}, {"n": 1}, text]
    counted = {"null fields of tools cut": 4, "null arguments of tool calls cut": 2}
    assert read.counts[0].mended == counted
    assert read.rows[0]["tools"][0]["function"]["parameters"] == {"type": "object"}

    table = pyarrow.Table.from_pylist([{"messages": calling({name: 1})} for name in ("x", "y")])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    read = read_sft([Source(str(tmp_path / "rows.parquet"))])
    kept = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read.rows]
    assert kept == [{"x": 1}, {"y": 1}]


def test_a_preference_is_read_by_the_same_rule(tmp_path):
    question, answer = calling({"a": 1, "n": None})[:2]
    row = {"prompt": [question], "chosen": [answer], "rejected": [ONE[1]]}
    row["tools"] = [{"name": "add", "description": None}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    read = read_preferences([Source(str(tmp_path / "pairs.jsonl"))])
    assert read.rows[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    counted = {"null arguments of tool calls cut": 1, "null fields of tools cut": 1}
    assert read.counts[0].mended == counted
