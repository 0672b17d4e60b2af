"""Checks that a chat template renders every message of a conversation.

Words of a message can occur in a text that does not contain the message: a function's name is in
the list of tools, and a short question may be in the template. So sentinels replace the words.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.chat_template.render import Message, render
from sft.chat_template.turn_end import ANSWER_SENTINEL, DUMMY_TOOL, template_text
from sft.data.fields import strip_whitespace
from sft.errors import UserError

REASONING = ("reasoning_content", "thinking", "reasoning")


def message_texts(message: Message) -> list[str]:
    """Return the texts of a message: content, thinking, names of called functions."""
    texts = [message.get("content")] + [message.get(key) for key in REASONING]
    return [piece for piece in texts if piece] + called_functions(message)


def called_functions(message: Message) -> list[str]:
    return [call["name"] for call in _functions(message)]


def call_arguments(message: Message) -> list[str]:
    given = [call.get("arguments") for call in _functions(message)]
    return [a if isinstance(a, str) else json.dumps(a, ensure_ascii=False) for a in given]


def _functions(message: Message) -> list[dict[str, Any]]:
    return [call.get("function", call) for call in message.get("tool_calls") or []]


def check_context_rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    text: str,
    tools: list[Any] | None = None,
) -> None:
    """Raise UserError if the rendered `text` lacks a message that an answer may depend on."""
    plain: list[Message] = []
    owners: list[tuple[int, Message]] = []  # for each sentinel
    for number, message in enumerate(messages, start=1):
        # Templates may leave words of the assistant out of the history, but not its calls.
        words = message.get("role") != "assistant"
        with_marks, marks = with_sentinels(message, first=len(owners), content=words)
        plain.append(with_marks)
        owners += [(number, message)] * len(marks)
    key = json.dumps(_with_plain_ids(plain), sort_keys=True)
    template = template_text(tokenizer)
    missing = _missing_sentinels(tokenizer, template, key, len(owners), bool(tools))
    lost = [owners[i] for i in missing]
    for number, message in enumerate(messages, start=1):
        if not all(_contains(text, piece) for piece in _required_texts(message)):
            lost.append((number, message))
    for number, message in lost:
        if required := _required_texts(message):
            what = "tool call" if message.get("role") == "assistant" else "message"
            raise UserError(
                f"the chat template leaves out the {what} of turn {number} "
                f"({message.get('role')}: {required[0][:30]!r}); "
                f"{_remedy(tokenizer, message, tools)}"
            )


def _remedy(tokenizer: PreTrainedTokenizerBase, message: Message, tools: list[Any] | None) -> str:
    calls = [
        {"type": "function", "function": function, "id": f"functions.{function['name']}:{i}"}
        for i, function in enumerate(_functions(message))
    ]
    with_marks, marks = with_sentinels({**message, "tool_calls": calls}, content=False)
    with suppress(UserError):
        question = {"role": "user", "content": ANSWER_SENTINEL}
        text = render(tokenizer, [question, with_marks], tools=tools, prompt=False)
        if calls and all(mark in text for mark in marks):
            return (
                "the template writes the id of a call instead of its name, so give it an id "
                f"with the name, such as {calls[0]['id']!r}, and its result the same tool_call_id"
            )
    return "change the row or the template"


def _required_texts(message: Message) -> list[str]:
    """Return the texts that a later answer may depend on; thinking in the history is not."""
    if message.get("role") == "assistant":
        return called_functions(message)
    return [message["content"]] if message.get("content") else []


def _contains(text: str, piece: str) -> bool:
    quoted = json.dumps(piece, ensure_ascii=False)[1:-1]
    literally = piece.strip() in text or quoted in text
    return literally or strip_whitespace(piece) in strip_whitespace(text)


def with_sentinels(
    message: Message, *, first: int = 0, content: bool = True
) -> tuple[Message, list[str]]:
    """Return the message with sentinels, numbered from `first`, for its words; and the sentinels.

    They replace the content (if `content`), and the name and arguments of each call, also inside an
    id that contains the name (Kimi K2 writes the id instead of the name).
    """
    marks: list[str] = []

    def mark() -> str:
        marks.append(f"{ANSWER_SENTINEL}{first + len(marks)}{ANSWER_SENTINEL}")
        return marks[-1]

    changed = message | {key: ANSWER_SENTINEL for key in REASONING if key in message}
    if (message.get("content") or "").strip():
        changed["content"] = mark() if content else ANSWER_SENTINEL
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        named = {**function, "name": mark()}
        if function.get("arguments") not in ({}, "{}", "", None):
            with_marks = {"argument": mark()}
            text = isinstance(function["arguments"], str)
            named["arguments"] = json.dumps(with_marks, ensure_ascii=False) if text else with_marks
        new_call = {**call, "function": named} if "function" in call else named
        if isinstance(call.get("id"), str):
            new_call["id"] = call["id"].replace(function["name"], named["name"])
        calls.append(new_call)
    return changed | ({"tool_calls": calls} if calls else {}), marks


def _with_plain_ids(messages: list[Message]) -> list[Message]:
    plain: dict[str, str] = {}  # nine letters, as Mistral's template requires
    for message in messages:
        for call in message.get("tool_calls") or []:
            if isinstance(call.get("id"), str) and ANSWER_SENTINEL not in call["id"]:
                call["id"] = plain.setdefault(call["id"], f"call{len(plain):05}")
        if message.get("tool_call_id") in plain:
            message["tool_call_id"] = plain[message["tool_call_id"]]
    return messages


@lru_cache(maxsize=512)
def _missing_sentinels(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: str, marks: int, tools: bool
) -> tuple[int, ...]:
    """Return the sentinels that the template leaves out here; () if it refuses them."""
    try:
        given = [DUMMY_TOOL] if tools else None
        text = render(tokenizer, json.loads(messages), tools=given, prompt=False)
    except UserError:
        return ()
    return tuple(i for i in range(marks) if f"{ANSWER_SENTINEL}{i}{ANSWER_SENTINEL}" not in text)
