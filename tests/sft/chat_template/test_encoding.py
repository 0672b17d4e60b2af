"""Masks by our own rules on small templates, and templates that must be refused."""

import pytest
from chat_templates import (
    CALLS,
    CHATML,
    ONE,
    THINKING,
    TOOL,
    TWO,
    check_invariants,
    make_tokenizer,
    spans,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.chat_template.encoding import encode_chat, encode_chats, encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.errors import UserError

SYSTEM = [{"role": "system", "content": "sys"}, *ONE]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# Our own rules, on small templates.


def test_docstring_example(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    chat = encode_chat(tiny_tokenizer, messages)
    assert spans(tiny_tokenizer, chat) == ["yo<|im_end|>"]
    assert chat.trained[-4:] == [True, True, True, False]
    assert tiny_tokenizer.decode(chat.input_ids[-1:]) == "\n"


def test_base_tokenizer_gets_chatml_where_its_tokens_exist(tiny_tokenizer):
    note = ensure_template(tiny_tokenizer)
    assert "ChatML" in note
    assert stop_ids(tiny_tokenizer) == [
        tiny_tokenizer.convert_tokens_to_ids("<|im_end|>"),
        tiny_tokenizer.eos_token_id,
    ]
    size = len(tiny_tokenizer)
    chat = encode_chat(tiny_tokenizer, CALLS, tools=[TOOL])
    assert len(tiny_tokenizer) == size
    call = '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    assert spans(tiny_tokenizer, chat) == [call, "Two.<|im_end|>"]
    check_invariants(tiny_tokenizer, CALLS, chat, tools=[TOOL])


def test_base_tokenizer_without_them_gets_plain_turns():
    tokenizer = make_tokenizer("", bos="<s>", eos="</s>")
    tokenizer.chat_template = None
    assert "User/Assistant" in ensure_template(tokenizer)
    chat = encode_chat(tokenizer, [{"role": "system", "content": "Sys."}, *TWO])
    assert tokenizer.decode(chat.input_ids) == (
        "<s>Sys.\n\nUser: hi\n\nAssistant: Hello you</s>User: ok\n\nAssistant: Bye now</s>"
    )
    assert spans(tokenizer, chat) == [" Hello you</s>", " Bye now</s>"]


def test_tokenizer_without_any_end_token_is_refused():
    tokenizer = make_tokenizer("", eos="<end>")
    tokenizer.chat_template = None
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="names no eos_token"):
        ensure_template(tokenizer)


def test_template_from_a_file_or_text(tiny_tokenizer, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML)
    ensure_template(tiny_tokenizer, template=str(path))
    assert tiny_tokenizer.chat_template == CHATML
    with pytest.raises(UserError, match="neither a file nor template text"):
        ensure_template(tiny_tokenizer, template="missing.jinja")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        CHATML.replace("<|im_end|>", ""),
        CHATML.replace("<|im_end|>", "<end>"),
    ],
)
def test_template_that_does_not_end_its_turn_is_refused(template):
    with pytest.raises(UserError, match="does not end an assistant turn with a control token"):
        ensure_template(make_tokenizer("<|im_start|>"), template=template)


def test_template_with_a_mistake_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="refuses"):
        ensure_template(tiny_tokenizer, template="{% for m in messages %}{{ m.content }}")


def test_two_bos_are_refused():
    tokenizer = make_tokenizer("{{ bos_token }}<s>" + CHATML, bos="<s>")
    with pytest.raises(UserError, match="two BOS"):
        encode_chat(tokenizer, ONE)


def test_bos_of_the_template_is_the_only_one():
    tokenizer = make_tokenizer("{{ bos_token }}" + CHATML, bos="<s>")
    chat = encode_chat(tokenizer, TWO)
    assert chat.input_ids.count(tokenizer.bos_token_id) == 1
    assert chat.input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("token", ["<|im_end|>", "<s>", "<|endoftext|>"])
def test_control_tokens_in_messages_are_refused(place, token):
    tokenizer = make_tokenizer("{{ bos_token }}" + CHATML, bos="<s>")
    messages = [dict(m) for m in ONE]
    messages[place]["content"] += token
    with pytest.raises(UserError, match=f"message {place + 1} .* contains"):
        encode_chat(tokenizer, messages)


def test_empty_answer_and_missing_answer_are_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    for content in ("", " \n"):
        with pytest.raises(UserError, match="is empty"):
            encode_chat(tiny_tokenizer, [ONE[0], {"role": "assistant", "content": content}])
    with pytest.raises(UserError, match="does not end with an assistant turn"):
        encode_chat(tiny_tokenizer, TWO[:3])
    with pytest.raises(UserError, match="ends with a user or tool turn"):
        encode_prompt(tiny_tokenizer, TWO)


def test_a_turn_that_changes_once_it_is_history_stays_context():
    tokenizer = make_tokenizer(THINKING)
    chat = encode_chat(tokenizer, TWO)
    assert spans(tokenizer, chat) == ["<think>\n\n</think>\n\nBye now<|im_end|>"]
    assert chat.untrained_turns == 1
    thought = [TWO[0], {"role": "assistant", "content": "<think>hm</think>\n\nHello"}]
    assert spans(tokenizer, encode_chat(tokenizer, thought)) == [
        "<think>hm</think>\n\nHello<|im_end|>"
    ]


def test_an_answer_that_the_template_rewrites_is_refused():
    for broken in ("'x' + m.content[1:]", "'always this'", "m.content.upper()"):
        template = (
            "{% for m in messages %}{% set c = "
            + broken
            + " if m.role == 'assistant' else m.content %}"
            "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
        with pytest.raises(UserError):
            encode_chat(make_tokenizer(template), ONE)


def test_a_short_answer_is_not_found_in_the_templates_own_text():
    """The template drops content next to a tool call; "add" is the name of the call."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}"
        "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    messages = [CALLS[0], {**CALLS[1], "content": "add"}]
    with pytest.raises(UserError, match="leaves out or rewrites 'add'"):
        encode_chat(make_tokenizer(template), messages)


def test_a_template_that_hides_tool_turns_is_refused(tiny_tokenizer):
    template = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    tiny_tokenizer.chat_template = template
    plain = [CALLS[0], {"role": "assistant", "content": "wait"}, *CALLS[2:]]
    with pytest.raises(UserError, match="leaves out the message of turn 3"):
        encode_chat(tiny_tokenizer, plain)
    tiny_tokenizer.chat_template = CHATML
    with pytest.raises(UserError, match="leaves out the tool call of turn 2"):
        encode_chat(tiny_tokenizer, CALLS)


# As SmolLM3, LFM2 and Falcon-H1: the list of tools holds every name, a call is not written.
LISTS_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
)
TAGGED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("body", [CHATML, TAGGED], ids=["plain", "generation"])
def test_a_call_that_only_the_list_of_tools_names_is_refused(tiny_tokenizer, body):
    tiny_tokenizer.chat_template = LISTS_TOOLS + body
    said = [CALLS[0], {**CALLS[1], "content": "I add."}, *CALLS[2:]]  # its words are written
    for row in (CALLS, said, CALLS[:2]):
        with pytest.raises(UserError, match=r"leaves out the tool call of turn 2 .*'add'"):
            encode_chat(tiny_tokenizer, row, tools=[TOOL])
    with pytest.raises(UserError, match="leaves out the tool call of turn 2"):
        encode_prompt(tiny_tokenizer, CALLS[:3], tools=[TOOL])
    tiny_tokenizer.chat_template = LISTS_TOOLS + body.replace(
        "m.content + '<|im_end|>' }}{% endg",
        "m.content + (m.tool_calls | default('') | tojson) + '<|im_end|>' }}{% endg",
    ).replace(
        "+ message['content'] ",
        "+ message['content'] + (message.tool_calls | default('') | tojson)",
    )
    first, last = spans(tiny_tokenizer, encode_chat(tiny_tokenizer, CALLS, tools=[TOOL]))
    assert '"name": "add"' in first and last.startswith("Two.")


def test_arguments_that_the_template_leaves_out_are_refused(tiny_tokenizer):
    tiny_tokenizer.chat_template = TAGGED.replace(
        "m.content +", "m.content + (m.tool_calls or [{}])[0].get('function', {}).get('name', '') +"
    )
    with pytest.raises(UserError, match="leaves out the tool call of turn 2"):
        encode_chat(tiny_tokenizer, CALLS)


def test_a_short_message_is_not_found_in_the_templates_own_text(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML.replace(
        "{% for message in messages %}", "{% for message in messages if message.role != 'tool' %}"
    )
    messages = [ONE[0], ONE[1], {"role": "tool", "content": "user"}, TWO[3]]
    with pytest.raises(UserError, match="leaves out the message of turn 3"):
        encode_chat(tiny_tokenizer, messages)


def test_a_generation_block_does_not_train_a_turn_that_it_holds_in_part(tiny_tokenizer):
    """Thinking is written in the last turn alone; the block of the first holds its answer."""
    tiny_tokenizer.chat_template = TAGGED.replace(
        "m.content +", "(m.reasoning_content | default('') if loop.last else '') + m.content +"
    )
    thought = {**ONE[1], "reasoning_content": "hm, "}
    messages = [ONE[0], thought, TWO[2], {**TWO[3], "reasoning_content": "so, "}]
    chat = encode_chat(tiny_tokenizer, messages)
    assert spans(tiny_tokenizer, chat) == ["so, Bye now<|im_end|>"]
    assert chat.untrained_turns == 1
    plain = encode_chat(tiny_tokenizer, [ONE[0], ONE[1], *messages[2:]])
    assert spans(tiny_tokenizer, plain) == ["Hello you<|im_end|>", "so, Bye now<|im_end|>"]
    assert plain.untrained_turns == 0


def test_last_turn_only(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    assert spans(tiny_tokenizer, encode_chat(tiny_tokenizer, TWO, turns="last")) == [
        "Bye now<|im_end|>"
    ]


def test_batches_equal_single_chats_and_keep_bad_rows_in_place(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    rows = [{"messages": ONE}, {"messages": ONE[:1]}, {"messages": TWO}]
    first, bad, third = encode_chats(tiny_tokenizer, rows, chunk=2)
    assert first == encode_chat(tiny_tokenizer, ONE)
    assert isinstance(bad, UserError)
    assert third == encode_chat(tiny_tokenizer, TWO)


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(texts=st.lists(st.text(max_size=12), min_size=2, max_size=6))
def test_any_text_is_trained_exactly_or_refused(texts, tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    texts = texts[: len(texts) // 2 * 2]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    try:
        chat = encode_chat(tiny_tokenizer, messages)
    except UserError:
        assert any(not text.strip() for text in texts[1::2])
        return
    check_invariants(tiny_tokenizer, messages, chat)
    assert spans(tiny_tokenizer, chat) == [text + "<|im_end|>" for text in texts[1::2]]


PLAIN_TEXT = st.text("ab:#\n -", max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=QUIET)
@given(
    header=PLAIN_TEXT,
    before=PLAIN_TEXT,
    after=PLAIN_TEXT,
    behind=PLAIN_TEXT,
    opens=st.booleans(),
    trims=st.booleans(),
    answers=st.lists(st.text("xyz \n", min_size=1, max_size=6).filter(str.strip), max_size=3),
)
def test_any_layout_of_a_turn(header, before, after, behind, opens, trims, answers, tiny_tokenizer):
    """The prompt ends after the header; everything up to the end token is trained."""
    answers = ["Hello you", *answers]
    header = ("<|im_start|>" if opens else "") + "A" + header
    content = "m.content | trim" if trims else "m.content"
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        f"{{{{ {header!r} + {before!r} + ({content}) + {after!r} + '<|im_end|>' + {behind!r} }}}}"
        "{% else %}{{ 'U' + m.content + '<|pad|>' }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}"
    )
    messages = [turn for a in answers for turn in (ONE[0], {"role": "assistant", "content": a})]
    chat = encode_chat(tiny_tokenizer, messages)
    said = [answer.strip() if trims else answer for answer in answers]
    assert spans(tiny_tokenizer, chat) == [before + a + after + "<|im_end|>" for a in said]
    assert chat.untrained_turns == 0
    check_invariants(tiny_tokenizer, messages, chat)
