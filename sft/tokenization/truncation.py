"""Handles rows beyond a length: drops them, cuts them, or splits them at turns.

Chats are split as messages before tokenization, so that every piece is rendered as a complete chat;
cutting, and the windows of a plain text, work on tokens. A cut answer never gets an end-of-turn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, tee
from typing import Any

from sft.chat_template.encoding import EncodedChat, encode_chats
from sft.chat_template.render import Message
from sft.data.loss_marks import is_trained
from sft.errors import UserError


@dataclass(frozen=True)
class TruncatedRow:
    """The rest of a token row; `cut`: its last trained turn is incomplete."""

    input_ids: list[int]
    trained: list[bool]
    cut: bool = False


def truncate_row(
    row: EncodedChat, *, max_length: int | None, too_long: str, bos: int | None
) -> list[TruncatedRow]:
    """Return the row in at most `max_length` tokens: unchanged, cut, in windows, or [].

    For "q ? a b <end>" of which "a b <end>" is trained, and 4 tokens: `too_long` "drop" and "split"
    give [] (`encode_and_split` splits chats), "truncate" gives "q ? a b", cut. `bos` is repeated at
    the start of each window of a text that begins with it.
    """
    ids, trained = row.input_ids, row.trained
    if max_length is None or len(ids) <= max_length:
        return [TruncatedRow(ids, trained)]
    if too_long == "truncate":
        if not any(trained[:max_length]):
            return []
        end = max(i for i in range(max_length) if trained[i]) + 1
        return [TruncatedRow(ids[:end], trained[:end], cut=end == max_length and trained[end])]
    if too_long == "split" and is_text(trained):
        return _split_text(ids, size=max_length, bos=bos)
    return []


def is_text(trained: Sequence[bool]) -> bool:
    """Return whether a row is a plain text: all tokens but the first are trained."""
    return len(trained) > 1 and not trained[0] and all(trained[1:])


def count_turns(trained: Sequence[bool]) -> int:
    """Return the number of trained turns: unbroken runs of trained tokens."""
    return sum(flag and not before for before, flag in pairwise([False, *trained]))


def _split_text(ids: list[int], *, size: int, bos: int | None) -> list[TruncatedRow]:
    """Return windows in which every token of the text but the first is trained once."""
    pieces, start = [], 1
    while start < len(ids):
        # Without BOS the token before the window is the context of its first prediction.
        context = ids[:1] if ids[0] == bos else ids[start - 1 : start]
        chunk = context + ids[start : start + size - 1]
        start += size - 1
        trained = [False] + [True] * (len(chunk) - 1)
        pieces.append(TruncatedRow(chunk, trained, cut=start < len(ids)))
    return pieces


def encode_and_split(
    tokenizer: Any, chats: Iterable[dict[str, Any]], *, turns: str, split_at: int | None
) -> Iterator[tuple[dict[str, Any], EncodedChat | UserError]]:
    """Yield each chat with its tokens; a chat longer than `split_at` in several pieces, in order.

    A piece, marked by the key "piece", has the system turn and as many rounds as fit; a longer
    round is kept for `truncate_row`. `turns` are the assistant turns to train: "all" that the
    template writes alike as history, the "last" (of the last piece), or "each" in its own row after
    its own prompt; the last of these rows counts the turns without a row in `untrained_turns`.
    """
    if turns == "each":
        yield from _encode_each_turn(tokenizer, chats, split_at=split_at)
        return
    chats, again = tee(chats)
    for chat, encoded in zip(chats, encode_chats(tokenizer, again, turns=turns), strict=True):
        if (
            split_at is None
            or isinstance(encoded, UserError)
            or len(encoded.input_ids) <= split_at
            or "text" in chat
            or len(split_rounds(chat["messages"])[1]) == 1
        ):
            yield chat, encoded
            continue
        pieces = _split_chat(tokenizer, chat, turns=turns, size=split_at)
        yield from pieces[-1:] if turns == "last" else pieces


def _encode_each_turn(
    tokenizer: Any, chats: Iterable[dict[str, Any]], *, split_at: int | None
) -> Iterator[tuple[dict[str, Any], EncodedChat | UserError]]:
    """Yield a row for each assistant turn: the chat up to it, with its last turn trained."""
    chats, again = tee(chats)
    rows = (row for chat in again for row in expand_turns(chat))
    encoded = encode_and_split(tokenizer, rows, turns="last", split_at=split_at)
    for chat in chats:
        *earlier, (last, found) = islice(encoded, len(expand_turns(chat)))
        marked = sum(not is_trained(message) for message in chat.get("messages", []))
        if isinstance(found, UserError):  # the complete chat is invalid
            yield last, found
            continue
        kept = [(row, each) for row, each in earlier if isinstance(each, EncodedChat)]
        for row, each in kept:
            yield row, replace(each, untrained_turns=0)
        yield last, replace(found, untrained_turns=marked + len(earlier) - len(kept))


def expand_turns(chat: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chat up to each trainable assistant turn; [chat] without one at its end."""
    messages = chat.get("messages", [])
    ends = [i for i, m in enumerate(messages, 1) if m.get("role") == "assistant" and is_trained(m)]
    if not ends or ends[-1] != len(messages):
        return [chat]
    return [chat | {"messages": messages[:end]} for end in ends]


def _split_chat(
    tokenizer: Any, chat: dict[str, Any], *, turns: str, size: int
) -> list[tuple[dict[str, Any], EncodedChat | UserError]]:
    """Return pieces of complete rounds, filled from the end of the chat."""
    lead, rounds = split_rounds(chat["messages"])
    pieces: list[tuple[dict[str, Any], EncodedChat | UserError]] = []
    end = len(rounds)
    while end:
        best = None
        for start in reversed(range(end)):
            messages = lead + [m for r in rounds[start:end] for m in r]
            piece = chat | {"messages": messages, "piece": True}
            (encoded,) = encode_chats(tokenizer, [piece], turns=turns)
            too_long = isinstance(encoded, EncodedChat) and len(encoded.input_ids) > size
            if best is None or not too_long:
                best = (start, piece, encoded)
            if too_long:
                break
        assert best is not None
        end, piece, encoded = best
        if any(m["role"] == "assistant" and is_trained(m) for m in piece["messages"]):
            pieces.insert(0, (piece, encoded))
    return pieces


def split_rounds(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Return the system turn and the rounds; a round begins at a user turn after an answer."""
    lead = [m for m in messages[:1] if m["role"] == "system"]
    rounds: list[list[Message]] = []
    for message in messages[len(lead) :]:
        answered = bool(rounds) and rounds[-1][-1]["role"] == "assistant"
        if not rounds or (answered and message["role"] == "user"):
            rounds.append([])
        rounds[-1].append(message)
    return lead, rounds
