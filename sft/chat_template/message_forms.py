"""Converts messages to the form that a chat template takes: tool-call arguments and thinking.

Most templates take arguments as an object, some as JSON text (DeepSeek V3). Thinking is a field of
the message, begins its content, or continues a block that the generation prompt opens. Training and
generation use the same form.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.chat_template.render import Message, render
from sft.chat_template.rendering_checks import REASONING
from sft.chat_template.turn_end import (
    ANSWER_SENTINEL,
    DUMMY_TOOL,
    QUESTION_SENTINEL,
    cached_by_template,
)
from sft.errors import UserError

THOUGHT = "\ue008"  # a private-use character, as in sft.chat_template.turn_end
ASK: Message = {"role": "user", "content": QUESTION_SENTINEL}
# Thinking before an answer. The first tag is missing if the generation prompt has opened the block.
THINKING = re.compile(
    r"\s*(?P<tag><think(?:ing)?>)?(?P<thought>.*?)</think(?:ing)?>(?P<answer>.*)", re.DOTALL
)
# The tag at the end of a generation prompt that opens a block of thinking.
OPENED = re.compile(r"(<[^<>/\s]*(?:think|thought|reason)[^<>/\s]*>|\[THINK\])\s*\Z", re.IGNORECASE)
CLOSED = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|END_THINKING\|>")


@dataclass(frozen=True)
class MessageForms:
    """The forms that a template takes."""

    text_arguments: bool  # arguments of calls are JSON text, not objects
    field: str | None  # the key of a message under which the template takes thinking
    opening: str  # the end of the generation prompt that opens a block of thinking, or ""
    lead: str | None  # without a field: the start of content that continues the opening
    inline: bool  # thinking between <think> tags in the content is written like the field
    # The template writes an empty thinking block before content that has one (Kimi K2 Thinking).
    doubled: bool
    bare: bool  # an answer without thinking continues the generation prompt


def to_template_form(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[Message]:
    """Return the messages in the form that the tokenizer's template expects.

    Arguments become objects or JSON text; given JSON text is kept if the template takes text.
    Thinking, from any of its keys or between `<think>` and `</think>` before the content, moves to
    the template's field; without a field, it continues the opening of the generation prompt;
    otherwise it stays.
    """
    if not any(_has_calls_or_thinking(message) for message in messages):
        return list(messages)
    forms = find_message_forms(tokenizer)
    return [_to_template_form(message, forms) for message in messages]


def check_thinking_rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
) -> None:
    """Raise UserError if the last turn does not continue an opened block of thinking.

    Also if a turn has thinking after a block that the template writes before every answer.
    """
    forms = find_message_forms(tokenizer)
    for number, message in enumerate(messages, start=1):
        if forms.doubled and message.get("role") == "assistant" and _thinking(message, forms):
            raise UserError(
                f"message {number} (assistant) has thinking, and the template writes a block of "
                "thinking before every answer; remove the thinking, or set model.chat_template "
                "to a template that takes it"
            )
    thinks = _thinking(messages[-1], forms) is not None
    takes = forms.field is not None or forms.lead is not None
    if not forms.opening or (takes if thinks else forms.bare):
        return
    before = to_template_form(tokenizer, messages[:-1])
    if not opening_of(render(tokenizer, before, tools=tools, prompt=True)):
        return  # for example after the result of a tool
    what = "has thinking, which the template leaves out" if thinks else "has none"
    remedy = "set model.chat_template to a template that keeps thinking"
    if takes:
        remedy = "give it its thinking as reasoning_content, or in <think> tags before the content"
    raise UserError(
        "the last assistant turn cannot be trained: the generation prompt opens a block of "
        f"thinking ({forms.opening!r}), and the answer {what}; {remedy}"
    )


def _has_calls_or_thinking(message: Message) -> bool:
    named = any(message.get(key) for key in ("tool_calls", *REASONING))
    thinks = named or "</think" in (message.get("content") or "")
    return thinks and message.get("role") == "assistant"


def _thinking(message: Message, forms: MessageForms) -> tuple[str, str] | None:
    """Return the thinking of a message and the rest of its content, or None without thinking."""
    content = message.get("content") or ""
    for key in REASONING:
        if message.get(key):
            return message[key], content
    found = THINKING.fullmatch(content)
    if found is None or not (found["tag"] or forms.opening):
        return None
    return found["thought"], found["answer"]


def _to_template_form(message: Message, forms: MessageForms) -> Message:
    if not _has_calls_or_thinking(message):
        return message
    if calls := message.get("tool_calls"):
        message = {**message, "tool_calls": [_call_to_template_form(call, forms) for call in calls]}
    thinking = _thinking(message, forms)
    if thinking is None or (forms.field is None and forms.lead is None):
        return message
    thought, answer = thinking
    within = answer != (message.get("content") or "")  # the thinking is in the content
    rest = {key: value for key, value in message.items() if key not in REASONING}
    if forms.field is not None:
        if within and forms.inline:
            return message
        if within:  # the template adds its own white space
            thought, answer = thought.strip(), answer.strip()
        return {**rest, "content": answer, forms.field: thought}
    if not within:
        thought, answer = f"{thought}\n", f"\n\n{answer}"
    return {**rest, "content": f"{forms.lead}{thought.lstrip()}{_closing(forms.opening)}{answer}"}


def _call_to_template_form(call: dict[str, Any], forms: MessageForms) -> dict[str, Any]:
    function = call.get("function", call)
    given = function.get("arguments")
    arguments: Any = given
    if forms.text_arguments and not isinstance(given, str):
        arguments = json.dumps({} if given is None else given, ensure_ascii=False)
    elif not forms.text_arguments and isinstance(given, str):
        with suppress(ValueError):
            arguments = json.loads(given or "{}")
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


@cached_by_template
def find_message_forms(tokenizer: PreTrainedTokenizerBase) -> MessageForms:
    """Return the forms that this tokenizer's template takes, found with sentinels."""
    prompt = _rendered(tokenizer, [ASK], prompt=True)
    opening = opening_of(prompt)

    def before(first: str, **fields: str) -> str | None:
        """Return the text between the prompt and `first` in a turn with these fields.

        None if the turn does not continue the prompt, lacks its words, or puts text between an
        opened block and the thinking.
        """
        text = _rendered(tokenizer, [ASK, {"role": "assistant", **fields}])
        head, there, tail = text[len(prompt) :].partition(first)
        if not text.startswith(prompt) or not there or ANSWER_SENTINEL not in first + tail:
            return None
        return None if opening and first == THOUGHT and head.strip() else head.strip()

    named = {key: before(THOUGHT, content=ANSWER_SENTINEL, **{key: THOUGHT}) for key in REASONING}
    field = next((key for key in REASONING if named[key] is not None), None)
    leads = (opening, "") if opening and field is None else ()
    answer = f"{THOUGHT}{_closing(opening)}{ANSWER_SENTINEL}"
    found = {lead: before(THOUGHT, content=lead + answer) for lead in leads}
    inline = before(THOUGHT, content=f"<think>{THOUGHT}</think>{ANSWER_SENTINEL}")
    return MessageForms(
        text_arguments=_takes_json_text(tokenizer),
        field=field,
        opening=opening,
        lead=next((lead for lead in leads if found[lead] is not None), None),
        doubled=not (field or opening) and _adds_empty_block(tokenizer),
        inline=not opening and inline is not None and inline == named.get(field or ""),
        bare=before(ANSWER_SENTINEL, content=ANSWER_SENTINEL) is not None,
    )


def _adds_empty_block(tokenizer: PreTrainedTokenizerBase) -> bool:
    message = {"role": "assistant", "content": f"<think>{THOUGHT}</think>{ANSWER_SENTINEL}"}
    turn = _rendered(tokenizer, [ASK, message]).rpartition(QUESTION_SENTINEL)[2]
    head, there, _ = turn.partition(THOUGHT)
    return bool(there) and CLOSED.search(head) is not None


def opening_of(prompt: str) -> str:
    """Return the end of a generation prompt that opens a block of thinking, or ""."""
    found = OPENED.search(prompt)
    return found.group() if found and "end" not in found.group(1).lower() else ""


def _closing(opening: str) -> str:
    tag = opening.strip()
    return tag.replace("START", "END") if "START" in tag else f"{tag[:1]}/{tag[1:]}"


def _takes_json_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    arguments = {"argument": 1}
    objects = _rendered(tokenizer, _call_messages(arguments))
    if objects and str(arguments) not in objects:
        return False
    text = json.dumps(arguments)
    return text in _rendered(tokenizer, _call_messages(text))


def _call_messages(arguments: Any) -> list[Message]:
    function = {"name": ANSWER_SENTINEL, "arguments": arguments}
    call = {"type": "function", "id": ANSWER_SENTINEL * 9, "function": function}
    return [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, prompt: bool = False
) -> str:
    for tools in (None, [DUMMY_TOOL]):
        with suppress(UserError):
            return render(tokenizer, messages, tools=tools, prompt=prompt)
    return ""
