"""Where the assistant speaks: turns found from the chat template itself, never from its family.

A turn is trained from the end of its generation prompt to the token that ends it, so that the model
learns exactly what it has to produce at generation and where to stop. A turn that the template
writes differently once it is history (thinking removed, another end token) would teach what never
has to be produced; it stays context.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sft.config import UserError
from sft.ending import SAID, SAID_CALL, common_prefix, find_ending
from sft.render import Message, render

REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Turn:
    """An assistant turn: `text[start:end]` of the chat, where `text[:start]` is its prompt."""

    start: int
    end: int


@dataclass(frozen=True)
class Chat:
    """A rendered conversation, the turns to train and the number of turns left as context."""

    text: str
    turns: tuple[Turn, ...]
    untrained: int


def find_turns(
    tokenizer, messages: Sequence[Message], *, tools: list | None = None, last_only: bool = False
) -> Chat:
    """Render a conversation and find what is trained in it.

    Raises:
        UserError: no assistant turn at the end; a message holds a control token; the template
            refuses the conversation, drops or rewrites the last answer, begins it otherwise than
            its own generation prompt, or does not end it.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise UserError("the conversation does not end with an assistant turn; cut or drop the row")
    for number, message in enumerate(messages, start=1):
        if message.get("role") == "assistant" and not any(map(str.strip, _pieces(message))):
            raise UserError(f"message {number} (assistant) is empty; fill it or drop the row")
    ending = find_ending(tokenizer)
    refuse_control_tokens(tokenizer, messages)
    text = render(tokenizer, messages, tools=tools, prompt=False) + ending.closing
    refuse_lost_context(text, messages)
    places = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    turns, untrained = [], 0
    for place in places:
        last = place == places[-1]
        found = None
        if last or not last_only:
            found = _find_turn(tokenizer, messages, place, text=text, tools=tools, ending=ending)
        if isinstance(found, Turn):
            turns.append(found)
        elif last:
            raise UserError(
                f"the last assistant turn cannot be trained: {found}; change the row or the "
                "template (model.chat_template)"
            )
        else:
            untrained += 1
    return Chat(text=text, turns=tuple(turns), untrained=untrained)


def _find_turn(tokenizer, messages, place, *, text, tools, ending) -> Turn | str:
    """The turn at `messages[place]`, or why it cannot be trained."""
    message = messages[place]
    try:
        prompt = render(tokenizer, messages[:place], tools=tools, prompt=True)
    except UserError as error:
        return str(error)
    if not text.startswith(prompt):
        at = len(common_prefix(text, prompt))
        return (
            f"the template's generation prompt goes on with {prompt[at : at + 30]!r} where the "
            f"turn has {text[at : at + 30]!r}"
        )
    start = len(prompt)
    stops = [(text.find(stop, start), stop) for stop in ending.texts]
    begin, stop = min(((at, stop) for at, stop in stops if at >= 0), default=(-1, ""))
    if begin < 0:
        return f"the template does not end it with {' or '.join(map(repr, ending.texts))}"
    end = begin + len(stop)
    content = message.get("content") or ""
    if message.keys() <= {"role", "content"} and text[start:end] in (
        ending.before + content + ending.after,
        ending.before + content.strip() + ending.after,
    ):
        return Turn(start=start, end=end)
    # Not what a plain fresh turn looks like: tool calls, reasoning, or a rewritten answer.
    body = _squeeze(text[start:begin])
    lost = [piece for piece in _pieces(message) if _squeeze(piece) not in body]
    if lost or not _writes(tokenizer, messages, place, tools=tools):
        return f"the template leaves out or rewrites {(lost or _pieces(message))[0][:40]!r}"
    if place + 1 < len(messages):
        # As history the turn must read as it does when it has just been produced.
        fresh = render(tokenizer, messages[: place + 1], tools=tools, prompt=False) + ending.closing
        if not fresh.startswith(text[:end]):
            return "the template writes it differently once it is history"
    return Turn(start=start, end=end)


def _writes(tokenizer, messages, place, *, tools) -> bool:
    """Whether the template writes what the assistant says at `place`, whatever it says.

    A sentinel takes the place of the content, of a turn of tool calls alone that of a name: a short
    answer could be found in the template's own text.
    """
    message = messages[place]
    if message.get("content"):
        message = {**message, "content": SAID}
    else:
        message = {**message, "tool_calls": [{"type": "function", "function": SAID_CALL}]}
    changed = [*messages[:place], message, *messages[place + 1 :]]
    return SAID in render(tokenizer, changed, tools=tools, prompt=False)


def refuse_lost_context(text: str, messages: Sequence[Message]) -> None:
    """An answer is not trained or generated from a context that the template does not show.

    Raises:
        UserError: naming the message that is missing from the rendered text.
    """
    for number, message in enumerate(messages, start=1):
        needed = [message.get("content") or ""]
        if message.get("role") == "assistant":  # its thinking may be left out of the history
            needed = _names(message)
        for piece in needed:
            if not _shows(text, piece):
                what = "tool call" if message.get("role") == "assistant" else "message"
                raise UserError(
                    f"the chat template leaves out the {what} of turn {number} "
                    f"({message.get('role')}: {piece[:30]!r}); change the row or the template"
                )


def _shows(text: str, piece: str) -> bool:
    """Whether the text holds the piece: as it is, but for white space, or quoted as JSON."""
    quoted = json.dumps(piece, ensure_ascii=False)[1:-1]
    return piece.strip() in text or quoted in text or _squeeze(piece) in _squeeze(text)


def _pieces(message: Message) -> list[str]:
    """What the assistant says in this message: content, reasoning, names of the calls."""
    said = [message.get("content")] + [message.get(key) for key in REASONING]
    return [piece for piece in said if piece] + _names(message)


def _names(message: Message) -> list[str]:
    return [call.get("function", call)["name"] for call in message.get("tool_calls") or []]


def _squeeze(text: str) -> str:
    """Without white space, which templates trim and add around content."""
    return "".join(text.split())


def refuse_control_tokens(tokenizer, messages: Sequence[Message]) -> None:
    """BOS or an end-of-turn inside a message would begin or end a turn that nobody wrote.

    Raises:
        UserError: naming the turn and the token.
    """
    forbidden = set(find_ending(tokenizer).texts) | {tokenizer.bos_token}
    forbidden.discard(None)
    for number, message in enumerate(messages, start=1):
        for piece in _pieces(message):
            for token in forbidden:
                if token in piece:
                    raise UserError(
                        f"message {number} ({message.get('role')}) contains {token!r}, which this "
                        "tokenizer reads as a control token; remove it from the text"
                    )
