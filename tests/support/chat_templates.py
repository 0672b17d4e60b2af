"""Chat templates, messages and tokenizers shared by tests."""

import json
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.chat_template.encoding import EncodedChat, encode_prompt, stop_ids

ONE = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello you"}]
TWO = [*ONE, {"role": "user", "content": "ok"}, {"role": "assistant", "content": "Bye now"}]
TOOL = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {}}}
CALLS = [
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two."},
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = re.compile(
    r"<\|[^|<>{}' ]{1,40}\|>|<｜[^｜{}' ]{1,40}｜>|\[/?[A-Z_]{3,20}\]|</?[a-z_]+_of_turn>|<s>|</s>"
)

DEFAULT_SYSTEM = (
    "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' -}}"
    "{%- endif -%}{%- for m in messages -%}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


def make_tokenizer(template, *, bos=None, eos="<|endoftext|>"):
    """Return a tokenizer with one token per byte and per control token of the template."""
    specials = list(dict.fromkeys([eos, *([bos] if bos else []), *SPECIAL.findall(template)]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(specials + alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos)
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.chat_template = template
    return tokenizer


def spans(tokenizer, chat: EncodedChat) -> list[str]:
    """Return the text of each span of trained tokens."""
    runs, previous = [], False
    for token, trained in zip(chat.input_ids, chat.trained, strict=True):
        if trained and not previous:
            runs.append([])
        if trained:
            runs[-1].append(token)
        previous = trained
    return [tokenizer.decode(run) for run in runs]


def check_invariants(tokenizer, messages, chat, *, tools=None):
    prompt = encode_prompt(tokenizer, messages[:-1], tools=tools)
    assert chat.input_ids[: len(prompt)] == prompt
    assert not all(chat.trained)
    stops = stop_ids(tokenizer)
    for i, trained in enumerate(chat.trained):
        if trained and (i + 1 == len(chat.trained) or not chat.trained[i + 1]):
            assert chat.input_ids[i] in stops
    last = len(chat.trained) - 1 - chat.trained[::-1].index(True)
    assert all(chat.trained[len(prompt) : last + 1])


# As Qwen3: an empty thinking block only in the last turn, no thinking in the history.
THINKING = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{% set t = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content "
    "else '\\n\\n' %}"
    "{% set c = '<think>' + t + '</think>\\n\\n' + c %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def templates(real_data):
    for name, key in (
        ("llamacpp_chat_templates", "template"),
        ("chat_templates_with_expected", "chat_template"),
    ):
        for line in (real_data / f"tokenizers/{name}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            yield row["name"], row[key]
