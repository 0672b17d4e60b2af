"""An encoded chat as text in which the trained tokens stand out, by color or by brackets."""

import os
from collections.abc import Callable, Iterator
from typing import IO, Any

from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import EncodedChat
from sft.run.terminal import safe


def colored(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> str:
    """An encoded chat as text for a terminal: trained tokens green, context dim."""
    return "".join(
        f"\x1b[{'32' if trained else '2'}m{text}\x1b[0m"
        for text, trained in _spans(tokenizer, chat)
    )


def bracketed(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> str:
    """An encoded chat as text for a file or a pipe: trained tokens in ⟦ ⟧."""
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in _spans(tokenizer, chat))


def marking(stream: IO[str]) -> tuple[Callable[[Any, EncodedChat], str], str]:
    """How trained tokens are shown on `stream`, and that in words; colors on a terminal alone,
    unless $NO_COLOR asks for none (https://no-color.org)."""
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        return colored, "green"
    return bracketed, "in ⟦ ⟧"


def _spans(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> Iterator[tuple[str, bool]]:
    """Texts of the longest spans that are trained, or not, as a terminal may get them."""
    start = 0
    for i in range(1, len(chat.input_ids) + 1):
        if i == len(chat.input_ids) or chat.trained[i] != chat.trained[start]:
            text = str(tokenizer.decode(chat.input_ids[start:i], skip_special_tokens=False))
            yield safe(text), chat.trained[start]
            start = i
