"""Rows beyond a length: left out, cut without a false ending, or split where a turn begins.

Conversations are split as messages, before they are tokenized, so that every piece is rendered as
a chat of its own; cutting and the windows of a plain text are a matter of tokens.
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
    """What is left of a token row; `cut` says that its last trained turn breaks off."""

    input_ids: list[int]
    trained: list[bool]
    cut: bool = False


def truncate_row(
    row: EncodedChat, *, max_length: int | None, too_long: str, bos: int | None
) -> list[TruncatedRow]:
    """The row in at most `max_length` tokens: as it is, cut or in windows, or not at all.

    For "q ? a b <end>" of which "a b <end>" is trained, and 4 tokens: "drop" and "split" leave
    nothing (`encode_and_split` splits chats), "truncate" leaves "q ? a b", cut.

    Args:
        too_long: drop, truncate or split.
        bos: the id that repeats at the start of each window of a text, where the text has it.
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
    """Whether a token row is a plain text: trained but for its first token, which no chat is."""
    return len(trained) > 1 and not trained[0] and all(trained[1:])


def count_turns(trained: Sequence[bool]) -> int:
    """How many turns of a token row are trained: unbroken runs of trained tokens."""
    return sum(flag and not before for before, flag in pairwise([False, *trained]))


def _split_text(ids: list[int], *, size: int, bos: int | None) -> list[TruncatedRow]:
    """Windows of which each token but the first is trained, once over all of them."""
    pieces, start = [], 1
    while start < len(ids):
        # Without BOS the token before the window is the context of its first prediction.
        context = ids[:1] if ids[0] == bos else ids[start - 1 : start]
        chunk = context + ids[start : start + size - 1]
        start += size - 1
        pieces.append(
            TruncatedRow(chunk, [False] + [True] * (len(chunk) - 1), cut=start < len(ids))
        )
    return pieces


def encode_and_split(
    tokenizer: Any, chats: Iterable[dict[str, Any]], *, turns: str, split_at: int | None
) -> Iterator[tuple[dict[str, Any], EncodedChat | UserError]]:
    """Each chat with its tokens; one longer than `split_at` comes as several, in order.

    A piece, marked by the key "piece", holds the system turn and as many rounds as fit. A round
    that is longer than `split_at` stays as it is and is left to `truncate_row`. Where only the last
    answer is trained, only the last piece counts.

    Args:
        turns: the assistant turns that are trained: "all" of them that the template writes alike as
            history, the "last", or "each" in a row of its own behind its own prompt. Of a row of
            "each", `untrained_turns` counts turns of the chat that have no row, at its last one.
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
    """A row for each assistant turn of each chat: the chat up to it, with its last turn trained."""
    chats, again = tee(chats)
    rows = (row for chat in again for row in expand_turns(chat))
    encoded = encode_and_split(tokenizer, rows, turns="last", split_at=split_at)
    for chat in chats:
        *earlier, (last, found) = islice(encoded, len(expand_turns(chat)))
        marked = sum(not is_trained(message) for message in chat.get("messages", []))
        if isinstance(found, UserError):  # the chat as a whole is wrong
            yield last, found
            continue
        kept = [(row, each) for row, each in earlier if isinstance(each, EncodedChat)]
        for row, each in kept:
            yield row, replace(each, untrained_turns=0)
        yield last, replace(found, untrained_turns=marked + len(earlier) - len(kept))


def expand_turns(chat: dict[str, Any]) -> list[dict[str, Any]]:
    """The chat up to each of its assistant turns but for those marked as not trained; a plain text,
    or a chat without one, as it is."""
    messages = chat.get("messages", [])
    ends = [i for i, m in enumerate(messages, 1) if m.get("role") == "assistant" and is_trained(m)]
    if not ends or ends[-1] != len(messages):
        return [chat]
    return [chat | {"messages": messages[:end]} for end in ends]


def _split_chat(
    tokenizer: Any, chat: dict[str, Any], *, turns: str, size: int
) -> list[tuple[dict[str, Any], EncodedChat | UserError]]:
    """Pieces of whole rounds from the end on, each as long as fits."""
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
    """The system turn, and the rounds behind it: from a user turn to the answer before the next."""
    lead = [m for m in messages[:1] if m["role"] == "system"]
    rounds: list[list[Message]] = []
    for message in messages[len(lead) :]:
        answered = bool(rounds) and rounds[-1][-1]["role"] == "assistant"
        if not rounds or (answered and message["role"] == "user"):
            rounds.append([])
        rounds[-1].append(message)
    return lead, rounds
