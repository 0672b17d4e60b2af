"""Open-Assistant's message trees, nested or one message a row, as conversations."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sft.data.json_values import number_of
from sft.data.messages import ROLES, read_role, text_field
from sft.data.records import Record, RowError, wrong_type
from sft.errors import UserError
from sft.schema import ChatMessage

TEXTS = ("text", "content")
# Fields of a message that is a row; further fields describe it.
MESSAGE_FIELDS = ("message_id", "parent_id", "role", "rank", "message_tree_id", *TEXTS)
# Fields by which a row with a role is more than one message.
CHAT_FIELDS = {
    *("messages", "conversations", "conversation", "prompt", "instruction", "question"),
    *("response", "completion", "output", "answer", "chosen", "rejected", "history"),
}


def assemble_trees(records: Iterator[Record | RowError]) -> Iterator[Record | RowError]:
    """Assemble records that are single messages, in any order, into one record for each tree.

    A tree has the fields {"message_tree_id", "prompt": {"role", "text", "rank", "replies": [...]}}
    and those that describe its first message. Deleted messages and their replies are left out and
    counted. Other records pass unchanged, before all trees.
    """
    nodes: dict[str, dict[str, Any]] = {}
    sources: dict[str, Record] = {}
    has_parents = False
    for record in records:
        if isinstance(record, RowError) or not _is_message(record.fields):
            yield record
            continue
        fields, number = record.fields, record.fields.get("message_id")
        if number in (None, ""):  # CSV has no null
            raise _unrelated(record)
        has_parents = has_parents or "parent_id" in fields
        if str(number) in nodes:
            yield _row_error(record, "message twice", f"message_id {number} occurs twice")
            continue
        text = next((fields[name] for name in TEXTS if fields.get(name) is not None), None)
        node = {"role": fields["role"], "text": text, "rank": fields.get("rank"), "replies": []}
        nodes[str(number)], sources[str(number)] = node, record
    if nodes and not has_parents:
        raise _unrelated(next(iter(sources.values())))
    replies = defaultdict(list)
    for number, record in sources.items():
        if not _is_deleted(record):
            replies[_parent(record)].append(number)
    placed: set[str] = set()
    for root in replies[""]:
        pending = [root]
        while pending:
            number = pending.pop()
            placed.add(number)
            nodes[number]["replies"] = [nodes[reply] for reply in replies[number]]
            pending += replies[number]
        rest = {k: v for k, v in sources[root].fields.items() if k not in MESSAGE_FIELDS}
        tree = {"message_tree_id": root, "prompt": nodes[root]}
        yield replace(sources[root], fields=rest | tree)
    for number in sources:
        if number not in placed:
            yield _why_left_out(number, sources)


def _is_message(fields: dict[str, Any]) -> bool:
    role = fields.get("role")
    filled = {name for name, value in fields.items() if value is not None}
    text = any(isinstance(fields.get(name), str) for name in TEXTS)
    return isinstance(role, str) and role in ROLES and text and not filled & CHAT_FIELDS


def _parent(record: Record) -> str:
    """Return the message_id that a message answers; "" for the first message of a tree."""
    parent = record.fields.get("parent_id")
    # pandas writes an empty cell as NaN, which differs from itself.
    return "" if parent is None or parent != parent else str(parent)


def _is_deleted(record: Record) -> bool:
    return str(record.fields.get("deleted")).lower() == "true"


def _why_left_out(number: str, sources: dict[str, Record]) -> RowError:
    record, above = sources[number], [number]
    while True:
        if _is_deleted(sources[above[-1]]):
            subject = "it answers" if len(above) > 1 else "it is"
            detail = f"{subject} a deleted message"
            return _row_error(record, "deleted message", detail, counted=True)
        parent = _parent(sources[above[-1]])
        if parent not in sources:
            detail = f"there is no message {parent!r}, which message {above[-1]!r} answers"
            return _row_error(record, "missing parent", detail)
        if parent in above:
            return _row_error(record, "parents in a circle", f"message {parent!r} answers itself")
        above.append(parent)


def _row_error(record: Record, rule: str, detail: str, *, counted: bool = False) -> RowError:
    remedy = "correct message_id and parent_id or remove the row"
    return RowError(record.origin, rule=rule, detail=detail, remedy=remedy, counted=counted)


def _unrelated(record: Record) -> UserError:
    return UserError(
        f"{record.origin}: the row is a single message (its role is {record.fields['role']!r}), "
        "and no message_id and parent_id identify the message it answers; give files that have "
        "both, or complete conversations (messages), or, if each row is a separate text, "
        "ignore=[role]"
    )


def best_path(root: dict[str, Any], origin: str) -> list[ChatMessage]:
    """Return the path from the root through the best-ranked reply at every step."""
    messages, node = [], root
    while node:
        messages.append(_message(node, origin))
        # Unranked replies (a single one, or too few votes) come after ranked ones, in file order.
        node = min(_replies(node, origin), key=_rank, default={})
    return messages


def all_paths(root: dict[str, Any], origin: str) -> list[list[ChatMessage]]:
    """Return every path from the root to a last answer, in file order."""
    paths: list[list[ChatMessage]] = []
    pending = [(root, [_message(root, origin)])]
    while pending:
        node, path = pending.pop()
        replies = [reply for reply in _replies(node, origin) if _has_answer(reply)]
        if not replies and path[-1]["role"] == "assistant":
            paths.append(path)
        pending += [(reply, [*path, _message(reply, origin)]) for reply in reversed(replies)]
    if not paths:
        raise RowError(
            origin,
            rule="no assistant turn",
            detail="the tree has no assistant turn",
            remedy="add the answer or remove the row",
        )
    return paths


def _has_answer(node: dict[str, Any]) -> bool:
    """Return whether the node or one below it is an assistant turn."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node.get("role") == "assistant":
            return True
        pending += [r for r in node.get("replies") or [] if isinstance(r, dict)]
    return False


def _message(node: dict[str, Any], origin: str) -> ChatMessage:
    return {
        "role": read_role(node.get("role"), origin, where="a message of the tree"),
        "content": text_field(node.get("text"), origin, where="text"),
    }


def _replies(node: dict[str, Any], origin: str) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise wrong_type(origin, "replies", replies, "a list of messages")
    return [reply for reply in replies if isinstance(reply, dict)]


def _rank(node: dict[str, Any]) -> float:
    rank = number_of(node.get("rank"))  # CSV writes it as text, pandas an empty one as NaN
    return math.inf if rank is None or math.isnan(rank) else rank
