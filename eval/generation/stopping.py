"""Stop rules of generation: a stop id, a stop string, the cap, or a loop.

A stop string ends an answer, not the thinking before it (`eval.generation.thinking`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from eval.generation.thinking import answer_start

# Steps between checks for stop strings and loops; a check is the only synchronization on GPUs.
CHECK_EVERY = 8

FinishReason = Literal["stop_id", "stop_string", "cap", "loop"]

RowEnd = tuple[list[int], str, FinishReason]
Ended = tuple[int, list[int], str, FinishReason]  # with its slot


@dataclass(frozen=True)
class StopRule:
    """Decides from the token ids when a row ends. A slot is the index of its prompt."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Sequence[int]]
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    stop_when: Callable[[list[int]], bool] | None

    def verdict(self, tokens: list[int], *, slot: int, ended: bool, suspect: bool) -> RowEnd | None:
        """Return tokens, text and reason of a row that has ended, or None.

        Args:
            ended: the last token is a stop id or the last one within the cap.
            suspect: the row may hold a stop string, see `suspects`.
        """
        if suspect and (cut := self.cut(tokens, slot=slot)) is not None:
            return *cut, "stop_string"
        if ended:
            reason: FinishReason = "stop_id" if tokens[-1] in self.stop_ids else "cap"
            return tokens, self.text(tokens), reason
        if self.stop_when is not None and self.stop_when(tokens):
            return tokens, self.text(tokens), "loop"
        return None

    def replay(self, tokens: list[int], *, slot: int, ended: bool) -> RowEnd | None:
        """Return the verdict on tokens of another engine, checked at the steps of `generate`."""
        for step in range(CHECK_EVERY, len(tokens) + CHECK_EVERY, CHECK_EVERY):
            seen = tokens[:step]
            (suspect,) = self.suspects([seen])
            last = ended and step >= len(tokens)
            found = self.verdict(seen, slot=slot, ended=last, suspect=suspect)
            if found is not None:
                return found
        return None

    def suspects(self, rows: Sequence[list[int]]) -> list[bool]:
        """Return which rows may have completed a stop string in the last steps."""
        if not self.stop_strings or not rows:
            return [False] * len(rows)
        # A token has at least one byte, so this tail covers every stop string that ends in it.
        reach = max(len(s.encode()) for s in self.stop_strings) + CHECK_EVERY + 4
        tails = self.tokenizer.batch_decode(
            [row[-reach:] for row in rows], skip_special_tokens=True
        )
        return [any(s in tail for s in self.stop_strings) for tail in tails]

    def cut(self, tokens: list[int], *, slot: int) -> tuple[list[int], str] | None:
        """Return the tokens up to the first stop string's last one, and the text before it."""
        written = tokens[:-1] if tokens and tokens[-1] in self.stop_ids else tokens
        start = answer_start(self.tokenizer, self.prompts[slot], written)
        if start is None:
            return None
        for end in range(max(1, len(tokens) - CHECK_EVERY), len(tokens) + 1):
            text = self.text(tokens[:end])
            found = [at for s in self.stop_strings if (at := text.find(s, start)) >= 0]
            if found:
                return tokens[:end], text[: min(found)]
        return None

    def text(self, tokens: list[int]) -> str:
        """Decode without special tokens and without a final stop id."""
        if tokens and tokens[-1] in self.stop_ids:
            tokens = tokens[:-1]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
