"""Open-Assistant's trees of messages to conversations."""

from typing import Any

from sft.messages import Message, read_role, text_field, wrong_type
from sft.row_errors import RowError


def best_path(root: dict[str, Any], origin: str) -> list[Message]:
    """Open-Assistant: the best-ranked reply at every step, from the root down."""
    messages, node = [], root
    while node:
        messages.append(_said(node, origin))
        # Unranked replies (a single one, or too few votes) come after ranked ones, in file order.
        node = min(_replies(node, origin), key=lambda r: _rank(r.get("rank")), default={})
    return messages


def all_paths(root: dict[str, Any], origin: str) -> list[list[Message]]:
    """Every path from the root to a last answer, in file order; a question that nobody answered
    ends none."""
    paths: list[list[Message]] = []
    waiting = [(root, [_said(root, origin)])]
    while waiting:
        node, path = waiting.pop()
        replies = [reply for reply in _replies(node, origin) if _answers(reply)]
        if not replies and path[-1]["role"] == "assistant":
            paths.append(path)
        waiting += [(reply, [*path, _said(reply, origin)]) for reply in reversed(replies)]
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


def _said(node: dict[str, Any], origin: str) -> Message:
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
    return rank if isinstance(rank, int) else float("inf")
