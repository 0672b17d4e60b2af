"""Split thinking from the answer, so that only the answer is graded.

The markers are those of published chat templates. Thinking is at the start of a turn; a template
may write the opening marker, and the cap may cut the closing one, in which case there is no
answer.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

# Opening marker, and a pattern of the closing marker.
MARKERS: tuple[tuple[str, str], ...] = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "seed:think")),
    ("<mm:think>", "</mm:think>"),
    ("[THINK]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|START_THINKING|>", r"<\|END_THINKING\|>"),  # Command A
    ("<|begin_of_thought|>", r"<\|end_of_thought\|>"),  # OpenThinker
    ("<|channel>thought", r"<channel\|>"),  # Gemma 4
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    # gpt-oss, which answers in a separate message.
    (
        "<|channel|>analysis<|message|>",
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final[^<]*<\|message\|>",
    ),
)
_PATTERNS = tuple((opening, re.compile(closing)) for opening, closing in MARKERS)
_TAGS = "<[◁"  # first characters of markers that are not natural language
_PROMPT_TAIL = 32  # tokens; the longest opening marker has fewer


@dataclass(frozen=True)
class Split:
    """A text split into thinking and answer.

    Attributes:
        thinking: None without thinking.
        answer: "" if the thinking has not ended.
        ended: whether the thinking, if any, has ended.
        before: tokens of the thinking with its markers, set by `split_generation`.
    """

    thinking: str | None
    answer: str
    ended: bool = True
    before: int = 0

    @property
    def facts(self) -> dict[str, str]:
        """Return the keys of a stored row: `thinking`, if there was any."""
        return {} if self.thinking is None else {"thinking": self.thinking}


class GeneratedAnswer(Protocol):
    """An answer without its prompt, such as an `eval.generation.generate.Generation`."""

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...


class GeneratedRow(GeneratedAnswer, Protocol):
    """An answer with its prompt, which may open the thinking."""

    @property
    def prompt_ids(self) -> list[int]: ...


def split_text(text: str, *, prompt: str = "") -> Split:
    """Split a text that holds its markers.

    The opening marker is at the start of the text or at the end of the prompt; a closing marker
    without an opening one ends thinking that started earlier.
    """
    thoughts, rest, opened = [], text, prompt.rstrip()
    while (found := _first_thought(rest, opened)) is not None:
        thought, answer, ended = found
        thoughts.append(thought)
        if not ended:
            return Split("\n\n".join(thoughts), "", ended=False)
        rest, opened = answer, ""
    if not thoughts:
        return Split(None, text)
    return Split("\n\n".join(filter(None, thoughts)) or None, rest.lstrip())


def split_generation(tokenizer: PreTrainedTokenizerBase, written: GeneratedRow) -> Split:
    """Split a generation, whose markers may be special tokens that its text lacks."""
    tail = _decode(tokenizer, written.prompt_ids[-_PROMPT_TAIL:])
    ids = written.token_ids[:-1] if written.finish_reason == "stop_id" else written.token_ids
    decoded = _decode(tokenizer, ids)
    found = split_text(decoded, prompt=tail)
    if found.answer == decoded:
        return Split(None, written.text)
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    answer = _without(found.answer, special)
    if written.finish_reason == "stop_string":  # before which the text ends
        cut = len(_without(decoded, special)) - len(written.text)
        answer = answer[: max(0, len(answer) - cut)]
    thinking = None if found.thinking is None else _without(found.thinking, special).strip()
    return Split(thinking or None, answer, found.ended, _place(tokenizer, ids, found, tail))


def answer_start(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> int | None:
    """Return where the answer starts in the text without special tokens of a running row.

    None while it thinks; thinking without an opening marker is only known at its closing one.
    """
    tail = _decode(tokenizer, prompt_ids[-_PROMPT_TAIL:])
    decoded = _decode(tokenizer, token_ids)
    found = split_text(decoded, prompt=tail)
    if found.answer == decoded:
        return 0
    if not found.ended:
        return None
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return len(_without(decoded, special)) - len(_without(found.answer, special))


def _first_thought(text: str, prompt: str) -> tuple[str, str, bool] | None:
    """Return (thought, rest, whether it has ended) of thinking at the start of a text, or None."""
    head = text.lstrip()
    for opening, closing in _PATTERNS:
        begun = head[len(opening) :] if head.startswith(opening) else None
        if begun is None and prompt.endswith(opening):
            begun = head
        if begun is None and opening[0] in _TAGS:
            end = closing.search(head)
            if end is not None and opening not in head[: end.start()]:
                begun = head
        if begun is None:
            continue
        end = closing.search(begun)
        if end is None:
            return begun.strip(), "", False
        return begun[: end.start()].strip(), begun[end.end() :], True
    return None


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _without(text: str, special: Sequence[str]) -> str:
    for token in special:
        text = text.replace(token, "")
    return text


def _place(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], found: Split, prompt: str
) -> int:
    """Return the fewest tokens that hold all of the thinking with its markers."""
    if not found.ended:
        return len(ids)

    def holds_thinking(count: int) -> bool:
        part = split_text(_decode(tokenizer, ids[:count]), prompt=prompt)
        return part.ended and part.thinking == found.thinking

    return bisect_left(range(len(ids)), True, key=holds_thinking)
