"""Prompts for sampling and evaluation: conversations that end with a user turn."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sft.config.sections import RepetitionSection, Source
from sft.data.field_names import META, PAIRS, present_pairs
from sft.data.fields import UnreadFields
from sft.data.formats import MappedRow, read_chats, read_question, unread_content
from sft.data.loss_marks import without_marks
from sft.data.messages import CHATS, check_turns, ends_with_user_turn, read_messages
from sft.data.records import RowError
from sft.data.sources import read_rows
from sft.data.unsupported import check_no_media, check_no_media_placeholders
from sft.errors import UserError
from sft.schema import ChatMessage

STRUCTURED = {*CHATS, "instances", "message_tree_id"}
REMEDY = (
    "call it context if it belongs to the question, else remove it from the file (in pairs.prompts "
    "columns={{context: {name}}} or ignore=[{names}] do it)"
)
LABELS = (*META, "category", "kind")
# Fields that are answers, which a prompt leaves out.
ANSWER = re.compile(
    r"(answer|response|output|completion|solution|target|chosen|rejected|explanation|rationale"
    r"|continuation|test|chain_of_thought)s?(_?[0-9a-z])?$"
)


def read_prompts(
    sources: Sequence[Source], *, reference_error: Callable[[Any], str | None] | None = None
) -> list[dict[str, Any]]:
    """Read rows of {"messages", "id", "category", "language", "reference"?}.

    A row of the file is a list of messages that ends with a user turn, a question with the fields
    that belong to it, or any chat that SFT reads, whose last answer is cut off. Repeated prompts
    are left out.

    Args:
        reference_error: returns the problem with a row's reference, or None.

    Raises:
        UserError: the first row that is no prompt or whose reference has a problem, with file and
            line; or a field with content that no format reads.
    """
    rows: dict[str, dict[str, Any]] = {}
    for source in sources:
        unread = UnreadFields(source.ignore)
        for item in read_rows(source):
            if isinstance(item, RowError):
                raise item
            messages = _prompt_messages(item)
            content = unread_content(item, messages)
            lost = {name: text for name, text in content.items() if not ANSWER.search(name.lower())}
            unread.add(item.origin, lost)
            labels = {k: item.fields[k] for k in LABELS if item.fields.get(k) is not None}
            reference = labels.get("reference", "")
            # Files with references for some rows leave the others empty.
            filled = reference not in ("", [], {})
            if reference_error and filled and (problem := reference_error(reference)):
                raise UserError(f"{item.origin}: {problem}")
            kind = labels.pop("kind", None)
            category = labels.pop("category", None) or kind or source.kind or "all"
            row = {"messages": messages, "category": category, "language": ""} | labels
            row["id"] = str(row.get("id", f"{len(rows)}"))
            rows.setdefault(str([(m["role"], m["content"]) for m in messages]), row)
        unread.check(remedy=REMEDY)
    if sources and not rows:
        raise UserError(f"{sources[0].path}: no prompts; a file of prompts holds at least one")
    return list(rows.values())


def read_repetition_prompts(section: RepetitionSection) -> list[dict[str, Any]]:
    """Read the prompts of the section, up to its limit."""
    assert section.prompts is not None
    return evenly_spaced(read_prompts([Source(section.prompts)]), section.limit)


def evenly_spaced(rows: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """Return `count` rows at equal distances; all if there are fewer, or `count` is None."""
    # Not the first rows: files of prompts group them by kind.
    count = len(rows) if count is None else min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _prompt_messages(row: MappedRow) -> list[ChatMessage]:
    fields, origin = row.fields, row.origin
    check_no_media(fields, origin)
    answered = fields.keys() & {"response", "completion"}
    turns: list[ChatMessage] = []
    if isinstance(fields.peek("prompt"), str) and not answered:
        turns = read_question(fields, origin)
    elif isinstance(messages := fields.peek("messages"), list) and ends_with_user_turn(messages):
        turns = read_messages(fields["messages"], origin, where="messages")
    elif not (fields.keys() & STRUCTURED or present_pairs(PAIRS, fields)):
        turns = read_question(fields, origin)
    if not turns:
        turns = read_chats(row)[0].messages
        last = max(i for i, message in enumerate(turns) if message["role"] == "assistant")
        return without_marks(turns[:last])
    check_no_media_placeholders(turns, origin)
    check_turns(turns, origin)
    return without_marks(turns)
