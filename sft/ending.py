"""How a chat template ends an assistant turn, and which tokens control a chat."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from sft.config import UserError
from sft.render import render

# Private-use characters: no template looks for them and no tokenizer's special token holds them.
ASKED, SAID = "\ue002", "\ue003"
ANY_TOOL = {
    "type": "function",
    "function": {"name": "any", "description": "any", "parameters": {"type": "object"}},
}
SAID_CALL = {"name": SAID, "arguments": {}}
GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


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


def find_ending(tokenizer) -> Ending:
    """How this tokenizer's template ends a turn, found with sentinels and kept.

    Raises:
        UserError: no template, or one that writes no control token behind the answer.
    """
    special = (tokenizer.bos_token, tokenizer.eos_token)
    return _find_ending(tokenizer, template_text(tokenizer), special)


def template_text(tokenizer) -> str:
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
    token = _choose(tokenizer, common_prefix(last, middle), asked) or _choose(
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
    return GENERATION.search(template_text(tokenizer)) is not None


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


def common_prefix(a: str, b: str) -> str:
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
