"""Finds how a chat template ends an assistant turn, and the control tokens of a tokenizer."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import product
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from sft.chat_template.render import Message, render
from sft.errors import UserError

# Private-use characters: no template searches for them, no special token contains them.
QUESTION_SENTINEL, ANSWER_SENTINEL = "\ue002", "\ue003"
DUMMY_TOOL = {
    "type": "function",
    "function": {"name": "any", "description": "any", "parameters": {"type": "object"}},
}
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True)
class TurnEnd:
    """How the template ends an assistant turn."""

    texts: tuple[str, ...]  # tokens that end a turn: of words, of calls (gpt-oss), and eos
    ids: tuple[int, ...]
    before: str  # from the end of the generation prompt to the content
    after: str  # from the content to the end of the stop token
    # Text that ends a turn but is written only before a generation prompt (Qwen1.5), or the role
    # token of the next turn (`<|user|>`, `<|observation|>` of GLM); else "".
    closing: str
    call_closing: str  # `closing` after a turn of tool calls
    bos: bool  # the conversation begins with BOS

    def closing_of(self, message: Message) -> str:
        """Return the text to add after this assistant message if it is the last."""
        return self.call_closing if message.get("tool_calls") else self.closing


Result = TypeVar("Result")


def cached_by_template(
    function: Callable[[PreTrainedTokenizerBase], Result],
) -> Callable[[PreTrainedTokenizerBase], Result]:
    """Cache results for a tokenizer until its template, BOS, EOS or vocabulary changes."""

    @lru_cache(maxsize=16)
    def cached(tokenizer: PreTrainedTokenizerBase, *state: object) -> Result:
        return function(tokenizer)

    @wraps(function)
    def call(tokenizer: PreTrainedTokenizerBase) -> Result:
        special = tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)
        return cached(tokenizer, template_text(tokenizer), *special)

    return call


def template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template, or all templates of a tokenizer that has several, as one text."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template)


@cached_by_template
def find_turn_end(tokenizer: PreTrainedTokenizerBase) -> TurnEnd:
    """Return how this tokenizer's template ends a turn, found with sentinels.

    Raises UserError if there is no template, or it writes no control token after the answer.
    """
    user = {"role": "user", "content": QUESTION_SENTINEL}
    answer = {"role": "assistant", "content": ANSWER_SENTINEL}
    try:
        single, tools = render(tokenizer, [user, answer], prompt=False), None
    except UserError:
        tools = [DUMMY_TOOL]  # some templates require tools
        single = render(tokenizer, [user, answer], tools=tools, prompt=False)
    after_user, _, last = single.partition(QUESTION_SENTINEL)[2].partition(ANSWER_SENTINEL)
    try:
        double = render(tokenizer, [user, answer, user, answer], tools=tools, prompt=False)
        middle = double.partition(ANSWER_SENTINEL)[2].partition(QUESTION_SENTINEL)[0]
    except UserError:
        double, middle = "", last
    closing = ""
    # Prefer a token that follows both a last and an earlier answer.
    token = _choose_end(tokenizer, common_prefix(last, middle), after_user) or _choose_end(
        tokenizer, last, after_user
    )
    prompted = render(tokenizer, [user, answer], tools=tools, prompt=True)
    header = prompted.removeprefix(single) if prompted.startswith(single) else prompted
    if token is None and prompted.startswith(single) and middle.startswith(header):
        closing, token = header, _choose_end(tokenizer, header, after_user)
    if token is None and double.startswith(single):
        closing, token = _next_role(tokenizer, double.removeprefix(single), header=header)
    if token is None:
        raise UserError(
            "the chat template does not end an assistant turn with a control token (after the "
            f"answer it writes {last[:40]!r}); add eos_token there, name its end-of-turn in "
            "model.add_tokens, or set model.chat_template"
        )
    call_closing, call = _call_ending(tokenizer, user, plain=(closing, token), header=header)
    texts = tuple(dict.fromkeys(text for text in (token, call, tokenizer.eos_token) if text))
    prompt = render(tokenizer, [user], tools=tools, prompt=True)
    return TurnEnd(
        texts=texts,
        ids=tuple(_token_ids(tokenizer, texts)),
        before=single.removeprefix(prompt).partition(ANSWER_SENTINEL)[0],
        after=(last + closing)[: (last + closing).index(token) + len(token)],
        closing=closing,
        call_closing=call_closing,
        bos=bool(tokenizer.bos_token) and single.startswith(tokenizer.bos_token),
    )


def _next_role(
    tokenizer: PreTrainedTokenizerBase, following: str, *, header: str
) -> tuple[str, str | None]:
    """Return the text up to the end of the next turn's role token, and that token, if any."""
    # A role token that is in the assistant's `header` too is not one of the next role only.
    begun = following.lstrip()
    token = next((t for t in control_tokens(tokenizer) if begun.startswith(t)), None)
    if token is None or token in header:
        return "", None
    return following[: following.index(token) + len(token)], token


def _call_ending(
    tokenizer: PreTrainedTokenizerBase, user: Message, *, plain: tuple[str, str], header: str
) -> tuple[str, str | None]:
    forms: tuple[object, ...] = ({}, "{}")
    for tools, arguments in product(([DUMMY_TOOL], None), forms):
        with suppress(UserError):
            return _end_of_call(tokenizer, user, arguments, tools=tools, header=header) or plain
    return plain


def _end_of_call(
    tokenizer: PreTrainedTokenizerBase,
    user: Message,
    arguments: object,
    *,
    tools: list[Any] | None,
    header: str,
) -> tuple[str, str] | None:
    """Return closing and token of a turn of calls, or None; UserError if it takes no such calls."""
    calls = [_call(ANSWER_SENTINEL, arguments)]
    call: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    result = {"role": "tool", "content": "ok", "name": ANSWER_SENTINEL}
    result["tool_call_id"] = calls[0]["id"]
    text = render(tokenizer, [user, call], tools=tools, prompt=False)
    if ANSWER_SENTINEL not in text:
        return None
    tail = text.rpartition(ANSWER_SENTINEL)[2]
    if tokenizer.eos_token in tail:
        return "", tokenizer.eos_token
    token = next((t for t in control_tokens(tokenizer) if tail.rstrip().endswith(t)), None)
    if token is not None and token not in _between_calls(tokenizer, [user, call], tools=tools):
        return "", token
    followed = render(tokenizer, [user, call, result], tools=tools, prompt=False)
    if not followed.startswith(text):
        return None
    closing, token = _next_role(tokenizer, followed.removeprefix(text), header=header)
    return None if token is None else (closing, token)


def _between_calls(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, tools: list[Any] | None
) -> str:
    """Return the text between two calls of one turn; "" if it can have only one call."""
    (first,) = messages[-1]["tool_calls"]
    second = _call(QUESTION_SENTINEL, first["function"]["arguments"])
    both = {**messages[-1], "tool_calls": [first, second]}
    try:
        text = render(tokenizer, [*messages[:-1], both], tools=tools, prompt=False)
    except UserError:
        return ""
    tail = text.rpartition(ANSWER_SENTINEL)[2]
    return tail.partition(QUESTION_SENTINEL)[0] if QUESTION_SENTINEL in tail else ""


def _call(name: str, arguments: object) -> dict[str, Any]:
    # The id has nine letters, as Mistral requires, and contains the name, as Kimi K2 requires.
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": name * 9, "function": function}


def has_generation_tags(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template marks assistant turns with {% generation %}."""
    return GENERATION.search(template_text(tokenizer)) is not None


def _choose_end(tokenizer: PreTrainedTokenizerBase, tail: str, after_user: str) -> str | None:
    tokens = sorted((t for t in control_tokens(tokenizer) if t in tail), key=tail.find)
    # Best eos; then a token that ends user turns too; then the first, which may be a mere marker.
    if tokenizer.eos_token in tokens:
        return str(tokenizer.eos_token)
    return next((t for t in tokens if after_user.lstrip().startswith(t)), next(iter(tokens), None))


def common_prefix(a: str, b: str) -> str:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return a[:length]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of the special tokens, sorted."""
    # Unknown text becomes the unknown token, so it controls nothing; unless it is BOS or EOS, too
    # (GPT-2, whose bytes leave nothing unknown).
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special |= set(tokenizer.all_special_tokens)
    return sorted(special - ({tokenizer.unk_token} - {tokenizer.bos_token, tokenizer.eos_token}))


@cached_by_template
def control_pattern(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], dict[str, int]]:
    """Return a pattern of the control tokens, longest first, and their ids."""
    tokens = sorted(control_tokens(tokenizer), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
    return pattern, dict(zip(tokens, _token_ids(tokenizer, tokens), strict=True))


def _token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    assert isinstance(ids, list)  # typed upstream as one id or a list
    return ids
