"""Ollama's template writes the same text as the Jinja template, rendered by Go's rules."""

import json
import re

import pytest
from chat_templates import DEFAULT_SYSTEM, LLAMA2
from transformers import AutoTokenizer

from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.chat_template.render import render
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.export.ollama import find_turn_format, modelfile, probe_chats
from sft.export.token_parity import (
    adds_bos,
    check_token_parity,
    complete_tokenizer_config,
    write_modelfile,
)


def executed(text, messages):
    """What a Go template of if, else if, range and fields writes: text/template's rules, in small.

    https://pkg.go.dev/text/template: text outside of actions is copied as it is.
    """
    pieces = re.split(r"{{ (.*?) }}", text)
    data = {"Messages": messages, "System": any(m["role"] == "system" for m in messages)}

    def block(at, scope, writes):
        """Run from piece `at` to the end of a block; returns (text, place of its end or else)."""
        out = ""
        while at < len(pieces):
            if at % 2 == 0:
                out += pieces[at] if writes else ""
                at += 1
                continue
            words = pieces[at].split()
            if words[0] in ("end", "else"):
                return out, at
            if words[0] == "range":
                for item in scope["Messages"] or [{}]:
                    part, after = block(at + 1, item, writes and bool(scope["Messages"]))
                    out += part
                at = after + 1
            elif words[0] == "if":
                at, part = branch(at, words, scope, writes)
                out += part
            else:
                key = {".Content": "content"}[words[0]]
                out += scope[key] if writes else ""
                at += 1
        return out, at

    def branch(at, words, scope, writes):
        done, out = False, ""
        while True:
            condition = words[words.index("if") + 1 :] if "if" in words else ["else"]
            true = not done and (condition == ["else"] or holds(condition, scope))
            part, at = block(at + 1, scope, writes and true)
            out, done = out + part, done or true
            if pieces[at] == "end":
                return at + 1, out
            words = pieces[at].split()

    def holds(condition, scope):
        if condition[0] == "not":
            return not data[condition[1].removeprefix(".")]
        if condition[0] == "eq":
            return scope["role"] == json.loads(condition[2])
        return bool(data[condition[0].removeprefix(".")])

    return block(0, data, True)[0]


def template_of(text):
    return re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL).group(1)


@pytest.mark.parametrize(
    "template", [None, DEFAULT_SYSTEM, LLAMA2], ids=["ours", "default", "inst"]
)
def test_the_go_template_writes_what_jinja_writes(tiny_tokenizer, template):
    ensure_template(tiny_tokenizer, template=template)
    turns = find_turn_format(tiny_tokenizer)
    go = template_of(modelfile(turns, stops=["<|im_end|>"], window=512, adds_bos=False))
    assert ("system" in turns.around) == (template != LLAMA2)
    for chat in probe_chats(system="system" in turns.around):
        assert executed(go, chat) == render(tiny_tokenizer, chat, prompt=True)


IRREGULAR = {
    "system joined to the question": (
        "{% for m in messages %}{% if m.role == 'user' %}U: {% if loop.first %}(new) {% endif %}"
        "{{ m.content }}\n{% else %}A: {{ m.content }}<|im_end|>{% endif %}{% endfor %}A:"
    ),
    "contents rewritten": (
        "{% for m in messages %}{{ m.role + ': ' + m.content | upper }}<|im_end|>{% endfor %}"
    ),
    "turns numbered": (
        "{% for m in messages %}{{ loop.index }} {{ m.content }}<|im_end|>{% endfor %}"
    ),
}


@pytest.mark.parametrize("template", IRREGULAR.values(), ids=IRREGULAR)
def test_a_template_that_is_not_regular_is_refused(tiny_tokenizer, template):
    tiny_tokenizer.chat_template = template
    with pytest.raises(UserError, match="llama-server --jinja"):
        find_turn_format(tiny_tokenizer)


def test_a_turn_that_the_next_role_ends(tiny_tokenizer):
    """GLM: `<|user|>` ends the answer and begins the next question, so it is written once."""
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    turns = find_turn_format(tiny_tokenizer)
    assert turns.around["user"] == ("<|user|>", "")
    assert turns.around["assistant"] == ("<|assistant|>", "")
    (first, *_) = stop_ids(tiny_tokenizer)
    assert tiny_tokenizer.decode([first]) == "<|user|>"


def test_go_syntax_in_a_template_is_refused(tiny_tokenizer):
    braces = "{{ '{' + '{ .X }' + '}' }}"
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}" + braces + "{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(UserError, match="cannot hold"):
        modelfile(find_turn_format(tiny_tokenizer), stops=[], window=None, adds_bos=False)


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    stops = {"eos_token_id": stop_ids(tokenizer)}
    (folder / "generation_config.json").write_text(json.dumps(stops))
    complete_tokenizer_config(folder, tokenizer)
    return folder


def test_a_changed_template_or_stop_is_found(tiny_tokenizer, tmp_path):
    ensure_template(tiny_tokenizer)
    folder = saved(tiny_tokenizer, tmp_path)
    assert check_token_parity(tiny_tokenizer, folder=folder).chats == 6
    row = {"messages": [{"role": "user", "content": "Hi"}], "prompt_ids": [5, 6]}
    with pytest.raises(UserError, match="other tokens in evaluation"):
        check_token_parity(tiny_tokenizer, folder=folder, recorded=[row])
    (folder / "generation_config.json").write_text('{"eos_token_id": [0]}')
    with pytest.raises(UserError, match=r"stops on \[0\]"):
        check_token_parity(tiny_tokenizer, folder=folder)
    jinja = folder / "chat_template.jinja"
    jinja.write_text(jinja.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(UserError, match=r"other tokens in transformers chat .*token 1 is"):
        check_token_parity(tiny_tokenizer, folder=folder)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "bos"),
    [
        ("qwen2.5", None),
        ("deepseek-llm", "<｜begin▁of▁sentence｜>"),
        ("minimind", None),
    ],
)
def test_real_tokenizers_give_the_same_ids_everywhere(real_data, tmp_path, name, bos):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)
    ensure_template(tokenizer)
    folder = saved(tokenizer, tmp_path)
    own = tokenizer.convert_tokens_to_ids("<tool_call>")  # of the base's generation settings
    stops = stop_ids(tokenizer, also=[own] if own else [])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    turns = write_modelfile(folder, tokenizer, window=4096)
    written = re.findall('PARAMETER stop "(.*)"', (folder / "Modelfile").read_text("utf-8"))
    assert tokenizer.convert_tokens_to_ids(written) == stops
    go = template_of((folder / "Modelfile").read_text(encoding="utf-8"))
    proof = check_token_parity(tokenizer, folder=folder, turns=turns)
    assert proof.ways[-1] == "Ollama's template"
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["add_bos_token"] == adds_bos(tokenizer)
    for chat in probe_chats(system=True):
        text = executed(go, chat)
        # Ollama's tokenizer adds BOS unless the configuration disables that.
        front = [tokenizer.bos_token_id] if config["add_bos_token"] else []
        ids = front + tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == encode_prompt(tokenizer, chat)
        assert bos is None or tokenizer.decode(ids[:1]) == bos


@pytest.mark.real
def test_a_tokenizer_that_puts_a_space_behind_bos_gets_no_modelfile(real_data, tmp_path):
    # Llama 2's: `<s>User` in one text and BOS in front of `User` are different tokens.
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "llama2-tinyllama")
    ensure_template(tokenizer)
    folder = saved(tokenizer, tmp_path)
    with pytest.raises(UserError, match="becomes other tokens where BOS is not part of it"):
        write_modelfile(folder, tokenizer, window=4096)
    assert not (folder / "Modelfile").exists()
    assert len(check_token_parity(tokenizer, folder=folder).ways) == 3


@pytest.mark.real
def test_published_templates_of_each_shape(real_data):
    """Regular templates are converted (Llama 3's dated system turn, Gemma), others refused."""
    regular = {
        "meta-llama-Llama-3.1-8B-Instruct",
        "google-gemma-2-2b-it",
        "Qwen-Qwen2.5-7B-Instruct",
    }
    folder = real_data / "tokenizers"
    rows = (folder / "llamacpp_chat_templates.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(folder / "qwen2.5")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|eot_id|>", "<end_of_turn>", "<bos>"]}
    )
    tokenizer.bos_token = "<bos>"
    said = {}
    for row in map(json.loads, rows):
        tokenizer.chat_template = row["template"]
        try:
            said[row["name"]] = find_turn_format(tokenizer)
        except UserError:
            continue
    assert set(said) >= regular
    assert "Cutting Knowledge Date" in said["meta-llama-Llama-3.1-8B-Instruct"].default
    assert said["google-gemma-2-2b-it"].around["assistant"][0] == "<start_of_turn>model\n"
    assert "mistralai-Mistral-Nemo-Instruct-2407" not in said  # the system text moves
