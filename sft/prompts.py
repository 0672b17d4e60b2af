"""Prompts for sampling and measuring: conversations that wait for an answer."""

from collections.abc import Sequence
from typing import Any

from sft.config import Source, UserError
from sft.files import Record, read_records
from sft.formats import META, apply_columns, read_chats
from sft.messages import check_turns, read_messages
from sft.row_errors import RowError

LABELS = (*META, "category", "kind")


def read_prompts(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Rows of {"messages", "id", "category", "language"} and, where the file has it, "reference".

    A row is a list of messages that ends with a user turn, a `prompt` text, or any chat that SFT
    reads, whose last answer is cut off. Prompts that repeat an earlier one are left out.

    Raises:
        UserError: one sentence with file and line for the first row that is neither.
    """
    rows: dict[str, dict[str, Any]] = {}
    for source in sources:
        for record in read_records(source):
            if isinstance(record, RowError):
                raise record
            record = apply_columns(record, source.columns)
            messages = _waiting(record)
            labels = {k: record.fields[k] for k in LABELS if record.fields.get(k) is not None}
            category = labels.pop("category", None) or labels.pop("kind", None) or source.kind
            labels.pop("kind", None)
            row = {"messages": messages, "category": category or "all", "language": ""} | labels
            row["id"] = str(row.get("id", f"{len(rows)}"))
            rows.setdefault(str([(m["role"], m["content"]) for m in messages]), row)
    if sources and not rows:
        raise UserError(f"{sources[0].path}: no prompts; a file of prompts holds at least one")
    return list(rows.values())


def _waiting(record: Record) -> list[dict[str, Any]]:
    fields = record.fields
    if isinstance(fields.get("prompt"), str) and not fields.keys() & {"response", "completion"}:
        return [{"role": "user", "content": fields["prompt"]}]
    messages = fields.get("messages")
    if isinstance(messages, list):
        turns = read_messages(messages, record.origin, where="messages")
        if turns and turns[-1]["role"] == "user":
            check_turns(turns, record.origin)
            return turns
    chat = read_chats(record)[0].messages
    last = max(i for i, message in enumerate(chat) if message["role"] == "assistant")
    return chat[:last]
