"""Whether a chat template shows what a conversation says.

Words of a message can be found in a text that does not show the message: the name of a called
function stands in the list of tools, and a short question in the template's own text. So sentinels
are rendered in the place of the words.
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
    """What is said in this message: content, reasoning, names of the calls."""
    said = [message.get("content")] + [message.get(key) for key in REASONING]
    return [piece for piece in said if piece] + called_functions(message)


def called_functions(message: Message) -> list[str]:
    """The functions that the message calls."""
    return [call["name"] for call in _functions(message)]


def call_arguments(message: Message) -> list[str]:
    """The arguments of its calls as JSON text."""
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
    """An answer is not trained or generated from a context that the template does not show.

    Args:
        text: the conversation as the template writes it.

    Raises:
        UserError: naming the message that is missing from the rendered text.
    """
    plain: list[Message] = []
    owners: list[tuple[int, Message]] = []  # of each sentinel
    for number, message in enumerate(messages, start=1):
        # What the assistant says in words may be left out of the history.
        words = message.get("role") != "assistant"
        said, marks = with_sentinels(message, first=len(owners), content=words)
        plain.append(said)
        owners += [(number, message)] * len(marks)
    missing = _missing(
        tokenizer,
        template_text(tokenizer),
        json.dumps(_with_plain_ids(plain), sort_keys=True),
        len(owners),
        bool(tools),
    )
    lost = [owners[i] for i in missing]
    for number, message in enumerate(messages, start=1):
        if not all(_shows(text, piece) for piece in _needed(message)):
            lost.append((number, message))
    for number, message in lost:
        if needed := _needed(message):
            what = "tool call" if message.get("role") == "assistant" else "message"
            raise UserError(
                f"the chat template leaves out the {what} of turn {number} "
                f"({message.get('role')}: {needed[0][:30]!r}); {_remedy(tokenizer, message, tools)}"
            )


def _remedy(tokenizer: PreTrainedTokenizerBase, message: Message, tools: list[Any] | None) -> str:
    """What helps a message that the template leaves out; some templates write the id of a call in
    the place of its name."""
    calls = [
        {"type": "function", "function": function, "id": f"functions.{function['name']}:{i}"}
        for i, function in enumerate(_functions(message))
    ]
    said, marks = with_sentinels({**message, "tool_calls": calls}, content=False)
    with suppress(UserError):
        text = render(
            tokenizer,
            [{"role": "user", "content": ANSWER_SENTINEL}, said],
            tools=tools,
            prompt=False,
        )
        if calls and all(mark in text for mark in marks):
            return (
                "the template writes the id of a call in the place of its name, so give it an id "
                f"with the name, such as {calls[0]['id']!r}, and its result the same tool_call_id"
            )
    return "change the row or the template"


def _needed(message: Message) -> list[str]:
    """What a later answer may depend on; thinking may be left out of the history."""
    if message.get("role") == "assistant":
        return called_functions(message)
    return [message["content"]] if message.get("content") else []


def _shows(text: str, piece: str) -> bool:
    """Whether the text holds the piece: as it is, but for white space, or quoted as JSON."""
    quoted = json.dumps(piece, ensure_ascii=False)[1:-1]
    return (
        piece.strip() in text or quoted in text or strip_whitespace(piece) in strip_whitespace(text)
    )


def with_sentinels(
    message: Message, *, first: int = 0, content: bool = True
) -> tuple[Message, list[str]]:
    """The message with sentinels, numbered from `first`, in the place of its words; and they.

    Sentinels replace the content, if asked, and the name and arguments of each call. An id that
    holds the name, which some templates write in its place (Kimi K2), holds the sentinel.
    """
    marks: list[str] = []

    def mark() -> str:
        marks.append(f"{ANSWER_SENTINEL}{first + len(marks)}{ANSWER_SENTINEL}")
        return marks[-1]

    changed = {
        key: ANSWER_SENTINEL if key in REASONING else value for key, value in message.items()
    }
    if (message.get("content") or "").strip():
        changed["content"] = mark() if content else ANSWER_SENTINEL
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        named = {**function, "name": mark()}
        if function.get("arguments") not in ({}, "{}", "", None):
            said = {"argument": mark()}
            text = isinstance(function["arguments"], str)
            named["arguments"] = json.dumps(said, ensure_ascii=False) if text else said
        whole = {**call, "function": named} if "function" in call else named
        if isinstance(call.get("id"), str):
            whole["id"] = call["id"].replace(function["name"], named["name"])
        calls.append(whole)
    return changed | ({"tool_calls": calls} if calls else {}), marks


def _with_plain_ids(messages: list[Message]) -> list[Message]:
    """With ids of calls that depend on their order alone, of nine letters, as Mistral asks."""
    plain: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or []:
            if isinstance(call.get("id"), str) and ANSWER_SENTINEL not in call["id"]:
                call["id"] = plain.setdefault(call["id"], f"call{len(plain):05}")
        if message.get("tool_call_id") in plain:
            message["tool_call_id"] = plain[message["tool_call_id"]]
    return messages


@lru_cache(maxsize=512)
def _missing(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: str, marks: int, tools: bool
) -> tuple[int, ...]:
    """The sentinels that the template does not write in these messages, JSON text; none where it
    refuses them. `template` is what the answer depends on, for the cache."""
    try:
        given = [DUMMY_TOOL] if tools else None
        text = render(tokenizer, json.loads(messages), tools=given, prompt=False)
    except UserError:
        return ()
    return tuple(i for i in range(marks) if f"{ANSWER_SENTINEL}{i}{ANSWER_SENTINEL}" not in text)
