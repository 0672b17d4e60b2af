"""Rows of any known format to chats: messages of role and content, checked."""

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft.config import UserError
from sft.files import Record, RowError, type_name

Message = dict[str, Any]

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
# Pairs of fields that hold a question and its answer, in the order in which they are tried.
PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
)
CONTENT = frozenset(
    {"messages", "conversations", "conversation", "instances", "input", "history", "text"}
    | {"chosen", "rejected"}
    | {name for pair in PAIRS for name in pair}
)
META = ("language", "reference", "id")
OTHER_NAMES = frozenset({"system", "tools", "kind", *META})
WHOLE = tuple(frozenset(pair) for pair in PAIRS) + tuple(
    frozenset({name}) for name in ("messages", "conversations", "conversation")
)
EXTRA_KEYS = ("tool_call_id", "name", "reasoning_content", "thinking", "reasoning")


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


def read_chats(record: Record) -> list[Chat]:
    """The conversations of one record: one, or one an instance of a self-instruct seed.

    Raises:
        RowError: no known format, a wrong type, or a broken rule (see `check_chat`).
        UserError: the row is a preference, which belongs under data.preference.
    """
    fields = {k: v for k, v in record.fields.items() if v is not None}
    origin = record.origin
    _refuse_preferences(fields, origin)
    tools = read_tools(fields.get("tools"), origin)
    chats = [check_chat(messages, origin) for messages in _conversations(fields, origin)]
    return [Chat(messages=messages, tools=tools, mended=mended) for messages, mended in chats]


def _conversations(fields: dict[str, Any], origin: str) -> list[list[Message]]:
    lead = _system(fields, origin)
    for name in ("messages", "conversations"):
        if name in fields:
            return [lead + read_messages(fields[name], origin, where=name)]
    if "conversation" in fields:
        return [lead + _read_rounds(fields["conversation"], origin)]
    if "instances" in fields and "instruction" in fields:
        return [lead + pair for pair in _read_instances(fields, origin)]
    if "message_tree_id" in fields and isinstance(fields.get("prompt"), dict):
        return [lead + _read_tree(fields["prompt"], origin)]
    for asked, answered in PAIRS:
        if asked in fields and answered in fields:
            return [lead + _read_pair(fields, asked, answered, origin)]
    raise RowError(
        origin,
        rule="unknown format",
        detail=f"the fields {', '.join(map(str, fields)) or '(none)'} are no known format",
        remedy="name them, for example columns={prompt: FIELD, response: FIELD}",
    )


def _refuse_preferences(fields: dict[str, Any], origin: str) -> None:
    outputs = [pair for pair in OUTPUT_PAIRS if pair[0] in fields and pair[1] in fields]
    if "chosen" in fields and "rejected" in fields:
        what = "a preference (chosen and rejected)"
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


OUTPUT_PAIRS = (("output_1", "output_2"), ("response1", "response2"), ("response_a", "response_b"))


def _system(fields: dict[str, Any], origin: str) -> list[Message]:
    system = fields.get("system")
    if system is None or system == "":
        return []
    return [{"role": "system", "content": text_field(system, origin, where="system")}]


def read_question(fields: dict[str, Any], origin: str) -> list[Message]:
    """The turns before an answer that stands in another field; empty where there are none."""
    lead = _system(fields, origin)
    for name in ("prompt", "conversations", "conversation", "instruction", "question", "query"):
        if name in fields:
            return lead + _asked(fields, name, origin)
    if "input" in fields:
        return lead + as_turns(fields["input"], "user", origin, where="input")
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


def _read_rounds(value: Any, origin: str) -> list[Message]:
    """Firefly: a list of {"human": ..., "assistant": ...}; else messages under this name."""
    value = decoded(value)
    if isinstance(value, list) and value and isinstance(value[0], dict) and "human" in value[0]:
        messages = []
        for i, turn in enumerate(value):
            where = f"conversation[{i}]"
            if not isinstance(turn, dict) or not {"human", "assistant"} <= turn.keys():
                raise wrong_type(origin, where, turn, "an object with human and assistant")
            messages += _exchange(turn["human"], turn["assistant"], origin, where=where)
        return messages
    return read_messages(value, origin, where="conversation")


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


def _read_tree(root: dict[str, Any], origin: str) -> list[Message]:
    """Open-Assistant: the best-ranked reply at every step, from the root down."""
    messages, node = [], root
    while node:
        messages.append(
            {
                "role": read_role(node.get("role"), origin, where="a message of the tree"),
                "content": text_field(node.get("text"), origin, where="text"),
            }
        )
        replies = [r for r in node.get("replies") or [] if isinstance(r, dict)]
        # Unranked replies (a single one, or too few votes) come after ranked ones, in file order.
        node = min(replies, key=lambda r: _rank(r.get("rank")), default={})
    return messages


def _rank(rank: Any) -> float:
    return rank if isinstance(rank, int) else float("inf")


def as_turns(value: Any, role: str, origin: str, *, where: str) -> list[Message]:
    """A text (one turn of `role`), a message, or a list of messages (or its JSON text)."""
    structure = decoded(value)
    if isinstance(value, str) and not _is_messages(structure):
        structure = value  # an answer such as "[1, 2]" is text, whatever it parses to
    if isinstance(structure, dict):
        return read_messages([structure], origin, where=where)
    if isinstance(structure, list):
        return read_messages(structure, origin, where=where)
    return [{"role": role, "content": text_field(structure, origin, where=where)}]


def _is_messages(value: Any) -> bool:
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(
        isinstance(turn, dict)
        and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
        for turn in turns
    )


def read_messages(value: Any, origin: str, *, where: str) -> list[Message]:
    """Messages of OpenAI's (role, content) or ShareGPT's (from, value) keys, mixed or not.

    Raises:
        RowError: a wrong type, an unknown role, a tool call that is no JSON.
    """
    value = decoded(value)
    if not isinstance(value, list):
        raise wrong_type(origin, where, value, "a list of messages")
    return [_message(turn, origin, where=f"{where}[{i}]") for i, turn in enumerate(value)]


def _message(turn: Any, origin: str, *, where: str) -> Message:
    if not isinstance(turn, dict):
        raise wrong_type(origin, where, turn, "an object with role and content")
    raw_role = turn.get("role", turn.get("from"))
    role = read_role(raw_role, origin, where=where)
    content = turn.get("content", turn.get("value"))
    message: Message = {"role": role}
    if raw_role == "function_call":
        message |= {"content": "", "tool_calls": _read_calls(content, origin, where=where)}
        return message
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if calls:
        message["tool_calls"] = _read_calls(calls, origin, where=f"{where}.tool_calls")
        content = "" if content is None else content
    message["content"] = text_field(content, origin, where=f"{where} ({role})")
    for key in EXTRA_KEYS:
        if turn.get(key) is not None:
            message[key] = text_field(turn[key], origin, where=f"{where}.{key}")
    return message


def read_role(role: Any, origin: str, *, where: str) -> str:
    if isinstance(role, str) and role in ROLES:
        return ROLES[role]
    shown = f"unknown role {role!r}" if isinstance(role, str) else "no role"
    raise RowError(
        origin,
        rule="unknown role",
        detail=f"{where} has {shown}",
        remedy="roles are system, user (human), assistant (gpt), function_call and tool "
        "(observation)",
    )


def _read_calls(value: Any, origin: str, *, where: str) -> list[dict]:
    """Tool calls as {"type": "function", "function": {"name", "arguments": object}}."""
    value = decoded(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise wrong_type(origin, where, call, "a call with a name and arguments")
        arguments = decoded(function.get("arguments") or {})
        if not isinstance(arguments, dict):
            raise wrong_type(origin, f"{where} arguments", arguments, "an object")
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if isinstance(call.get("id"), str):
            made["id"] = call["id"]
        calls.append(made)
    return calls


def read_tools(value: Any, origin: str) -> list[dict] | None:
    """Function descriptions (a list or its JSON text), each {"type": "function", ...}; or None."""
    value = decoded(value)
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise wrong_type(origin, "tools", value, "a list of function descriptions")
    return [t if "function" in t else {"type": "function", "function": t} for t in value]


def decoded(value: Any) -> Any:
    """Structure that a CSV cell or a text field holds as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def text_field(value: Any, origin: str, *, where: str) -> str:
    """Text, or the text parts of an OpenAI content list, joined.

    Raises:
        RowError: another type, a part that is no text, NUL or half a surrogate pair in it.
    """
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for part in value:
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type")
                raise wrong_type(origin, f"{where} part", part, f"text (its type is {kind!r})")
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise wrong_type(origin, where, value, "text")
    if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value):
        what = "a NUL character" if "\x00" in value else "half a surrogate pair"
        raise RowError(
            origin, rule="invalid text", detail=f"{where} holds {what}", remedy="remove it"
        )
    return value


def wrong_type(origin: str, where: str, value: Any, wanted: str) -> RowError:
    return RowError(
        origin,
        rule="wrong type",
        detail=f"{where} is {type_name(value)}",
        remedy=f"it must be {wanted}",
    )


def check_chat(messages: list[Message], origin: str) -> tuple[list[Message], tuple[str, ...]]:
    """The rules of a chat to imitate; returns it with what was mended.

    Turns after the last answer teach nothing and are cut; so is what the assistant says before the
    user has spoken, which no generation prompt leads to; so is an empty system turn.

    Raises:
        RowError: no assistant turn, an empty answer or question, a misplaced system turn.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(
            origin,
            rule="no assistant turn",
            detail="the conversation has no assistant turn",
            remedy="add the answer or remove the row",
        )
    mended = []
    end = max(i for i, message in enumerate(messages) if message["role"] == "assistant") + 1
    if end < len(messages):
        messages = messages[:end]
        mended.append("turns after the last answer cut")
    messages, cut = cut_lead(messages)
    check_turns(messages, origin)
    return messages, (*mended, *cut)


def cut_lead(messages: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Without an empty system turn and what the assistant says before the first question."""
    mended = []
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
        mended.append("empty system turn cut")
    lead = messages[:1] if messages and messages[0]["role"] == "system" else []
    body = messages[len(lead) :]
    begin = next((i for i, m in enumerate(body) if m["role"] != "assistant"), 0)
    if begin:
        body = body[begin:]
        mended.append("assistant turn before the first question cut")
    return lead + body, tuple(mended)


EMPTY: dict[str, tuple[str, Callable[[Message], bool]]] = {
    "assistant": ("empty answer", lambda m: not m.get("tool_calls")),
    "user": ("empty question", lambda m: True),
}


def check_turns(messages: list[Message], origin: str) -> None:
    """No turn of user or assistant is empty, and only the first may be a system turn.

    Raises:
        RowError: naming the turn.
    """
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role == "system" and number > 1:
            raise RowError(
                origin,
                rule="misplaced system turn",
                detail=f"message {number} is a system turn",
                remedy="only the first message may be one; merge them",
            )
        if role in EMPTY and not message["content"].strip() and EMPTY[role][1](message):
            raise RowError(
                origin,
                rule=EMPTY[role][0],
                detail=f"message {number} ({role}) is empty",
                remedy="fill it or remove the row, or set data.on_error=drop",
            )
