"""Rows of any known format to chats, recognised by their fields."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.config import UserError
from sft.json_rows import is_rows
from sft.messages import (
    Message,
    as_turns,
    check_chat,
    decoded,
    is_messages,
    read_messages,
    read_role,
    read_tools,
    text_field,
    wrong_type,
)
from sft.records import Record
from sft.row_errors import RowError

# Pairs of fields that hold a question and its answer, in the order in which they are tried.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("prompt", "answer"),
    ("inputs", "targets"),
    ("input", "target"),
    ("input", "output"),
    ("user", "assistant"),
    ("human", "assistant"),
)
CONTENT = frozenset(
    {"messages", "conversations", "conversation", "instances", "input", "history", "text"}
    | {"chosen", "rejected"}
    | {name for pair in PAIRS for name in pair}
)
ROUNDS = (("human", "assistant"), ("input", "output"))
TURNS = "data"  # UltraChat's name for texts in turn
META = ("language", "reference", "id")
OTHER_NAMES = frozenset({"system", "system_prompt", "tools", "kind", *META})
WHOLE = tuple(frozenset(pair) for pair in PAIRS) + tuple(
    frozenset({name}) for name in ("messages", "conversations", "conversation", "text")
)


@dataclass(frozen=True)
class Chat:
    """A checked conversation, the tools it may call, and what was mended in it, by name."""

    messages: list[Message]
    tools: list[dict] | None
    mended: tuple[str, ...]


def apply_columns(record: Record, columns: Mapping[str, str]) -> Record:
    """Give fields the names that the formats know; `columns` maps our name to the file's.

    A mapping that names a whole format hides other content, so that a file of several readings is
    read as told.

    Raises:
        UserError: one of our names is unknown.
        RowError: the row lacks a field that `columns` names.
    """
    known = CONTENT | OTHER_NAMES
    for ours in columns:
        if ours not in known:
            near = difflib.get_close_matches(ours, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}" if near else f"use one of {', '.join(sorted(known))}"
            raise UserError(f"columns: {ours!r} is no field that a format has; {hint}")
    for theirs in columns.values():
        if theirs not in record.fields:
            raise RowError(
                record.origin,
                rule="missing column",
                detail=f"there is no field {theirs!r}, which `columns` names, among "
                f"{', '.join(map(str, record.fields)) or 'none'}",
                remedy="correct the source's columns",
            )
    rest = {k: v for k, v in record.fields.items() if k not in columns.values()}
    if any(whole <= columns.keys() for whole in WHOLE):
        rest = {k: v for k, v in rest.items() if k not in CONTENT}
    return Record(record.origin, rest | {o: record.fields[t] for o, t in columns.items()})


def read_text(record: Record) -> str | None:
    """The plain text of a record whose only content is its field `text`; None for other records.

    Raises:
        RowError: it is no text, or empty.
    """
    fields = {k for k, v in record.fields.items() if v is not None}
    if fields & CONTENT != {"text"}:
        return None
    text = text_field(record.fields["text"], record.origin, where="text")
    if not text.strip():
        raise RowError(
            record.origin, rule="empty text", detail="text is empty", remedy="remove the row"
        )
    return text


def read_chats(record: Record, *, tree_paths: str = "best") -> list[Chat]:
    """The conversations of one record: one; or one an instance of a self-instruct seed; or, where
    `tree_paths` is "all", one a path of an Open-Assistant tree.

    Raises:
        RowError: no known format, a wrong type, or a broken rule (see `check_chat`).
        UserError: the row is a preference, which belongs under data.preference.
    """
    fields = {k: v for k, v in record.fields.items() if v is not None}
    origin = record.origin
    _refuse_preferences(fields, origin)
    tools = read_tools(fields.get("tools"), origin)
    found = _conversations(fields, origin, tree_paths=tree_paths)
    chats = [check_chat(messages, origin) for messages in found]
    return [Chat(messages=messages, tools=tools, mended=mended) for messages, mended in chats]


def _conversations(fields: dict[str, Any], origin: str, *, tree_paths: str) -> list[list[Message]]:
    lead = _system(fields, origin)
    for name in ("messages", "conversations", "conversation"):
        if name in fields:
            return [_led(lead, _read_rounds(fields[name], origin, where=name))]
    if "instances" in fields and "instruction" in fields:
        return [lead + pair for pair in _read_instances(fields, origin)]
    if "message_tree_id" in fields and isinstance(root := decoded(fields.get("prompt")), dict):
        paths = _all_paths(root, origin) if tree_paths == "all" else [_best_path(root, origin)]
        return [lead + path for path in paths]
    for asked, answered in held(PAIRS, fields):
        return [lead + _read_pair(fields, asked, answered, origin)]
    # Under a name of the file's own.
    lists = [name for name, value in fields.items() if _is_conversation(name, value)]
    if len(lists) == 1:
        return [_led(lead, _read_rounds(fields[lists[0]], origin, where=lists[0]))]
    raise unknown_format(fields, origin, wanted="format", columns="prompt: FIELD, response: FIELD")


def unknown_format(fields: dict[str, Any], origin: str, *, wanted: str, columns: str) -> RowError:
    """No known format has these fields; `columns` is an example of a mapping that helps."""
    names = ", ".join(map(str, fields)) or "(none)"
    remedy = f"name them, for example columns={{{columns}}}"
    held = next((name for name, value in fields.items() if value and is_rows(value)), None)
    if held is not None:
        rows = f"{held!r} is a list of {len(fields[held])} objects"
        remedy = f"{rows}: if these are the rows, save that list alone; else {remedy}"
    detail = f"the fields {names} are no known {wanted}"
    return RowError(origin, rule="unknown format", detail=detail, remedy=remedy)


def _refuse_preferences(fields: dict[str, Any], origin: str) -> None:
    outputs, sides = held(OUTPUT_PAIRS, fields), held(SIDES, fields)
    if sides:
        what = f"a preference ({sides[0][0]} and {sides[0][1]})"
    elif outputs:
        what = f"a comparison ({outputs[0][0]} and {outputs[0][1]})"
    elif isinstance(fields.get("label"), bool) and {"messages", "completion"} & fields.keys():
        what = "a KTO label (one answer marked good or bad)"
    else:
        return
    remedy = (
        "keep the rows labelled true in a file of their own"
        if what.startswith("a KTO")
        else "list the file under data.preference"
    )
    raise UserError(f"{origin}: the row is {what}, not a chat to imitate; {remedy}")


# Fields of a better and a worse answer, and of two answers of which another field tells the better.
SIDES = (("chosen", "rejected"), ("accepted", "rejected"), ("response_j", "response_k"))
OUTPUT_PAIRS = (
    *(("output_1", "output_2"), ("response1", "response2"), ("response_a", "response_b")),
    *(("response_0", "response_1"), ("response_1", "response_2")),
    *(("human_ref_A", "human_ref_B"), ("conversation_a", "conversation_b")),
)


def held(pairs: Sequence[tuple[str, str]], fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of names of which a row has both, in their order."""
    return [(a, b) for a, b in pairs if a in fields and b in fields]


def _system(fields: dict[str, Any], origin: str) -> list[Message]:
    for name in ("system", "system_prompt"):
        if fields.get(name):
            return [{"role": "system", "content": text_field(fields[name], origin, where=name)}]
    return []


def read_question(fields: dict[str, Any], origin: str) -> list[Message]:
    """The turns before an answer that stands in another field; empty where there are none."""
    lead = _system(fields, origin)
    for name in ("prompt", "conversations", "conversation", "instruction", "question", "query"):
        if name in fields:
            return lead + _asked(fields, name, origin)
    for name in ("input", "history"):
        if isinstance(fields.get(name), str):
            return lead + as_turns(fields[name], "user", origin, where=name)
    return []


def _read_pair(fields: dict[str, Any], asked: str, answered: str, origin: str) -> list[Message]:
    answer = as_turns(fields[answered], "assistant", origin, where=answered)
    return _asked(fields, asked, origin) + answer


def _asked(fields: dict[str, Any], asked: str, origin: str) -> list[Message]:
    """History, then the question in field `asked`; an instruction takes its input along."""
    messages: list[Message] = []
    history = decoded(fields.get("history")) or []
    if not isinstance(history, list):
        raise wrong_type(origin, "history", history, "a list of pairs of texts")
    for i, past in enumerate(history):
        if not isinstance(past, list | tuple) or len(past) != 2:
            raise wrong_type(origin, f"history[{i}]", past, "a pair of texts")
        messages += _exchange(past[0], past[1], origin, where=f"history[{i}]")
    turns = as_turns(fields[asked], "user", origin, where=asked)
    if asked == "instruction" and fields.get("input"):
        extra = text_field(fields["input"], origin, where="input")
        turns[-1]["content"] = "\n".join(t for t in (turns[-1]["content"], extra) if t.strip())
    return messages + turns


def _exchange(question: Any, answer: Any, origin: str, *, where: str) -> list[Message]:
    return [
        {"role": "user", "content": text_field(question, origin, where=where)},
        {"role": "assistant", "content": text_field(answer, origin, where=where)},
    ]


def _is_conversation(name: str, value: Any) -> bool:
    """Whether an unknown field holds a conversation: messages; texts alone under UltraChat's name,
    since a list of texts may be anything."""
    value = decoded(value)
    if not isinstance(value, list) or not value:
        return False
    return is_messages(value) or (name == TURNS and all(isinstance(v, str) for v in value))


def _led(lead: list[Message], messages: list[Message]) -> list[Message]:
    """Behind the system turn of a field of its own, which the messages may begin with too."""
    return messages if lead == messages[:1] else lead + messages


def _read_rounds(value: Any, origin: str, *, where: str) -> list[Message]:
    """Messages; or objects of a question and its answer (Firefly, Capybara); or texts in turn, the
    user's first (UltraChat)."""
    value = decoded(value)
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str) and where == TURNS:
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
    return messages


def _read_instances(fields: dict[str, Any], origin: str) -> list[list[Message]]:
    """Self-instruct seeds: one instruction with instances of input and output."""
    instances = decoded(fields["instances"])
    if not isinstance(instances, list):
        raise wrong_type(origin, "instances", instances, "a list")
    chats = []
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict) or "output" not in instance:
            raise wrong_type(origin, f"instances[{i}]", instance, "an object with an output")
        one = {"instruction": fields["instruction"], **instance}
        chats.append(_read_pair(one, "instruction", "output", origin))
    return chats


def _best_path(root: dict[str, Any], origin: str) -> list[Message]:
    """Open-Assistant: the best-ranked reply at every step, from the root down."""
    messages, node = [], root
    while node:
        messages.append(_said(node, origin))
        # Unranked replies (a single one, or too few votes) come after ranked ones, in file order.
        node = min(_replies(node, origin), key=lambda r: _rank(r.get("rank")), default={})
    return messages


def _all_paths(root: dict[str, Any], origin: str) -> list[list[Message]]:
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
