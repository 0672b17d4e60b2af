"""Converts rows of any known format to chats; the fields decide the format."""

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
    Message,
    answers_with_unknown_keys,
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


@dataclass(frozen=True)
class MappedRow:
    """A record under our names, which remembers what was read of it."""

    origin: str
    fields: Fields


@dataclass(frozen=True)
class ParsedChat:
    """A checked conversation, the tools it may call, and what was mended in it, by name."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    mended: tuple[str, ...]


def unread_content(row: MappedRow, messages: Iterable[Message]) -> dict[str, str]:
    """The fields with text that nothing read, see `unread_texts`; `messages` are all of the row's.

    Call it last: what is read later counts as unread.
    """
    said = [message["content"] for message in messages]
    keys = {
        f"{name}[].{key}": values
        for name, value in row.fields.read().items()
        for key, values in unknown_keys(value).items()
    }
    return dict.fromkeys(keys, "") | unread_texts(row.fields.unread() | keys, said)


def apply_columns(
    record: Record, columns: Mapping[str, str], *, ignore: Collection[str] = ()
) -> MappedRow:
    """Give fields the names that the formats know; `columns` maps our name to the file's.

    A part of a list is FIELD[0], FIELD[1] and so on, a part of an object FIELD.KEY.

    A mapping that names a whole format hides other content, so that a file of several readings is
    read as told. Fields of `ignore` are left out.

    Raises:
        UserError: one of our names is unknown.
        RowError: the row lacks a field that `columns` names, other than a companion of a question.
    """
    for ours in columns:
        if ours not in KNOWN:
            near = difflib.get_close_matches(ours, sorted(KNOWN), n=1)
            hint = f"did you mean {near[0]!r}" if near else f"use one of {', '.join(sorted(KNOWN))}"
            raise UserError(f"columns: {ours!r} is no field that a format has; {hint}")
    for ours, theirs in columns.items():
        if column_value(record.fields, theirs) is None and not (
            ours in COMPANIONS or theirs in record.fields
        ):
            raise RowError(
                record.origin,
                rule="missing column",
                detail=f"there is no field {theirs!r}, which `columns` names, among "
                f"{', '.join(map(str, record.fields)) or 'none'}",
                remedy="correct the source's columns",
            )
    taken = {field_of(record.fields, theirs) for theirs in columns.values()}
    taken.update(ignore)
    rest = {name: value for name, value in record.fields.items() if name not in taken}
    told = bool(columns) and any(whole <= columns.keys() for whole in COMPLETE)
    covered = (CONTENT | COMPANIONS | columns.keys()) if told else columns.keys()
    hidden = {name: rest.pop(name) for name in rest.keys() & covered}
    named = {ours: column_value(record.fields, theirs) for ours, theirs in columns.items()}
    fields = Fields(rest | named, hidden=hidden, cells=record.cells)
    decode_chats(fields)
    return MappedRow(record.origin, fields)


def read_text(row: MappedRow) -> str | None:
    """The plain text of a row whose only content is its field `text`; None for other rows.

    Raises:
        RowError: it is no text, or empty, or belongs to a picture.
    """
    if row.fields.filled(CONTENT) != {"text"}:
        return None
    check_no_media(row.fields, row.origin)
    text = text_field(row.fields["text"], row.origin, where="text")
    if not text.strip():
        raise RowError(
            row.origin, rule="empty text", detail="text is empty", remedy="remove the row"
        )
    return text


def read_chats(row: MappedRow, *, tree_paths: str = "best") -> list[ParsedChat]:
    """The conversations of one record: one; or one an instance of a self-instruct seed; or, where
    `tree_paths` is "all", one a path of an Open-Assistant tree.

    Raises:
        RowError: no known format, a wrong type, a picture, an answer that the row calls bad, or a
            broken rule (see `check_chat`).
        UserError: the row is a preference, which belongs under data.preference.
    """
    fields, origin = row.fields, row.origin
    _check_not_preference(fields, origin)
    check_no_media(fields, origin)
    tools, cut = read_tools(fields.get("tools"), origin)
    chats = []
    for messages in _conversations(fields, origin, tree_paths=tree_paths):
        check_no_media_placeholders(messages, origin)
        mark_turns(messages, fields, origin)
        checked, mended = check_chat(messages, origin)
        chats.append(ParsedChat(messages=checked, tools=tools, mended=(*mended, *cut)))
    for judged in (fields, *answers_with_unknown_keys(fields.read().values())):
        check_answer_labels(judged, origin)
    return chats


def _conversations(fields: Fields, origin: str, *, tree_paths: str) -> list[list[Message]]:
    lead = _system(fields, origin)
    for name in ("messages", "conversations", "conversation"):
        if name in fields:
            return [_with_system(lead, _read_rounds(fields[name], origin, where=name))]
    if "instances" in fields and "instruction" in fields:
        return [lead + pair for pair in _read_instances(fields, origin)]
    if "message_tree_id" in fields and isinstance(decode_json(fields.peek("prompt")), dict):
        root = decode_json(fields["prompt"])
        paths = all_paths(root, origin) if tree_paths == "all" else [best_path(root, origin)]
        return [lead + path for path in paths]
    for asked, answered in present_pairs(PAIRS, fields):
        return [lead + _read_pair(fields, asked, answered, origin)]
    # Under a name of the file's own.
    lists = [name for name in fields if _is_conversation(name, fields.peek(name))]
    if len(lists) == 1:
        return [_with_system(lead, _read_rounds(fields[lists[0]], origin, where=lists[0]))]
    raise unknown_format(fields, origin, wanted="format", columns=_columns_of(fields))


def unknown_format(fields: Fields, origin: str, *, wanted: str, columns: str) -> RowError:
    """No known format has these fields; `columns` is an example of a mapping that helps."""
    names = ", ".join(map(str, fields)) or "(none)"
    remedy = f"name them, for example columns={{{columns}}}"
    held = next((n for n in fields if fields.peek(n) and is_rows(fields.peek(n))), None)
    if held is not None:
        rows = f"{held!r} is a list of {len(fields.peek(held))} objects"
        remedy = f"{rows}: if these are the rows, save that list alone; else {remedy}"
    detail = f"the fields {names} are no known {wanted}"
    return RowError(origin, rule="unknown format", detail=detail, remedy=remedy)


def _columns_of(fields: Fields) -> str:
    """The columns of a question and its answer, where the row has fields of such names; the answer
    may be a text within a list or an object (SQuAD's `answers`)."""
    asked = next((name for name, _ in PAIRS if name in fields), None)
    answers = (
        text_column(decode_json(fields.peek(name)), name) for name in ANSWERS if name != asked
    )
    answer = next(filter(None, answers), None)
    if asked is None or answer is None:
        return "prompt: FIELD, response: FIELD"
    return f"{_answer_of(asked)}: '{answer}'"


def _answer_of(asked: str) -> str:
    return next(answer for question, answer in PAIRS if question == asked)


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
        remedy="keep the good rows in a file of their own, or name the field in the source's "
        "ignore to train on them all",
    )


def _system(fields: Fields, origin: str) -> list[Message]:
    for name in ("system", "system_prompt"):
        if fields.get(name):
            return [{"role": "system", "content": text_field(fields[name], origin, where=name)}]
    return []


def read_question(fields: Fields, origin: str) -> list[Message]:
    """The turns before an answer that stands in another field; empty where there are none."""
    lead = _system(fields, origin)
    for name in ("prompt", "conversations", "conversation", "instruction", "question", "query"):
        if name in fields:
            return lead + _asked(fields, name, origin)
    for name in ("input", "history"):
        if isinstance(fields.peek(name), str):
            text = text_field(fields[name], origin, where=name)
            question = full_question(fields, name, text, origin)
            return [*lead, {"role": "user", "content": question}]
    return []


def _read_pair(fields: Fields, asked: str, answered: str, origin: str) -> list[Message]:
    if answered == several_answers(fields):
        raise RowError(
            origin,
            rule="wrong type",
            detail=f"{answered} is a list of {len(fields.peek(answered))} answers",
            remedy=f"take one by columns={{{answered}: '{answered}[0]'}} or, if "
            f"the first is better than the second, list the file under data.preference with "
            f"columns={{chosen: '{answered}[0]', rejected: '{answered}[1]'}}",
        )
    given = fields[answered]
    if isinstance(given, list | dict) and not _have_roles(given):
        part = text_column(given, answered) or f"{answered}.KEY"
        remedy = f"name the text in it: columns={{{answered}: '{part}'}}"
        raise RowError(
            origin,
            rule="wrong type",
            detail=f"{answered} is {type_name(given)}, not text or messages",
            remedy=remedy,
        )
    answer = as_turns(given, "assistant", origin, where=answered)
    return _asked(fields, asked, origin) + answer


def _have_roles(value: list[Any] | dict[str, Any]) -> bool:
    turns = value if isinstance(value, list) else [value]
    return any(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns)


def _asked(fields: Fields, asked: str, origin: str) -> list[Message]:
    """History, then the question in field `asked` with the fields that belong to it."""
    messages: list[Message] = []
    history = decode_json(fields.get("history")) or []
    if not isinstance(history, list):
        raise wrong_type(origin, "history", history, "a list of pairs of texts")
    for i, past in enumerate(history):
        if not isinstance(past, list | tuple) or len(past) != 2:
            raise wrong_type(origin, f"history[{i}]", past, "a pair of texts")
        messages += _exchange(past[0], past[1], origin, where=f"history[{i}]")
    turns = as_turns(fields[asked], "user", origin, where=asked)
    if isinstance(fields[asked], str):
        turns[0]["content"] = full_question(fields, asked, turns[0]["content"], origin)
    return messages + turns


def _exchange(question: Any, answer: Any, origin: str, *, where: str) -> list[Message]:
    return [
        {"role": "user", "content": text_field(question, origin, where=where)},
        {"role": "assistant", "content": text_field(answer, origin, where=where)},
    ]


def _is_conversation(name: str, value: Any) -> bool:
    """Whether an unknown field holds a conversation: messages; texts alone under UltraChat's name,
    since a list of texts may be anything."""
    if isinstance(value, str):
        return isinstance(found := decode_json(value), list) and (
            is_chat(found) or (name == ULTRACHAT and are_texts(found))
        )
    if not isinstance(value, list) or not value:
        return False
    return is_messages(value) or (name == ULTRACHAT and are_texts(value))


def _with_system(lead: list[Message], messages: list[Message]) -> list[Message]:
    """Behind the system turn of a field of its own, which the messages may begin with too."""
    return messages if lead == messages[:1] else lead + messages


def _read_rounds(value: Any, origin: str, *, where: str) -> list[Message]:
    """Messages; or objects of a question and its answer (Firefly, Capybara); or texts in turn, the
    user's first (UltraChat, LIMA)."""
    value = decode_json(value)
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str) and where in ALTERNATING_TEXTS:
        roles = ("user", "assistant")
        return [
            {"role": roles[i % 2], "content": text_field(text, origin, where=f"{where}[{i}]")}
            for i, text in enumerate(value)
        ]
    keys = next((k for k in ROUNDS if isinstance(first, dict) and k[0] in first), None)
    if keys is None:
        return read_messages(value, origin, where=where)
    messages = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or not set(keys) <= turn.keys():
            wanted = f"an object with {keys[0]} and {keys[1]}"
            raise wrong_type(origin, f"{where}[{i}]", turn, wanted)
        messages += _exchange(turn[keys[0]], turn[keys[1]], origin, where=f"{where}[{i}]")
        if read_mark(turn, origin, where=f"{where}[{i}]") is False:
            messages[-1][TRAINED] = False
    return messages


def _read_instances(fields: Fields, origin: str) -> list[list[Message]]:
    """Self-instruct seeds: one instruction with instances of input and output."""
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
