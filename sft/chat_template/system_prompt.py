"""Sets the system prompt of conversations without a system turn: the template's, a text, or none.

Some templates add a default system turn (SmolLM2: "You are a helpful AI assistant named SmolLM,
trained by Hugging Face"). `data.system_prompt` keeps, replaces or removes it in the template, so
that training, evaluation, export and chat agree.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from sft.chat_template.assistant_mask import check_no_control_tokens
from sft.chat_template.render import Message, render
from sft.chat_template.turn_end import (
    ANSWER_SENTINEL,
    DUMMY_TOOL,
    QUESTION_SENTINEL,
    common_prefix,
    find_turn_end,
)
from sft.errors import UserError

KEEP, NONE = "template", "none"
SYSTEM_SENTINEL = "\ue008"  # private use, see `sft.chat_template.turn_end`
QUESTION = {"role": "user", "content": QUESTION_SENTINEL}
INSTRUCTED = [{"role": "system", "content": SYSTEM_SENTINEL}, QUESTION]


def set_system_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Keep ("template"), remove ("none") or replace the default system turn of the template.

    Raises UserError if the template takes no system turn, or its default is not one literal in it.
    """
    if text == KEEP:
        return
    if text == NONE:
        if default := _find_default(tokenizer):
            _remove(tokenizer, default)
        return
    check_no_control_tokens(tokenizer, [{"role": "data.system_prompt", "content": text}])
    before = tokenizer.chat_template
    _replace_template(tokenizer, partial(_with_text, text=text))
    try:
        if text.strip() in render(tokenizer, [QUESTION], prompt=True):
            return
        reason = "it writes no system turn"
    except UserError as error:
        reason = str(error)
    tokenizer.chat_template = before
    raise UserError(
        f"data.system_prompt={text[:40]!r} cannot be used with this chat template ({reason}); "
        "set data.system_prompt=template, or give another template (model.chat_template)"
    )


def default_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the template's default system prompt without control tokens, or None."""
    default = _find_default(tokenizer)
    return default.content if default else None


def lacks_system(messages: Sequence[Message]) -> bool:
    """Return whether a conversation has no system turn."""
    return not messages or messages[0].get("role") not in ("system", "developer")


def quoted(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 100 else f"{line[:97]}...")


@dataclass(frozen=True)
class _Default:
    """The default system turn (with BOS), its content, and the header of the next user turn."""

    block: str
    content: str
    header: str


def _find_default(tokenizer: PreTrainedTokenizerBase) -> _Default | None:
    answer = {"role": "assistant", "content": ANSWER_SENTINEL}
    try:
        front = render(tokenizer, [QUESTION], prompt=True).partition(QUESTION_SENTINEL)[0]
        both = render(tokenizer, [QUESTION, answer, QUESTION], prompt=True)
        stop = find_turn_end(tokenizer).texts[0]
    except UserError:
        return None
    between = both.partition(ANSWER_SENTINEL)[2].partition(QUESTION_SENTINEL)[0]
    # Their common suffix without the end token, with which a system turn may end as well.
    after_bos = front.removeprefix(tokenizer.bos_token or "")
    header = common_prefix(after_bos[::-1], between[::-1])[::-1].rpartition(stop)[2].lstrip()
    block = front.removesuffix(header)
    try:
        given = render(tokenizer, INSTRUCTED, prompt=True)
    except UserError:
        given = ""
    opening, found, rest = given.partition(SYSTEM_SENTINEL)
    content = block
    if found:
        closing = rest.partition(QUESTION_SENTINEL)[0].removesuffix(header)
        content = block[len(common_prefix(block, opening)) :].removesuffix(closing)
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        content = content.replace(token, "")
    return _Default(block, content.strip(), header) if content.strip() else None


def _remove(tokenizer: PreTrainedTokenizerBase, default: _Default) -> None:
    before, bos = tokenizer.chat_template, tokenizer.bos_token or ""
    kept = _with_and_without_tools(tokenizer, INSTRUCTED)
    blocks = [default.block, default.block.removeprefix(bos), default.block.rstrip()]
    # If no literal holds the complete turn, only its content is removed.
    for texts in [*([text, default.content] for text in blocks), [default.content]]:
        _replace_template(tokenizer, partial(_without, texts=texts))
        with suppress(UserError):
            plain, *with_tools = _with_and_without_tools(tokenizer, [QUESTION])
            front = plain.partition(QUESTION_SENTINEL)[0]
            removed = default.content not in "".join([front, *with_tools])
            clean = front in (default.header, bos + default.header) or texts == [default.content]
            if removed and clean and _with_and_without_tools(tokenizer, INSTRUCTED) == kept:
                return
        tokenizer.chat_template = before
    raise UserError(
        f"data.system_prompt=none: the chat template's default {quoted(default.content)} is not "
        "one literal text in it, so it cannot be removed; set data.system_prompt to a text, or "
        "give a template without it (model.chat_template)"
    )


def _with_and_without_tools(tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> list[str]:
    texts = [render(tokenizer, chat, prompt=True)]
    with suppress(UserError):
        texts.append(render(tokenizer, chat, tools=[DUMMY_TOOL], prompt=True))
    return texts


def _replace_template(tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]) -> None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: change(text) for name, text in template.items()}
    else:
        tokenizer.chat_template = change(template)


def _with_text(template: str, *, text: str) -> str:
    literal = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    trim = "" if template[:1].isspace() else "-"  # keep leading white space of the template
    return (
        "{%- if not messages or messages[0]['role'] not in ['system', 'developer'] -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': '{literal}'}}] + messages -%}}"
        f"{{%- endif {trim}%}}\n{template}"
    )


def _without(template: str, *, texts: Sequence[str]) -> str:
    """Return the template without these texts, in every spelling of a Jinja literal."""
    for text in filter(None, texts):
        escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
        for spelling in (text, escaped, escaped.replace("'", "\\'"), escaped.replace('"', '\\"')):
            template = template.replace(spelling, "")
    return template
