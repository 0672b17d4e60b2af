"""Converts Open-Assistant's message trees, nested or one message a row, to conversations."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sft.data.messages import ROLES, Message, read_role, text_field
from sft.data.records import Record, RowError, wrong_type
from sft.errors import UserError

TEXTS = ("text", "content")
# Fields of a message that is a row; the others say something about it.
OF_MESSAGE = ("message_id", "parent_id", "role", "rank", "message_tree_id", *TEXTS)
# Fields by which a row with a role is more than one message.
OF_CHATS = frozenset(
    (
        *("messages", "conversations", "conversation", "prompt", "instruction", "question"),
        *("response", "completion", "output", "answer", "chosen", "rejected", "history"),
    )
)


def assemble_trees(records: Iterator[Record | RowError]) -> Iterator[Record | RowError]:
    """Records with those that are single messages of trees put together, as in the Open-Assistant
    datasets on the hub, to a record a tree: {"message_tree_id", "prompt": {"role", "text", "rank",
    "replies": [...]}} with the other fields of its first message.

    Messages may stand in any order. Those that are marked as deleted are left out and counted with
    what answers them. All other records pass; trees come behind them.

    Raises:
        UserError: messages that do not say which one they answer.
    """
    nodes: dict[str, dict[str, Any]] = {}
    sources: dict[str, Record] = {}
    related = False
    for record in records:
        if isinstance(record, RowError) or not _is_message(record.fields):
            yield record
            continue
        fields, number = record.fields, record.fields.get("message_id")
        if number is None:
            raise _unrelated(record)
        related = related or "parent_id" in fields
        if str(number) in nodes:
            yield _row_error(record, "message twice", f"message_id {number} occurs twice")
            continue
        text = next((fields[name] for name in TEXTS if fields.get(name) is not None), None)
        node = {"role": fields["role"], "text": text, "rank": fields.get("rank"), "replies": []}
        nodes[str(number)], sources[str(number)] = node, record
    if nodes and not related:
        raise _unrelated(next(iter(sources.values())))
    replies = defaultdict(list)
    for number, record in sources.items():
        replies[_parent(record)].append(number)
    placed: set[str] = set()
    for root in replies[""]:
        waiting = [] if _is_deleted(sources[root]) else [root]
        while waiting:
            number = waiting.pop()
            placed.add(number)
            below = [reply for reply in replies[number] if not _is_deleted(sources[reply])]
            nodes[number]["replies"] = [nodes[reply] for reply in below]
            waiting += below
        if root in placed:
            rest = {k: v for k, v in sources[root].fields.items() if k not in OF_MESSAGE}
            tree = {"message_tree_id": root, "prompt": nodes[root]}
            yield replace(sources[root], fields=rest | tree)
    for number in sources:
        if number not in placed:
            yield _why_left_out(number, sources)


def _is_message(fields: dict[str, Any]) -> bool:
    role = fields.get("role")
    filled = {name for name, value in fields.items() if value is not None}
    text = any(isinstance(fields.get(name), str) for name in TEXTS)
    return isinstance(role, str) and role in ROLES and text and not filled & OF_CHATS


def _parent(record: Record) -> str:
    """The message_id that a message answers; "" for the first of a tree."""
    parent = record.fields.get("parent_id")
    return "" if parent is None or parent != parent else str(parent)  # NaN: an empty cell in pandas


def _is_deleted(record: Record) -> bool:
    return str(record.fields.get("deleted")).lower() == "true"


def _why_left_out(number: str, sources: dict[str, Record]) -> RowError:
    """Why a message is in no tree, by those above it."""
    record, above = sources[number], [number]
    while True:
        if _is_deleted(sources[above[-1]]):
            below = "it answers" if len(above) > 1 else "it is"
            return _row_error(record, "deleted message", f"{below} a deleted message", counted=True)
        parent = _parent(sources[above[-1]])
        if parent not in sources:
            what = f"there is no message {parent!r}, which message {above[-1]!r} answers"
            return _row_error(record, "missing parent", what)
        if parent in above:
            return _row_error(record, "parents in a circle", f"message {parent!r} answers itself")
        above.append(parent)


def _row_error(record: Record, rule: str, detail: str, *, counted: bool = False) -> RowError:
    remedy = "correct message_id and parent_id or remove the row"
    return RowError(record.origin, rule=rule, detail=detail, remedy=remedy, counted=counted)


def _unrelated(record: Record) -> UserError:
    return UserError(
        f"{record.origin}: the row is a single message (its role is {record.fields['role']!r}), "
        "and no message_id and parent_id say which message it answers; give files that have both, "
        "or whole conversations (messages), or, if each row is a text of its own, ignore=[role]"
    )


def best_path(root: dict[str, Any], origin: str) -> list[Message]:
    """Open-Assistant: the best-ranked reply at every step, from the root down."""
    messages, node = [], root
    while node:
        messages.append(_message(node, origin))
        # Unranked replies (a single one, or too few votes) come after ranked ones, in file order.
        node = min(_replies(node, origin), key=lambda r: _rank(r.get("rank")), default={})
    return messages


def all_paths(root: dict[str, Any], origin: str) -> list[list[Message]]:
    """Every path from the root to a last answer, in file order; an unanswered question
    ends no path."""
    paths: list[list[Message]] = []
    waiting = [(root, [_message(root, origin)])]
    while waiting:
        node, path = waiting.pop()
        replies = [reply for reply in _replies(node, origin) if _answers(reply)]
        if not replies and path[-1]["role"] == "assistant":
            paths.append(path)
        waiting += [(reply, [*path, _message(reply, origin)]) for reply in reversed(replies)]
    if not paths:
        raise RowError(
            origin,
            rule="no assistant turn",
            detail="the tree has no assistant turn",
            remedy="add the answer or remove the row",
        )
    return paths


def _answers(node: dict[str, Any]) -> bool:
    """Whether the node or one below it is an answer."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.get("role") == "assistant":
            return True
        waiting += [r for r in node.get("replies") or [] if isinstance(r, dict)]
    return False


def _message(node: dict[str, Any], origin: str) -> Message:
    return {
        "role": read_role(node.get("role"), origin, where="a message of the tree"),
        "content": text_field(node.get("text"), origin, where="text"),
    }


def _replies(node: dict[str, Any], origin: str) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise wrong_type(origin, "replies", replies, "a list of messages")
    return [reply for reply in replies if isinstance(reply, dict)]


def _rank(rank: Any) -> float:
    """A rank as a number, which a cell of CSV writes as text; infinity where there is none."""
    try:
        number = float(rank)
    except (TypeError, ValueError):
        return math.inf
    return math.inf if math.isnan(number) else number
