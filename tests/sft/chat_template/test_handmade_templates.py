"""Templates and formats of our own devising; the ids and the mask are written out by hand.

A character is a token: control tokens are 0 to 6, the letters a to z 7 to 32. What is trained
is between bars.
"""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.chat_template.encoding import encode_chats, encode_prompt, stop_ids
from sft.chat_template.template import ensure_template
from sft.config.sections import Source
from sft.data.sources import read_sft
from sft.tokenization.row_checks import Rules, check_row

SPECIALS = ["<eos>", "<bos>", "<u>", "<a>", "<end>", "<sys>", "<tool>"]
EOS, BOS, U, A, END, SYS, TOOL = range(7)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
IDS = {letter: 7 + i for i, letter in enumerate(LETTERS)}  # a 7, b 8, ... z 32
OTHERS = {"\n": 33, ":": 34, " ": 35, "#": 36, "[": 37, "]": 38, "{": 39, "}": 40, '"': 41}
OTHERS |= {",": 42, "_": 43, "/": 44, "<": 45, ">": 46, "1": 47}


@pytest.fixture
def tokenizer():
    """A character a token, with no merges, so that every id can be written down."""
    vocabulary = {token: i for i, token in enumerate(SPECIALS)} | IDS
    byte = {"\n": "Ċ", " ": "Ġ"}
    vocabulary |= {byte.get(char, char): i for char, i in OTHERS.items()}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<bos>")
    made.add_special_tokens({"additional_special_tokens": SPECIALS})
    return made


# The conversation of most cases: hi -> yo, ok -> no.
HI, YO, OK, NO = [14, 15], [31, 21], [21, 17], [20, 21]
TALK = {"messages": [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "ok"},
    {"role": "assistant", "content": "no"},
]}  # fmt: skip

LOOP = "{% for m in messages %}"
CASES = {
    # One control token opens each turn, another ends the answers alone.
    "openers": (
        "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}<u>{{ m.content }}{% else %}"
        "<a>{{ m.content }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}",
        TALK,
        [BOS, U, *HI, A, "|", *YO, END, "|", U, *OK, A, "|", *NO, END, "|"],
    ),
    # Words as headers, a line break after each turn, eos after every turn of both roles.
    "headers": (
        LOOP + "{{ m.role[0] + ':' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}",
        TALK,
        [
            *(27, 34, *HI, EOS, 33, 7, 34, "|", *YO, EOS, "|", 33),
            *(27, 34, *OK, EOS, 33, 7, 34, "|", *NO, EOS, "|", 33),
        ],
    ),
    # The space after the header is part of the answer: the prompt ends before it.
    "space of the answer": (
        LOOP + "{% if m.role == 'user' %}<u>{{ m.content }}{% else %}"
        "<a>:{{ ' ' + m.content }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a>:{% endif %}",
        TALK,
        [U, *HI, A, 34, "|", 35, *YO, END, "|", U, *OK, A, 34, "|", 35, *NO, END, "|"],
    ),
    # The system turn is folded into the first question, as Llama 2's template does.
    "folded system": (
        "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        + LOOP
        + "{% if m.role == 'user' %}<u>{% if loop.index0 < 2 %}{{ s }}{% endif %}{{ m.content }}"
        "{% elif m.role == 'assistant' %}<a>{{ m.content }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}",
        {"system": "be", "conversations": [
            {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        [BOS, U, 8, 11, *HI, A, "|", *YO, END, "|"],
    ),
    # History loses its marker: only the last answer is what generation would produce.
    "marked while fresh": (
        LOOP + "{% if m.role == 'user' %}<u>{{ m.content }}{% else %}<a>"
        "{{ ('#' if loop.last else '') + m.content }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}",
        TALK,
        [U, *HI, A, *YO, END, U, *OK, A, "|", 36, *NO, END, "|"],
    ),
    # Tools are called by name; the tool's turn is context.
    "tools": (
        LOOP + "{% if m.role == 'user' %}<u>{{ m.content }}{% elif m.role == 'tool' %}<tool>"
        "{{ m.content }}{% else %}<a>{% for c in m.tool_calls or [] %}[{{ c.function.name }}]"
        "{% endfor %}{{ m.content }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}",
        {"conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "yo"}]},
        [U, *HI, A, "|", 37, 12, 38, END, "|", TOOL, 47, A, "|", *YO, END, "|"],
    ),
    # A plain text has no template: BOS as the template writes it, then all of it, then eos.
    "text": (
        "{{ bos_token }}" + LOOP + "<u>{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<u>{% endif %}",
        {"text": "hi yo"},
        [BOS, "|", *HI, 35, *YO, EOS, "|"],
    ),
    "text without BOS": (
        LOOP + "<u>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<u>{% endif %}",
        {"text": "hi yo"},
        [14, "|", 15, 35, *YO, EOS, "|"],
    ),
    # Rows of other names and shapes under one template.
    "alpaca with an input": (
        LOOP + "<u>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<u>{% endif %}",
        {"instruction": "hi", "input": "ok", "output": "yo"},
        [U, *HI, 33, *OK, END, U, "|", *YO, END, "|"],
    ),
    "history": (
        LOOP + "<u>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<u>{% endif %}",
        {"query": "ok", "response": "no", "history": [["hi", "yo"]]},
        [U, *HI, END, U, "|", *YO, END, "|", U, *OK, END, U, "|", *NO, END, "|"],
    ),
}  # fmt: skip


def written(marked):
    """Ids and mask of a list in which bars open and close what is trained."""
    ids, trained, inside = [], [], False
    for item in marked:
        if item == "|":
            inside = not inside
        else:
            ids.append(item)
            trained.append(inside)
    return ids, trained


@pytest.mark.parametrize("name", CASES)
def test_ids_and_mask_are_those_written_by_hand(name, tokenizer, tmp_path):
    template, row, marked = CASES[name]
    ensure_template(tokenizer, template=template)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (read,) = read_sft([Source(str(tmp_path / "rows.jsonl"))]).rows
    (encoded,) = encode_chats(tokenizer, [read])
    ids, trained = written(marked)
    assert encoded.input_ids == ids, tokenizer.decode(encoded.input_ids)
    assert encoded.trained == trained
    assert check_row(ids, trained, rules=Rules.of(tokenizer))[1] == []
    if "text" not in read:
        begin = len(ids) - trained[::-1].index(True)
        while begin and trained[begin - 1]:
            begin -= 1
        assert (
            encode_prompt(tokenizer, read["messages"][:-1], tools=read.get("tools")) == ids[:begin]
        )
        assert stop_ids(tokenizer)[0] == (EOS if name == "headers" else END)


def test_the_last_turn_alone(tokenizer):
    template, row, _ = CASES["openers"]
    ensure_template(tokenizer, template=template)
    (encoded,) = encode_chats(tokenizer, [row], turns="last")
    marked = [BOS, U, *HI, A, *YO, END, U, *OK, A, "|", *NO, END, "|"]
    assert (encoded.input_ids, encoded.trained) == written(marked)
