"""Masks against hand-made ids and upstream's own generation masks, on real tokenizers and
published templates."""

import gzip
import json
import re

import pytest
from chat_templates import (
    ONE,
    TWO,
    check_invariants,
    make_tokenizer,
    spans,
)
from files import ROOT
from hypothesis import HealthCheck
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
        except Exception as error:  # any exception of the upstream call is recorded
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
