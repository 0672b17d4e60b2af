"""Thinking split off from what a model wrote, so that only its answer is graded.

The markers are those that published chat templates write. A model's thinking stands at the head of
its turn; a template may write the opening marker itself, and the cap may leave out the closing one,
in which case there is no answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Opening marker, and a pattern of what closes it.
MARKERS: tuple[tuple[str, str], ...] = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "seed:think")),
    ("<mm:think>", "</mm:think>"),
    ("[THINK]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|START_THINKING|>", r"<\|END_THINKING\|>"),  # Command A
    ("<|begin_of_thought|>", r"<\|end_of_thought\|>"),  # OpenThinker
    ("<|channel>thought", r"<channel\|>"),  # Gemma 4
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    # gpt-oss, which answers in a message of its own.
    (
        "<|channel|>analysis<|message|>",
        r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final[^<]*<\|message\|>",
    ),
)
_PATTERNS = tuple((opening, re.compile(closing)) for opening, closing in MARKERS)
_TAGS = "<[◁"  # how markers begin that are no words of a language
_PROMPT_TAIL = 32  # tokens; the longest opening marker has fewer


@dataclass(frozen=True)
class Split:
    """What a model wrote, in two.

    Attributes:
        thinking: None where it did not think.
        answer: "" where the thinking has not ended.
        ended: whether the thinking, if any, has ended.
        before: of `split_generation`: tokens of the thinking, its markers included.
    """

    thinking: str | None
    answer: str
    ended: bool = True
    before: int = 0

    @property
    def facts(self) -> dict[str, str]:
        """What a stored row holds of it beside the answer: `thinking`, if there was any."""
        return {} if self.thinking is None else {"thinking": self.thinking}


class Answer(Protocol):
    """An answer without its prompt: an `eval.generation.generate.Generation`, or anything with
    these."""

    @property
    def token_ids(self) -> list[int]: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> str: ...


class Written(Answer, Protocol):
    """An answer with its prompt, which may open the thinking."""

    @property
    def prompt_ids(self) -> list[int]: ...


def split_text(text: str, *, prompt: str = "") -> Split:
    """Split a text that holds its markers.

    Thinking begins at the head of the text or at the end of the prompt, which may hold the opening
    marker; a closing marker without any opening one ends thinking that began unseen.
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


def split_generation(tokenizer: Any, written: Written) -> Split:
    """Split a generation; markers may be special tokens, which its text lacks."""
    tail = tokenizer.decode(written.prompt_ids[-_PROMPT_TAIL:], skip_special_tokens=False)
    ids = written.token_ids[:-1] if written.finish_reason == "stop_id" else written.token_ids
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    found = split_text(whole, prompt=tail)
    if found.answer == whole:
        return Split(None, written.text)
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    answer = _without(found.answer, special)
    if written.finish_reason == "stop_string":  # before which the text ends
        cut = len(_without(whole, special)) - len(written.text)
        answer = answer[: max(0, len(answer) - cut)]
    thinking = None if found.thinking is None else _without(found.thinking, special).strip()
    return Split(thinking or None, answer, found.ended, _place(tokenizer, ids, found, tail))


def answer_start(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> int | None:
    """Where the answer begins in the text, without special tokens, of a row that is being written;
    None as long as it thinks. Thinking that began unseen is known from its closing marker on."""
    tail = tokenizer.decode(prompt_ids[-_PROMPT_TAIL:], skip_special_tokens=False)
    whole = tokenizer.decode(token_ids, skip_special_tokens=False)
    found = split_text(whole, prompt=tail)
    if found.answer == whole:
        return 0
    if not found.ended:
        return None
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return len(_without(whole, special)) - len(_without(found.answer, special))


def _first_thought(text: str, prompt: str) -> tuple[str, str, bool] | None:
    """(thought, what follows, whether it has ended) of the thinking at the head of a text."""
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


def _without(text: str, special: Sequence[str]) -> str:
    for token in special:
        text = text.replace(token, "")
    return text


def _place(tokenizer: Any, ids: Sequence[int], found: Split, prompt: str) -> int:
    """The fewest tokens that hold all of the thinking with its markers."""
    if not found.ended:
        return len(ids)
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        part = split_text(tokenizer.decode(ids[:middle], skip_special_tokens=False), prompt=prompt)
        if part.ended and part.thinking == found.thinking:
            high = middle
        else:
            low = middle + 1
    return low
