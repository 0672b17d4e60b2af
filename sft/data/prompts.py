"""Prompts for sampling and measuring: conversations that wait for an answer."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sft.config.sections import RepetitionSection, Source
from sft.data.field_names import META, PAIRS, held
from sft.data.fields import UnreadFields
from sft.data.formats import MappedRow, read_chats, read_question, unread_content
from sft.data.loss_marks import without_marks
from sft.data.messages import CHATS, ROLES, Message, check_turns, is_chat, read_messages
from sft.data.records import RowError
from sft.data.sources import read_rows
from sft.data.unsupported import check_no_media, check_no_media_placeholders
from sft.errors import UserError

SEVERAL = {*CHATS, "instances", "message_tree_id"}
REMEDY = (
    "call it context if it belongs to the question, else remove it from the file (in pairs.prompts "
    "columns={{context: {name}}} or ignore=[{names}] do it)"
)
LABELS = (*META, "category", "kind")
ANSWER = re.compile(
    r"(answer|response|output|completion|solution|target|chosen|rejected|explanation|rationale"
    r"|continuation|test|chain_of_thought)s?(_?[0-9a-z])?$"
)


def read_prompts(
    sources: Sequence[Source], *, reference_flaw: Callable[[Any], str | None] | None = None
) -> list[dict[str, Any]]:
    """Rows of {"messages", "id", "category", "language"} and, where the file has it, "reference".

    A row is a list of messages that ends with a user turn, a question with the fields that belong
    to it, or any chat that SFT reads, whose last answer is cut off. Prompts that repeat an earlier
    one are left out.

    Args:
        reference_flaw: given the reference of a row, returns what is wrong with it, or None.

    Raises:
        UserError: one sentence with file and line for the first row that is neither or whose
            reference is flawed, or for a field with content that nothing read.
    """
    rows: dict[str, dict[str, Any]] = {}
    for source in sources:
        unread = UnreadFields(source.ignore)
        for item in read_rows(source):
            if isinstance(item, RowError):
                raise item
            record = item[1]
            messages = _waiting(record)
            unread.add(record.origin, _lost(record, messages))
            labels = {k: record.fields[k] for k in LABELS if record.fields.get(k) is not None}
            reference = labels.get("reference", "")
            # Files with references for some rows leave the others empty.
            if (
                reference_flaw
                and reference not in ("", [], {})
                and (problem := reference_flaw(reference))
            ):
                raise UserError(f"{record.origin}: {problem}")
            category = labels.pop("category", None) or labels.pop("kind", None) or source.kind
            labels.pop("kind", None)
            row = {"messages": messages, "category": category or "all", "language": ""} | labels
            row["id"] = str(row.get("id", f"{len(rows)}"))
            rows.setdefault(str([(m["role"], m["content"]) for m in messages]), row)
        unread.check(remedy=REMEDY)
    if sources and not rows:
        raise UserError(f"{sources[0].path}: no prompts; a file of prompts holds at least one")
    return list(rows.values())


def read_repetition_prompts(section: RepetitionSection) -> list[dict[str, Any]]:
    """The prompts that the section names, or those of them that its limit leaves.

    Raises:
        UserError: they cannot be read.
    """
    assert section.prompts is not None
    return evenly_spaced(read_prompts([Source(section.prompts)]), section.limit)


def evenly_spaced(rows: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """`count` rows at equal distances, since files of prompts have their kinds in blocks; all rows
    where there are no more, or `count` is None."""
    count = len(rows) if count is None else min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _waiting(row: MappedRow) -> list[Message]:
    fields, origin = row.fields, row.origin
    check_no_media(fields, origin)
    answered = fields.keys() & {"response", "completion"}
    if isinstance(fields.peek("prompt"), str) and not answered:
        turns = read_question(fields, origin)
    elif isinstance(fields.peek("messages"), list) and _ends_asking(fields.peek("messages")):
        turns = read_messages(fields["messages"], origin, where="messages")
    elif not (fields.keys() & SEVERAL or held(PAIRS, fields)) and read_question(fields, origin):
        turns = read_question(fields, origin)
    else:
        turns = read_chats(row)[0].messages
        last = max(i for i, message in enumerate(turns) if message["role"] == "assistant")
        return without_marks(turns[:last])
    check_no_media_placeholders(turns, origin)
    check_turns(turns, origin)
    return without_marks(turns)


def _ends_asking(messages: list[Any]) -> bool:
    """Whether the last of the messages is the user's."""
    last = messages[-1] if messages else {}
    return is_chat(last) and ROLES[str(last.get("role", last.get("from")))] == "user"


def _lost(row: MappedRow, messages: Sequence[Message]) -> dict[str, str]:
    """The fields with text that nothing read, but for answers, which a prompt goes without."""
    lost = unread_content(row, messages)
    return {name: text for name, text in lost.items() if not ANSWER.search(name.lower())}
