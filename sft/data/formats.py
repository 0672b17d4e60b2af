"""Rows of any known format as chats; the fields decide the format.

Functions raise `RowError` for a row that breaks a rule, and `UserError` for a wrong preset key or a
file of preferences.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sft.data.field_names import (
    ALTERNATING_TEXTS,
    ANSWERS,
    COMPLETE,
    CONTENT,
    KNOWN,
    OUTPUT_PAIRS,
    PAIRS,
    SIDES,
    ULTRACHAT,
    are_texts,
    present_pairs,
    several_answers,
)
from sft.data.fields import Fields, unread_texts
from sft.data.json_reader import is_rows
from sft.data.json_values import column_value, decode_json, field_of, text_column, type_name
from sft.data.loss_marks import TRAINED, mark_turns, read_mark
from sft.data.message_trees import all_paths, best_path
from sft.data.messages import (
    ROUNDS,
    answers_with_unknown_keys,
    as_list,
    as_turns,
    check_chat,
    decode_chats,
    is_chat,
    is_messages,
    read_messages,
    read_tools,
    text_field,
    unknown_keys,
)
from sft.data.question_text import COMPANIONS, full_question
from sft.data.records import Record, RowError, wrong_type
from sft.data.unsupported import (
    check_answer_labels,
    check_no_media,
    check_no_media_placeholders,
    check_not_kto,
)
from sft.errors import UserError
from sft.schema import ChatMessage


@dataclass(frozen=True)
class MappedRow:
    """A record after renaming its fields to those that the formats know."""

    origin: str
    fields: Fields
    raw: Mapping[str, Any]  # the record's own fields


@dataclass(frozen=True)
class ParsedChat:
    """A checked conversation, the tools it may call, and the names of the changes made to it."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None
    changes: tuple[str, ...]


def unread_content(row: MappedRow, messages: Iterable[ChatMessage]) -> dict[str, str]:
    """Return the `unread_texts` of a row, including unknown keys of its messages.

    Call it last: fields that are read later count as unread. `messages` are all that the row gave.
    """
    texts = [message["content"] for message in messages]
    keys = {
        f"{name}[].{key}": values
        for name, value in row.fields.read().items()
        for key, values in unknown_keys(value).items()
    }
    return dict.fromkeys(keys, "") | unread_texts(row.fields.unread() | keys, texts)


def apply_columns(
    record: Record, columns: Mapping[str, str], *, ignore: Collection[str] = ()
) -> MappedRow:
    """Rename fields to names that the formats know, and leave out those of `ignore`.

    Args:
        columns: our name to the file's, or to a part of a field, FIELD[0] or FIELD.KEY. A mapping
            to all fields of a format hides other content, so that a file which fits several
            formats is read as this one.
    """
    present = record.fields
    for ours in columns:
        if ours not in KNOWN:
            near = difflib.get_close_matches(ours, sorted(KNOWN), n=1)
            hint = f"did you mean {near[0]!r}" if near else f"use one of {', '.join(sorted(KNOWN))}"
            raise UserError(f"columns: {ours!r} is no field that a format has; {hint}")
    named = {ours: column_value(present, theirs) for ours, theirs in columns.items()}
    for ours, theirs in columns.items():
        if named[ours] is None and ours not in COMPANIONS and theirs not in present:
            raise RowError(
                record.origin,
                rule="missing column",
                detail=f"there is no field {theirs!r}, which `columns` names, among "
                f"{', '.join(map(str, present)) or 'none'}",
                remedy="correct the source's columns",
            )
    taken = {field_of(present, theirs) for theirs in columns.values()}.union(ignore)
    rest = {name: value for name, value in present.items() if name not in taken}
    covered = set(columns)
    if any(format_fields <= covered for format_fields in COMPLETE):
        covered |= CONTENT | COMPANIONS
    hidden = {name: rest.pop(name) for name in rest.keys() & covered}
    fields = Fields(rest | named, hidden=hidden, cells=record.cells)
    decode_chats(fields)
    return MappedRow(record.origin, fields, raw=record.fields)


def read_text(row: MappedRow) -> str | None:
    """Return the plain text of a row whose only content is its field `text`, or None."""
    if row.fields.filled(CONTENT) != {"text"}:
        return None
    check_no_media(row.fields, row.origin)
    text = text_field(row.fields["text"], row.origin, where="text")
    if not text.strip():
        remedy = "remove the row"
        raise RowError(row.origin, rule="empty text", detail="text is empty", remedy=remedy)
    return text


def read_chats(row: MappedRow, *, tree_paths: str = "best") -> list[ParsedChat]:
    """Return the conversations of a record.

    There is one, except for the instances of a self-instruct seed and, if `tree_paths` is "all",
    the paths of an Open-Assistant tree.
    """
    fields, origin = row.fields, row.origin
    _check_not_preference(fields, origin)
    check_no_media(fields, origin)
    tools, dropped = read_tools(fields.get("tools"), origin)
    chats = []
    for messages in _conversations(fields, origin, tree_paths=tree_paths):
        check_no_media_placeholders(messages, origin)
        mark_turns(messages, fields, origin)
        checked, changes = check_chat(messages, origin)
        chats.append(ParsedChat(messages=checked, tools=tools, changes=(*changes, *dropped)))
    for labeled in (fields, *answers_with_unknown_keys(fields.read().values())):
        check_answer_labels(labeled, origin)
    return chats


def _conversations(fields: Fields, origin: str, *, tree_paths: str) -> list[list[ChatMessage]]:
    lead = _system(fields, origin)
    for name in ("messages", "conversations", "conversation"):
        if name in fields:
            return [_with_system(lead, _read_turns(fields[name], origin, where=name))]
    if "instances" in fields and "instruction" in fields:
        return [lead + pair for pair in _read_instances(fields, origin)]
    if "message_tree_id" in fields and isinstance(decode_json(fields.peek("prompt")), dict):
        root = decode_json(fields["prompt"])
        paths = all_paths(root, origin) if tree_paths == "all" else [best_path(root, origin)]
        return [lead + path for path in paths]
    for question, answer in present_pairs(PAIRS, fields):
        return [lead + _read_pair(fields, question, answer, origin)]
    # A conversation under a name that only this file has.
    lists = [name for name in fields if _is_conversation(name, fields.peek(name))]
    if len(lists) == 1:
        return [_with_system(lead, _read_turns(fields[lists[0]], origin, where=lists[0]))]
    raise unknown_format(fields, origin, wanted="format", columns=_suggested_columns(fields))


def unknown_format(fields: Fields, origin: str, *, wanted: str, columns: str) -> RowError:
    """Return the error for fields of no known format; `columns` is an example of a mapping."""
    remedy = f"name them, for example columns={{{columns}}}"
    rows = next((n for n in fields if fields.peek(n) and is_rows(fields.peek(n))), None)
    if rows is not None:
        found = f"{rows!r} is a list of {len(fields.peek(rows))} objects"
        remedy = f"{found}: if these are the rows, save that list alone; else {remedy}"
    detail = f"the fields {', '.join(map(str, fields)) or '(none)'} are no known {wanted}"
    return RowError(origin, rule="unknown format", detail=detail, remedy=remedy)


def _suggested_columns(fields: Fields) -> str:
    """Return columns for the fields whose names are those of a question and an answer."""
    question = next((name for name, _ in PAIRS if name in fields), None)
    names = [name for name in ANSWERS if name != question]
    # SQuAD's `answers` is an object with lists of texts.
    columns = (text_column(decode_json(fields.peek(name)), name) for name in names)
    column = next(filter(None, columns), None)
    if question is None or column is None:
        return "prompt: FIELD, response: FIELD"
    return f"{dict(reversed(PAIRS))[question]}: '{column}'"


def _check_not_preference(fields: Fields, origin: str) -> None:
    outputs, sides = present_pairs(OUTPUT_PAIRS, fields), present_pairs(SIDES, fields)
    if sides or outputs:
        what, (a, b) = ("preference", sides[0]) if sides else ("comparison", outputs[0])
        raise UserError(
            f"{origin}: the row is a {what} ({a} and {b}), not a chat to imitate; list the file "
            "under data.preference"
        )
    check_not_kto(
        fields,
        origin,
        wanted="a chat to imitate",
        remedy="keep the good rows in a separate file, or name the field in the source's ignore to "
        "train on them all",
    )


def _system(fields: Fields, origin: str) -> list[ChatMessage]:
    for name in ("system", "system_prompt"):
        if fields.get(name):
            return [{"role": "system", "content": text_field(fields[name], origin, where=name)}]
    return []


def read_question(fields: Fields, origin: str) -> list[ChatMessage]:
    """Return the turns before an answer that is in another field; empty if there are none."""
    lead = _system(fields, origin)
    for name in ("prompt", "conversations", "conversation", "instruction", "question", "query"):
        if name in fields:
            return lead + _question_turns(fields, name, origin)
    for name in ("input", "history"):
        if isinstance(fields.peek(name), str):
            text = text_field(fields[name], origin, where=name)
            content = full_question(fields, name, text, origin)
            return [*lead, {"role": "user", "content": content}]
    return []


def _read_pair(fields: Fields, question: str, answer: str, origin: str) -> list[ChatMessage]:
    if answer == several_answers(fields):
        raise RowError(
            origin,
            rule="wrong type",
            detail=f"{answer} is a list of {len(fields.peek(answer))} answers",
            remedy=f"take one by columns={{{answer}: '{answer}[0]'}} or, if the first is better "
            "than the second, list the file under data.preference with "
            f"columns={{chosen: '{answer}[0]', rejected: '{answer}[1]'}}",
        )
    value = fields[answer]
    if isinstance(value, list | dict) and not any(
        isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in as_list(value)
    ):
        column = text_column(value, answer) or f"{answer}.KEY"
        raise RowError(
            origin,
            rule="wrong type",
            detail=f"{answer} is {type_name(value)}, not text or messages",
            remedy=f"name the text in it: columns={{{answer}: '{column}'}}",
        )
    turns = as_turns(value, "assistant", origin, where=answer)
    return _question_turns(fields, question, origin) + turns


def _question_turns(fields: Fields, name: str, origin: str) -> list[ChatMessage]:
    """Return the history, then the question in field `name` with the fields that belong to it."""
    messages: list[ChatMessage] = []
    history = decode_json(fields.get("history")) or []
    if not isinstance(history, list):
        raise wrong_type(origin, "history", history, "a list of pairs of texts")
    for i, past in enumerate(history):
        if not isinstance(past, list | tuple) or len(past) != 2:
            raise wrong_type(origin, f"history[{i}]", past, "a pair of texts")
        messages += [_turn(j, text, origin, where=f"history[{i}]") for j, text in enumerate(past)]
    turns = as_turns(fields[name], "user", origin, where=name)
    if isinstance(fields[name], str):
        turns[0]["content"] = full_question(fields, name, turns[0]["content"], origin)
    return messages + turns


def _turn(number: int, text: Any, origin: str, *, where: str) -> ChatMessage:
    """Return a turn of a conversation that the user begins."""
    role = ("user", "assistant")[number % 2]
    return {"role": role, "content": text_field(text, origin, where=where)}


def _is_conversation(name: str, value: Any) -> bool:
    """Return whether a field that no format names holds a conversation."""
    decoded = decode_json(value)
    if not isinstance(decoded, list) or not decoded:
        return False
    # Other lists of texts may be anything; JSON text must also have known roles.
    is_texts = name == ULTRACHAT and are_texts(decoded)
    return is_texts or (is_chat(decoded) if isinstance(value, str) else is_messages(decoded))


def _with_system(lead: list[ChatMessage], messages: list[ChatMessage]) -> list[ChatMessage]:
    # The messages may begin with the system turn that is also in a field.
    return messages if lead == messages[:1] else lead + messages


def _read_turns(value: Any, origin: str, *, where: str) -> list[ChatMessage]:
    """Read messages, objects of a question and its answer (Firefly, Capybara), or texts in turn."""
    value = decode_json(value)
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str) and where in ALTERNATING_TEXTS:
        return [_turn(i, text, origin, where=f"{where}[{i}]") for i, text in enumerate(value)]
    keys = next((k for k in ROUNDS if isinstance(first, dict) and k[0] in first), None)
    if keys is None:
        return read_messages(value, origin, where=where)
    messages = []
    for i, turn in enumerate(value):
        place = f"{where}[{i}]"
        if not isinstance(turn, dict) or not set(keys) <= turn.keys():
            raise wrong_type(origin, place, turn, f"an object with {keys[0]} and {keys[1]}")
        messages += [_turn(j, turn[key], origin, where=place) for j, key in enumerate(keys)]
        if read_mark(turn, origin, where=place) is False:
            messages[-1][TRAINED] = False
    return messages


def _read_instances(fields: Fields, origin: str) -> list[list[ChatMessage]]:
    """Read a self-instruct seed: an instruction with instances of input and output."""
    instances = decode_json(fields["instances"])
    if not isinstance(instances, list):
        raise wrong_type(origin, "instances", instances, "a list")
    chats = []
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict) or "output" not in instance:
            raise wrong_type(origin, f"instances[{i}]", instance, "an object with an output")
        one = Fields({"instruction": fields["instruction"], **instance})
        chats.append(_read_pair(one, "instruction", "output", origin))
        for name, value in one.unread().items():
            fields.hide(f"instances[].{name}", value)
    return chats
