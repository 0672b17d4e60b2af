"""Templates that end a turn of tool calls otherwise than a turn of words."""

import pytest
from chat_templates import (
    CALLS,
    CHATML,
    ONE,
    TOOL,
    TWO,
    check_invariants,
    make_tokenizer,
    spans,
)
from files import ROOT
from hypothesis import HealthCheck

from sft.chat_template.encoding import encode_chat, stop_ids
from sft.errors import UserError

SYSTEM = [{"role": "system", "content": "sys"}, *ONE]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# Templates that end a turn of tool calls otherwise than a turn of words, in small.
HEADER = "{% for m in messages %}{{ '<|start|>' + m.role + '<|sep|>' }}{{ m.content }}"
EACH_CALL = (
    "{% for c in m.tool_calls or [] %}"
    "{{ '<|call_begin|>' + (c.function | tojson) + '<|call_end|>' }}{% endfor %}"
)
ASKS = "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|sep|>' }}{% endif %}"
ROLES = (
    "{% for m in messages %}{% set r = 'observation' if m.role == 'tool' else m.role %}"
    "{{ '<|' + r + '|>' + m.content }}"
)
ENDINGS = {
    # gpt-oss, Llama 3's ipython turns: a separate token.
    "own": (
        HEADER + EACH_CALL + "{{ '<|call|>' if m.tool_calls else '<|end|>' }}" + ASKS,
        "<|call|>",
        "<|end|>",
    ),
    # GLM: the role token of the turn that follows.
    "role": (
        "{# <|user|><|observation|><|assistant|> #}"  # for make_tokenizer
        + ROLES
        + EACH_CALL
        + "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        "<|observation|>",
        "<|user|>",
    ),
    # Gemma 4: the token that opens the result, after one that ends each call.
    "result": (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|result|>' + m.content + '<|end|>' }}"
        "{% else %}{{ '<|start|>' + m.role + '<|sep|>' }}{{ m.content }}"
        + EACH_CALL
        + "{{ '' if m.tool_calls else '<|end|>' }}{% endif %}"
        + ASKS,
        "<|result|>",
        "<|end|>",
    ),
}


@pytest.mark.parametrize(("template", "after_call", "after_words"), ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("calls", [1, 2])
def test_a_turn_of_calls_ends_as_its_template_ends_it(template, after_call, after_words, calls):
    tokenizer = make_tokenizer(template)
    messages = [CALLS[0], {**CALLS[1], "tool_calls": CALLS[1]["tool_calls"] * calls}, *CALLS[2:]]
    call = '<|call_begin|>{"name": "add", "arguments": {"a": 1}}<|call_end|>' * calls
    for row, last in ((messages[:2], None), (messages, "Two." + after_words)):
        chat = encode_chat(tokenizer, row)
        assert spans(tokenizer, chat) == [call + after_call, last][: 1 + bool(last)]
        assert chat.untrained_turns == 0
        check_invariants(tokenizer, row, chat)
    stops = tokenizer.convert_tokens_to_ids([after_words, after_call, "<|endoftext|>"])
    assert stop_ids(tokenizer) == stops
    check_invariants(tokenizer, TWO, encode_chat(tokenizer, TWO))
    hidden = {"name": "add", "arguments": {"a": after_call}}
    with pytest.raises(UserError, match=r"message 2 .* contains"):
        encode_chat(tokenizer, [CALLS[0], {**CALLS[1], "tool_calls": [{"function": hidden}]}])


def test_a_call_that_is_written_by_its_id_alone(tiny_tokenizer):
    """As Kimi K2, whose ids hold the name."""
    tiny_tokenizer.chat_template = CHATML.replace(
        "+ '<|im_end|>\\n'",
        "+ (message.tool_calls[0].id ~ message.tool_calls[0].function.arguments | tojson "
        "if message.tool_calls else '') + '<|im_end|>\\n'",
    )
    call = {**CALLS[1]["tool_calls"][0], "id": "functions.add:0"}
    messages = [CALLS[0], {**CALLS[1], "tool_calls": [call]}, *CALLS[2:]]
    chat = encode_chat(tiny_tokenizer, messages)
    assert spans(tiny_tokenizer, chat) == ['functions.add:0{"a": 1}<|im_end|>', "Two.<|im_end|>"]
    for nameless in ({**call, "id": "x"}, {k: v for k, v in call.items() if k != "id"}):
        with pytest.raises(UserError, match=r"turn 2 .* an id with the name, such as 'functions.a"):
            encode_chat(tiny_tokenizer, [CALLS[0], {**CALLS[1], "tool_calls": [nameless]}])


@pytest.mark.parametrize(
    ("name", "eos", "call", "ends"),
    [
        (
            "gptoss",
            "<|return|>",
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}',
            ["<|return|>", "<|call|>"],
        ),
        (
            "glm4moe",
            "<|endoftext|>",
            "\n<think></think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
            ["<|user|>", "<|observation|>", "<|endoftext|>"],
        ),
    ],
)
def test_published_endings_of_tool_calls(name, eos, call, ends):
    """Those that the models' own generation settings list."""
    import trl

    folder = ROOT.__class__(trl.__file__).parent / "chat_templates"
    tokenizer = make_tokenizer((folder / f"{name}.jinja").read_text(), eos=eos)
    assert tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)) == ends
    first, _ = spans(tokenizer, encode_chat(tokenizer, CALLS, tools=[TOOL]))
    assert first == call + ends[1]
    assert spans(tokenizer, encode_chat(tokenizer, CALLS[:2], tools=[TOOL])) == [first]
