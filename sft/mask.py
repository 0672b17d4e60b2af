"""Where the assistant speaks: turns found from the chat template itself, never from its family.

A turn is trained from the end of its generation prompt to the token that ends it, so that the model
learns exactly what it has to produce at generation and where to stop. A turn that the template
writes differently once it is history (thinking removed, another end token) would teach what never
has to be produced; it stays context.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2

from sft.config import UserError
from sft.template_date import apply_template
from sft.time_limit import cpu_seconds

Message = dict[str, Any]

# Private-use characters: no template looks for them and no tokenizer's special token holds them.
ASKED, SAID = "\ue002", "\ue003"
ANY_TOOL = {
    "type": "function",
    "function": {"name": "any", "description": "any", "parameters": {"type": "object"}},
}
SAID_CALL = {"name": SAID, "arguments": {}}
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")
REASONING = ("reasoning_content", "thinking", "reasoning")
# What a template's own code can raise on a conversation that its author did not foresee.
TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError, TimeoutError),
)
# Seconds of computing, and characters, that no conversation's text takes.
PATIENCE, LONGEST = 20.0, 1 << 28


@dataclass(frozen=True)
class Ending:
    """How the template ends an assistant turn.

    `before` and `after` surround the content of a fresh turn, from the end of the generation prompt
    to the end of the stop token. `closing` is what the template writes to end a turn only when
    asked for a generation prompt behind it (Qwen1.5), empty where it ends every turn by itself.
    `bos` says whether the conversation begins with the tokenizer's BOS.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    before: str
    after: str
    closing: str
    bos: bool


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


def render(
    tokenizer, messages: Sequence[Message], *, tools: list | None = None, prompt: bool
) -> str:
    """The conversation as the tokenizer's template writes it; `prompt` asks for the next answer.

    Raises:
        UserError: there is no template, it refuses the conversation, or it does not end.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "the tokenizer has no chat template; set model.chat_template to a .jinja file or call "
            "ensure_template first"
        )
    try:
        # transformers renders in jinja2's sandbox, which bounds neither time nor size.
        with cpu_seconds(PATIENCE):
            text = apply_template(
                tokenizer, messages, tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        if len(text) > LONGEST:
            raise ValueError(f"it writes {len(text):,} characters")
        return text
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(str(message.get("role")) for message in messages) or "none"
        raise UserError(
            f"the chat template refuses a conversation of roles {roles}: "
            f"{' '.join(str(error).split())}; change the row or the template"
        ) from None


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
        at = len(_common_prefix(text, prompt))
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


def find_ending(tokenizer) -> Ending:
    """How this tokenizer's template ends a turn, found with sentinels and kept.

    Raises:
        UserError: no template, or one that writes no control token behind the answer.
    """
    special = (tokenizer.bos_token, tokenizer.eos_token)
    return _find_ending(tokenizer, _template_text(tokenizer), special)


def _template_text(tokenizer) -> str:
    """The template, or, where a tokenizer has several by name, all of them as one text."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template)


@lru_cache(maxsize=16)
def _find_ending(tokenizer, template: str, special: tuple) -> Ending:
    """The arguments beside the tokenizer are what the answer depends on, for the cache."""
    user, answer = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    try:
        single, tools = render(tokenizer, [user, answer], prompt=False), None
    except UserError:
        tools = [ANY_TOOL]  # some templates are for tool use alone
        single = render(tokenizer, [user, answer], tools=tools, prompt=False)
    asked, _, last = single.partition(ASKED)[2].partition(SAID)
    try:
        double = render(tokenizer, [user, answer, user, answer], tools=tools, prompt=False)
        middle = double.partition(SAID)[2].partition(ASKED)[0]
    except UserError:
        middle = last
    closing = ""
    # What is written whether or not the conversation goes on; else what ends the conversation.
    token = _choose(tokenizer, _common_prefix(last, middle), asked) or _choose(
        tokenizer, last, asked
    )
    if token is None:
        prompted = render(tokenizer, [user, answer], tools=tools, prompt=True)
        closing = prompted.removeprefix(single)
        if prompted.startswith(single) and middle.startswith(closing):
            token = _choose(tokenizer, closing, asked)
    if token is None:
        raise UserError(
            "the chat template does not end an assistant turn with a token of its own (behind the "
            f"answer it writes {last[:40]!r}); add eos_token there, name its end-of-turn in "
            "model.add_tokens, or set model.chat_template"
        )
    texts = tuple(dict.fromkeys(text for text in (token, tokenizer.eos_token) if text))
    prompt = render(tokenizer, [user], tools=tools, prompt=True)
    return Ending(
        texts=texts,
        ids=tuple(tokenizer.convert_tokens_to_ids(text) for text in texts),
        before=single.removeprefix(prompt).partition(SAID)[0],
        after=(last + closing)[: (last + closing).index(token) + len(token)],
        closing=closing,
        bos=bool(tokenizer.bos_token) and single.startswith(tokenizer.bos_token),
    )


def has_generation_tags(tokenizer) -> bool:
    """Whether the template marks what the assistant says with {% generation %} itself."""
    return GENERATION.search(_template_text(tokenizer)) is not None


def _choose(tokenizer, tail: str, asked: str) -> str | None:
    """The token in `tail` that ends a turn: eos, else one that ends the user's turns as well (text
    `asked` follows them), else the first, since a mere marker may stand before it."""
    found = sorted(
        (tail.find(token), token) for token in control_tokens(tokenizer) if token in tail
    )
    tokens = [token for _, token in found]
    if tokenizer.eos_token in tokens:
        return tokenizer.eos_token
    return next((t for t in tokens if asked.lstrip().startswith(t)), next(iter(tokens), None))


def _common_prefix(a: str, b: str) -> str:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return a[:length]


def control_tokens(tokenizer) -> list[str]:
    """Texts that the tokenizer reads as one special token, in any order.

    The unknown token is none, since unknown text becomes it; unless it begins or ends texts, too
    (GPT-2, whose bytes leave nothing unknown).
    """
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special |= set(tokenizer.all_special_tokens)
    return sorted(special - ({tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token}))


def control_pattern(tokenizer) -> tuple[re.Pattern, dict[str, int]]:
    """A pattern that finds the control tokens in a text, longest first, and their ids."""
    return _control_pattern(tokenizer, len(tokenizer))


@lru_cache(maxsize=16)
def _control_pattern(tokenizer, size: int) -> tuple[re.Pattern, dict[str, int]]:
    tokens = sorted(control_tokens(tokenizer), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
    return pattern, {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}


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
