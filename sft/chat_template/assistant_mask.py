"""Finds the assistant turns to train from the chat template itself, not from its family.

A trained turn reaches from the end of its generation prompt to the token that ends it: exactly the
text that generation has to produce. A turn that the template writes differently as history (without
thinking, or with another end token) is never generated in that form, so it stays context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sft.chat_template.message_forms import opening_of
from sft.chat_template.render import Message, render
from sft.chat_template.rendering_checks import (
    call_arguments,
    check_context_rendered,
    message_texts,
    with_sentinels,
)
from sft.chat_template.turn_end import TurnEnd, common_prefix, find_turn_end
from sft.data.fields import strip_whitespace
from sft.data.loss_marks import is_trained
from sft.errors import UserError


@dataclass(frozen=True)
class TrainedTurn:
    """An assistant turn: `text[start:end]` of the chat; `text[:start]` is its prompt."""

    start: int
    end: int


@dataclass(frozen=True)
class RenderedChat:
    """A rendered conversation, the turns to train and the number of turns left as context."""

    text: str
    turns: tuple[TrainedTurn, ...]
    untrained: int
    lost: frozenset[int] = frozenset()  # indices of messages whose words the template leaves out


@dataclass(frozen=True)
class UntrainedReason:
    """Why an assistant turn is not trained."""

    reason: str
    lost: bool = False  # the template leaves out words of the turn


def find_trained_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    last_only: bool = False,
) -> RenderedChat:
    """Render a conversation and find the turns to train.

    Raises UserError if the last message is not the assistant's, a message has a control token, or
    the template refuses the conversation or writes the last answer otherwise than in generation.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise UserError("the conversation does not end with an assistant turn; cut or drop the row")
    for number, message in enumerate(messages, start=1):
        if message.get("role") == "assistant" and not any(map(str.strip, message_texts(message))):
            raise UserError(f"message {number} (assistant) is empty; fill it or drop the row")
    ending = find_turn_end(tokenizer)
    check_no_control_tokens(tokenizer, messages)
    text = render(tokenizer, messages, tools=tools, prompt=False)
    text += ending.closing_of(messages[-1])
    check_context_rendered(tokenizer, messages, text=text, tools=tools)
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    places = [i for i in answers if is_trained(messages[i])]
    if not places:
        raise UserError("every assistant turn is marked as not trained; drop the row")
    turns, lost = [], set()
    for place in places[-1:] if last_only else places:
        found = _find_trained_turn(tokenizer, messages, place, text, tools, ending)
        if isinstance(found, TrainedTurn):
            turns.append(found)
        elif place == places[-1]:
            raise UserError(
                f"the last assistant turn cannot be trained: {found.reason}; change the row or the "
                "template (model.chat_template)"
            )
        elif found.lost:
            lost.add(place)
    return RenderedChat(text, tuple(turns), len(answers) - len(turns), frozenset(lost))


def _find_trained_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    place: int,
    text: str,
    tools: list[Any] | None,
    ending: TurnEnd,
) -> TrainedTurn | UntrainedReason:
    message = messages[place]
    try:
        prompt = render(tokenizer, messages[:place], tools=tools, prompt=True)
    except UserError as error:
        return UntrainedReason(str(error))
    if not text.startswith(prompt):
        at = len(common_prefix(text, prompt))
        return UntrainedReason(
            f"the template's generation prompt continues with {prompt[at : at + 30]!r} where the "
            f"turn has {text[at : at + 30]!r}"
        )
    start = len(prompt)
    stops = [(text.find(stop, start), stop) for stop in ending.texts]
    begin, stop = min(((at, stop) for at, stop in stops if at >= 0), default=(-1, ""))
    if begin < 0:
        ends = " or ".join(map(repr, ending.texts))
        return UntrainedReason(f"the template does not end it with {ends}")
    end = begin + len(stop)
    content = message.get("content") or ""
    plain = {f"{ending.before}{words}{ending.after}" for words in (content, content.strip())}
    if message.keys() <= {"role", "content"} and text[start:end] in plain:
        return TrainedTurn(start=start, end=end)
    # The turn has tool calls or thinking, or the template rewrites it. Its thinking may begin with
    # the tag that ends the prompt.
    body = strip_whitespace(text[start - len(opening_of(prompt)) : begin])
    lost = [piece for piece in message_texts(message) if strip_whitespace(piece) not in body]
    # Sentinels too, since a short answer or a function name can occur in the template's own text.
    changed, marks = with_sentinels(message)
    context = [*messages[:place], changed, *messages[place + 1 :]]
    marked = "" if lost else render(tokenizer, context, tools=tools, prompt=False)
    if lost or not all(mark in marked for mark in marks):
        piece = (lost or message_texts(message))[0][:40]
        return UntrainedReason(f"the template leaves out or rewrites {piece!r}", lost=True)
    if place + 1 < len(messages):
        # As history the turn must be equal to the turn as generated.
        fresh = render(tokenizer, messages[: place + 1], tools=tools, prompt=False)
        fresh += ending.closing_of(message)
        if not fresh.startswith(text[:end]):
            return UntrainedReason("the template writes it differently once it is history")
    return TrainedTurn(start=start, end=end)


def check_no_control_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> None:
    """Raise UserError if a message has BOS or an end-of-turn, which would begin or end a turn."""
    forbidden = set(find_turn_end(tokenizer).texts) | {tokenizer.bos_token}
    forbidden.discard(None)
    for number, message in enumerate(messages, start=1):
        for piece in message_texts(message) + call_arguments(message):
            for token in forbidden:
                if token in piece:
                    raise UserError(
                        f"message {number} ({message.get('role')}) contains {token!r}, which this "
                        "tokenizer reads as a control token; remove it from the text"
                    )
