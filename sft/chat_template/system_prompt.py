"""The system prompt of conversations without a system turn: the template's, a text, or none.

Some templates write a system turn of their own where a conversation has none (SmolLM2: "You are a
helpful AI assistant named SmolLM, trained by Hugging Face"). `data.system_prompt` keeps it,
replaces it or removes it. The change is made in the template, so it holds for training, evaluation,
export and chat alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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

OWN, NONE = "template", "none"
GIVEN = "\ue008"  # private use, see `sft.chat_template.turn_end`
QUESTION = {"role": "user", "content": QUESTION_SENTINEL}
INSTRUCTED = [{"role": "system", "content": GIVEN}, QUESTION]


def set_system_prompt(tokenizer: Any, wanted: str) -> None:
    """Change what the tokenizer's template writes where a conversation has no system turn.

    Args:
        wanted: "template" leaves it as it is, "none" removes its default, any other text is written
            in the system turn.

    Raises:
        UserError: the template takes no system turn, or its default is not one literal text in it.
    """
    if wanted == OWN:
        return
    if wanted == NONE:
        if default := _find_default(tokenizer):
            _remove(tokenizer, default)
        return
    check_no_control_tokens(tokenizer, [{"role": "data.system_prompt", "content": wanted}])
    before = tokenizer.chat_template
    _change(tokenizer, partial(_with_text, text=wanted))
    try:
        if wanted.strip() in render(tokenizer, [QUESTION], prompt=True):
            return
        reason = "it writes no system turn"
    except UserError as error:
        reason = str(error)
    tokenizer.chat_template = before
    raise UserError(
        f"data.system_prompt={wanted[:40]!r} cannot be used with this chat template ({reason}); "
        "set data.system_prompt=template, or give another template (model.chat_template)"
    )


def default_system(tokenizer: Any) -> str | None:
    """The text that the template writes only where a conversation has no system turn, without
    control tokens; None where there is none."""
    default = _find_default(tokenizer)
    return default.content if default else None


def lacks_system(messages: Sequence[Message]) -> bool:
    """Whether a conversation leaves the system prompt to the template."""
    return not messages or messages[0].get("role") not in ("system", "developer")


def quoted(text: str) -> str:
    """A system prompt on one line, shortened."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 100 else f"{line[:97]}...")


@dataclass(frozen=True)
class _Default:
    """A default system turn as the template writes it, BOS in front included, its content, and
    what opens the user's turn behind it."""

    block: str
    content: str
    header: str


def _find_default(tokenizer: Any) -> _Default | None:
    answer = {"role": "assistant", "content": ANSWER_SENTINEL}
    try:
        front = render(tokenizer, [QUESTION], prompt=True).partition(QUESTION_SENTINEL)[0]
        both = render(tokenizer, [QUESTION, answer, QUESTION], prompt=True)
        stop = find_turn_end(tokenizer).texts[0]
    except UserError:
        return None
    between = both.partition(ANSWER_SENTINEL)[2].partition(QUESTION_SENTINEL)[0]
    # What both end with; the end of a system turn may read as that of an answer does.
    after_bos = front.removeprefix(tokenizer.bos_token or "")
    header = common_prefix(after_bos[::-1], between[::-1])[::-1].rpartition(stop)[2].lstrip()
    block = front.removesuffix(header)
    try:
        given = render(tokenizer, INSTRUCTED, prompt=True)
    except UserError:
        given = ""
    opening, found, behind = given.partition(GIVEN)
    content = block
    if found:
        closing = behind.partition(QUESTION_SENTINEL)[0].removesuffix(header)
        content = block[len(common_prefix(block, opening)) :].removesuffix(closing)
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        content = content.replace(token, "")
    return _Default(block, content.strip(), header) if content.strip() else None


def _remove(tokenizer: Any, default: _Default) -> None:
    """Take the default out of the template's text, so that nothing else changes."""
    before, kept, bos = tokenizer.chat_template, _instructed(tokenizer), tokenizer.bos_token or ""
    whole = [default.block, default.block.removeprefix(bos), default.block.rstrip()]
    # Where no literal holds all of the turn, an empty one is left.
    for texts in [*([text, default.content] for text in whole), [default.content]]:
        _change(tokenizer, partial(_without, texts=texts))
        try:
            front = render(tokenizer, [QUESTION], prompt=True).partition(QUESTION_SENTINEL)[0]
            gone = default.content not in "".join([front, *_with_tools(tokenizer, [QUESTION])])
            clean = front in (default.header, bos + default.header) or texts == [default.content]
            if gone and clean and _instructed(tokenizer) == kept:
                return
        except UserError:
            pass
        tokenizer.chat_template = before
    raise UserError(
        f"data.system_prompt=none: the chat template's default {quoted(default.content)} is not "
        "one literal text in it, so it cannot be taken out; set data.system_prompt to a text, or "
        "give a template without it (model.chat_template)"
    )


def _instructed(tokenizer: Any) -> list[str]:
    """What the template writes where there is a system turn."""
    return [render(tokenizer, INSTRUCTED, prompt=True), *_with_tools(tokenizer, INSTRUCTED)]


def _with_tools(tokenizer: Any, messages: Sequence[Message]) -> list[str]:
    try:
        return [render(tokenizer, messages, tools=[DUMMY_TOOL], prompt=True)]
    except UserError:
        return []


def _change(tokenizer: Any, change: Callable[[str], str]) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = (
        {name: change(text) for name, text in template.items()}
        if isinstance(template, dict)
        else change(template)
    )


def _with_text(template: str, *, text: str) -> str:
    literal = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    trim = "" if template[:1].isspace() else "-"  # a template's own white space stays
    return (
        "{%- if not messages or messages[0]['role'] not in ['system', 'developer'] -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': '{literal}'}}] + messages -%}}"
        f"{{%- endif {trim}%}}\n{template}"
    )


def _without(template: str, *, texts: Sequence[str]) -> str:
    """The template without these texts, in every spelling of Jinja's."""
    for text in filter(None, texts):
        escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
        for spelling in (text, escaped, escaped.replace("'", "\\'"), escaped.replace('"', '\\"')):
            template = template.replace(spelling, "")
    return template
