"""Masks against hand-made ids, upstream's own generation masks, and templates that must refuse."""

import gzip
import json
import re

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
from files import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sft.chat_template.encoding import encode_chat, encode_chats, encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.errors import UserError

SYSTEM = [{"role": "system", "content": "sys"}, *ONE]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


# Real tokenizers: ids written down by hand from the vocabularies.

SUM = [
    {"role": "user", "content": "What is 6*7?"},
    {"role": "assistant", "content": "It is 42."},
]
QWEN_SYSTEM = [151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13]
QWEN_SYSTEM += [1446, 525, 264, 10950, 17847, 13, 151645, 198]
QWEN_QUESTION = [151644, 872, 198, 3838, 374, 220, 21, 9, 22, 30, 151645, 198]
MINIMIND_THINK = [25, 234, 234, 26, 234, 234]
EXPECTED = {
    # <BOS> User : ĠWhat Ġis Ġ 6 * 7 ? Ċ Ċ Assistant : | ĠIt Ġis Ġ 4 2 . <EOS>
    "deepseek-llm": (
        [100000, 5726, 25, 2461, 317, 207, 21, 9, 22, 30, 185, 185, 77398, 25],
        [809, 317, 207, 19, 17, 13, 100001],
        [],
        [100001],
    ),
    # its default system turn, <|im_start|> user Ċ ... <|im_start|> assistant Ċ | It Ġis Ġ 4 2 .
    "qwen2.5": (
        [*QWEN_SYSTEM, *QWEN_QUESTION, 151644, 77091, 198],
        [2132, 374, 220, 19, 17, 13, 151645],
        [198],
        [151645],
    ),
    "gpt2": (
        [12982, 25, 1867, 318, 718, 9, 22, 30, 198, 198, 48902, 25],
        [632, 318, 5433, 13, 50256],
        [],
        [50256],
    ),
    # <s> User : ▁What ▁is ▁ 6 * 7 ? <0x0A> <0x0A> Ass istant : | ▁It ▁is ▁ 4 2 . </s>
    "llama2-tinyllama": (
        [1, 2659, 29901, 1724, 338, 29871, 29953, 29930, 29955, 29973, 13, 13, 7900, 22137, 29901],
        [739, 338, 29871, 29946, 29906, 29889, 2],
        [],
        [2],
    ),
    # <|im_start|> us er Ċ ... <|im_start|> ass ist ant Ċ <think> Ċ Ċ </think> Ċ Ċ | It Ġis Ġ4 2 .
    "minimind": (
        [
            1,
            832,
            311,
            234,
            1146,
            395,
            1322,
            45,
            58,
            66,
            2,
            234,
            1,
            1388,
            570,
            811,
            234,
            *MINIMIND_THINK,
        ],
        [1931, 395, 932, 53, 49, 2],
        [234],
        [2],
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_real_tokenizers_train_the_expected_ids(name, real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
    ensure_template(tokenizer)
    prompt, answer, behind, stops = EXPECTED[name]
    chat = encode_chat(tokenizer, SUM)
    assert chat.input_ids == prompt + answer + behind
    assert chat.trained == [False] * len(prompt) + [True] * len(answer) + [False] * len(behind)
    assert stop_ids(tokenizer) == stops
    assert encode_prompt(tokenizer, SUM[:1]) == prompt


@pytest.mark.real
def test_an_unknown_token_that_is_eos_ends_turns(real_data):
    """As the configurations of GPT-2, Pythia, GPT-NeoX and Phi-2 declare them."""
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers/gpt2", **roles)
    ensure_template(tokenizer)
    prompt, answer, _, stops = EXPECTED["gpt2"]
    assert encode_chat(tokenizer, SUM).input_ids == prompt + answer
    assert stop_ids(tokenizer) == stops
    with pytest.raises(UserError, match=r"contains.*endoftext"):
        encode_chat(tokenizer, [SUM[0], {"role": "assistant", "content": "a<|endoftext|>"}])


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_real_tokenizers_hold_the_invariants_on_awkward_answers(name, real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
    ensure_template(tokenizer)
    for answer in (
        "\nstarts with a break",
        " space",
        "42",
        "ends \n\n",
        "你好，世界",
        "🙂",
        "\t\n x",
    ):
        messages = [*TWO[:3], {"role": "assistant", "content": answer}]
        chat = encode_chat(tokenizer, messages)
        check_invariants(tokenizer, messages, chat)
        first, last = spans(tokenizer, chat)
        assert first.strip().startswith("Hello you")
        assert answer.strip() in last


@pytest.mark.real
@pytest.mark.parametrize("name", ["minimind", "llama2-tinyllama"])
def test_trained_text_of_real_rows_is_the_answers(name, real_data):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
    ensure_template(tokenizer)
    eos = tokenizer.decode(stop_ids(tokenizer)[:1])
    with gzip.open(real_data / "sft/medicalgpt_sharegpt_zh_1k.jsonl.gz", "rt") as file:
        rows = [json.loads(next(file))["conversations"] for _ in range(12)]
    roles = {"human": "user", "gpt": "assistant"}
    chats = [[{"role": roles[t["from"]], "content": t["value"]} for t in row] for row in rows]
    chats = [chat for chat in chats if chat[-1]["role"] == "assistant"]
    for messages, chat in zip(
        chats, encode_chats(tokenizer, [{"messages": m} for m in chats]), strict=True
    ):
        check_invariants(tokenizer, messages, chat)
        said = [m["content"].strip() for m in messages if m["role"] == "assistant"]
        assert [s.removesuffix(eos).strip() for s in spans(tokenizer, chat)] == said


@pytest.mark.real
def test_llama2_template_with_the_dummy_prefix(real_data):
    """The answer's own prefix space is trained once, and each turn has the BOS of the template."""
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers/llama2-tinyllama")
    templates = real_data / "tokenizers/chat_templates_with_expected.jsonl"
    named = {row["name"]: row for row in map(json.loads, templates.read_text().splitlines())}
    tokenizer.chat_template = named["llama"]["chat_template"]
    chat = encode_chat(tokenizer, TWO)
    pairs = zip(chat.input_ids, chat.trained, strict=True)
    tokens = tokenizer.convert_ids_to_tokens([i for i, trained in pairs if trained])
    assert tokens == ["▁Hello", "▁you", "▁", "</s>", "▁By", "e", "▁now", "▁", "</s>"]
    assert chat.input_ids.count(1) == 2
    check_invariants(tokenizer, TWO, chat)


# Published templates: rendered as upstream expects, and trained exactly or refused.


@pytest.mark.real
def test_published_templates_render_byte_for_byte(real_data):
    differing = []
    for line in (
        (real_data / "tokenizers/chat_templates_with_expected.jsonl").read_text().splitlines()
    ):
        row = json.loads(line)
        data = dict(row["data"])
        tokenizer = make_tokenizer(
            row["chat_template"], bos=data.get("bos_token"), eos=data.get("eos_token") or "</s>"
        )
        try:
            text = tokenizer.apply_chat_template(data.pop("messages"), tokenize=False, **data)
        except Exception as error:  # the upstream call, whatever it raises, is what is recorded
            text = repr(error)
        if text != row["target"]:
            differing.append(row["name"])
    # Hammer2.1 prints its tool list with Python quoting where the expected text has JSON; in
    # functionary-v2.2 a content of null is rendered, which transformers removes before rendering.
    assert differing == ["meetkai/functionary-medium-v2.2", "MadeAgents/Hammer2.1"]


REFUSED = {
    "blenderbot": "generation prompt",
    "blenderbot_small": "generation prompt",
    "upstage/SOLAR-10.7B-Instruct-v1.0": "does not end an assistant turn",
    "codellama/CodeLlama-70b-Instruct-hf": "does not end an assistant turn",
    "Deci/DeciLM-7B-instruct": "does not end an assistant turn",
    "maywell/PiVoT-MoE": "does not end an assistant turn",
    "meta-llama/Llama-Guard-3-11B-Vision": "does not end an assistant turn",
    "CohereForAI/c4ai-command-r-v01": "refuses a conversation",
    "CohereForAI/c4ai-command-r-v01 (JSON Schema)": "refuses a conversation",
    "CohereForAI-c4ai-command-r-plus-tool_use": "refuses a conversation",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "refuses a conversation",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "refuses a conversation",
    "fireworks-ai-llama-3-firefunction-v2": "refuses a conversation",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "generation prompt",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "generation prompt",
    "llama-cpp-deepseek-r1": "generation prompt",
}
# What a template writes around the answer that the model has to produce, where it writes anything.
AROUND = {
    "llama": " {} </s>",
    "abacusai/Smaug-34B-v0.1": " {} </s>",
    "mistralai/Mistral-7B-Instruct-v0.3 (JSON Schema)": " {} </s>",
    "deepseek-ai/deepseek-llm-7b-chat": " {}<｜end▁of▁sentence｜>",
    "TheBloke/deepseek-coder-33B-instruct-AWQ": "{}\n<|EOT|>",
    "deepseek-ai/deepseek-coder-33b-instruct": "{}\n<|EOT|>",
    "meetkai/functionary-medium-v2.2": "all\n<|content|>{}<|stop|>",
    "meetkai-functionary-medium-v3.2": "all\n{}<|eot_id|>",
    "LiquidAI/LFM2.5-VL-450M": "{}<|im_end|>\n",  # its own generation block holds the line break
}
COHERE = "<|START_RESPONSE|>{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"


def published(real_data):
    for file in ("chat_templates_with_expected.jsonl", "llamacpp_chat_templates.jsonl"):
        for line in (real_data / "tokenizers" / file).read_text().splitlines():
            row = json.loads(line)
            data = row.get("data", {})
            bos, eos = data.get("bos_token"), data.get("eos_token")
            if not data and row["name"].startswith("deepseek"):
                eos = "<｜end▁of▁sentence｜>"
            template = row.get("chat_template") or row["template"]
            yield row["name"], make_tokenizer(template, bos=bos or "<s>", eos=eos or "</s>")


@pytest.mark.real
def test_published_templates_are_trained_exactly_or_refused(real_data):
    exact = 0
    for name, tokenizer in published(real_data):
        if name in REFUSED:
            with pytest.raises(UserError, match=REFUSED[name]):
                encode_chat(tokenizer, TWO)
            continue
        chat = encode_chat(tokenizer, TWO)
        first, second = spans(tokenizer, chat)
        if name.startswith(("CohereLabs", "CohereForAI")):
            around = COHERE
        else:
            around = AROUND.get(name) or "{}" + first.removeprefix("Hello you")
            assert name in AROUND or re.fullmatch(r"<\W?\w+\W?>", around[2:]), (name, first)
        assert (first, second) == (around.format("Hello you"), around.format("Bye now")), name
        prompt = encode_prompt(tokenizer, TWO[:-1])
        assert chat.input_ids[: len(prompt)] == prompt
        assert chat.untrained_turns == 0
        exact += 1
    assert exact == 51 - len(REFUSED)


@pytest.mark.real
def test_templates_that_drop_the_system_prompt_are_refused(real_data):
    dropping = []
    for name, tokenizer in published(real_data):
        if name in REFUSED:
            continue
        try:
            text = spans(tokenizer, encode_chat(tokenizer, SYSTEM))
            assert "Hello you" in text[0]
        except UserError as error:
            dropping.append((name.split("/")[-1], str(error).split(" (")[0][:40]))
    assert {name for name, _ in dropping} == {
        "Mistral-7B-Instruct-v0.1-GPTQ",
        "Mistral-7B-Instruct-v0.3 (JSON Schema)",
        "Mistral-7B-Instruct-v0.3-SOTA-GGUF",
        "Mistral-Nemo-Instruct-2407",
        "google-gemma-2-2b-it",
        "mistralai-Mistral-Nemo-Instruct-2407",
    }


def test_generation_blocks_of_upstream_templates_are_followed():
    """trl ships templates with {% generation %}; our mask is then transformers' own, and the mask
    that we find in the plain sibling of a template lies inside it."""
    import trl

    folder = ROOT.__class__(trl.__file__).parent / "chat_templates"
    compared = nested = 0
    for path in sorted(folder.glob("*_training.jinja")):
        tokenizer = make_tokenizer(path.read_text(), bos="<bos>", eos="<eos>")
        try:
            chat = encode_chat(tokenizer, TWO)
        except UserError:
            continue
        upstream = tokenizer.apply_chat_template(
            TWO, return_dict=True, return_assistant_tokens_mask=True
        )
        assert chat.input_ids == upstream["input_ids"], path.name
        assert chat.trained == [bool(m) for m in upstream["assistant_masks"]], path.name
        compared += 1
        plain = path.with_name(path.name.replace("_training", ""))
        tokenizer = make_tokenizer(plain.read_text(), bos="<bos>", eos="<eos>")
        try:
            own = encode_chat(tokenizer, TWO)
        except UserError:
            continue
        if tokenizer.decode(own.input_ids) == make_text(path, chat):
            assert all(a or not b for a, b in zip(chat.trained, own.trained, strict=True))
            nested += 1
    assert compared >= 15
    assert nested >= 8


def make_text(path, chat):
    return make_tokenizer(path.read_text(), bos="<bos>", eos="<eos>").decode(chat.input_ids)


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
    with pytest.raises(UserError, match="does not end an assistant turn with a token of its own"):
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
    """The template drops content beside a tool call; "add" stands in the call's name."""
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
    # gpt-oss, Llama 3's ipython turns: a token of its own.
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
    # Gemma 4: what opens the result, behind a token that ends each call.
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
    """The prompt ends behind the header; all that follows up to the end token is trained."""
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
