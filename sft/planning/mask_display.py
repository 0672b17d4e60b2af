"""Show an encoded chat as text with its trained tokens marked, by color or by brackets."""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import IO

from transformers import PreTrainedTokenizerBase

from sft.chat_template.encoding import EncodedChat
from sft.run.terminal import raw, safe


def colored(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> str:
    """Return an encoded chat as text for a terminal: trained tokens green, context dim."""
    return "".join(
        f"\x1b[{'32' if trained else '2'}m{text}\x1b[0m"
        for text, trained in _spans(tokenizer, chat)
    )


def bracketed(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> str:
    """Return an encoded chat as text for a file or a pipe: trained tokens in ⟦ ⟧."""
    return "".join(f"⟦{text}⟧" if trained else text for text, trained in _spans(tokenizer, chat))


def marking(stream: IO[str]) -> tuple[Callable[[PreTrainedTokenizerBase, EncodedChat], str], str]:
    """Return the function that marks trained tokens on `stream`, and a description of the marks.

    Colors are for terminals, unless $NO_COLOR is set (https://no-color.org).
    """
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        return colored, "green"
    return bracketed, "in ⟦ ⟧"


def print_chat(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> None:
    """Print an encoded chat to stdout with its trained tokens marked."""
    mark, _ = marking(sys.stdout)
    print(mark(tokenizer, chat), file=raw(sys.stdout))


def _spans(tokenizer: PreTrainedTokenizerBase, chat: EncodedChat) -> Iterator[tuple[str, bool]]:
    """Yield the text of each maximal span of trained or of context tokens, safe for a terminal."""
    tokens = zip(chat.input_ids, chat.trained, strict=True)
    # Decoded span by span: single tokens of a byte-level tokenizer may be parts of a character.
    for trained, span in groupby(tokens, key=lambda token: token[1]):
        text = tokenizer.decode([token for token, _ in span], skip_special_tokens=False)
        yield safe(str(text)), trained
