"""Messages of any known spelling as {"role", "content", "tool_calls"?}, and the rules of a chat.

Functions raise `RowError` for a value of a wrong type and for a chat that breaks a rule.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

from sft.data.fields import Fields
from sft.data.json_values import decode_json, drop_nulls, find_lone_surrogate
from sft.data.loss_marks import KEYS, LISTS, TRAINED, is_trained, read_mark
from sft.data.records import RowError, invalid_text, wrong_type
from sft.data.unsupported import check_no_media
from sft.schema import ChatMessage

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}
INVALID_CHARACTERS = re.compile("[\x00\ud800-\udfff]")  # NUL, half a surrogate pair
EXTRA_KEYS = ("tool_call_id", "name", "reasoning_content", "thinking", "reasoning")
# Keys of an object that holds a question and its answer.
ROUNDS = (("human", "assistant"), ("input", "output"))
KNOWN_KEYS = frozenset(
    {"role", "from", "content", "value", "tool_calls", "function_call", *EXTRA_KEYS}
    | KEYS
    | {key for keys in ROUNDS for key in keys}
)
# Fields that hold messages by their name, and fields that hold either a text or messages.
CHATS = ("messages", "conversations", "conversation", "conversation_a", "conversation_b")
ALWAYS_STRUCTURED = frozenset({*CHATS, *LISTS})
QUESTION_AND_ANSWER, SIDES = {"prompt", "completion"}, {"chosen", "rejected"}


def decode_chats(fields: Fields) -> None:
    """Replace JSON text by its messages, in fields that may hold messages.

    A text that only looks like messages stays a text. It is decoded under a name of `CHATS`; if
    chosen and rejected, or prompt and completion, are both lists of messages; and in a CSV file,
    where all structure is text, if prompt or completion is a list of messages, or chosen and
    rejected both are messages.
    """
    for name in fields.filled(ALWAYS_STRUCTURED):
        if isinstance(value := decode_json(fields.peek(name)), list):
            fields[name] = value
    values = {name: fields.peek(name) for name in fields.filled(QUESTION_AND_ANSWER | SIDES)}
    decoded = {n: decode_json(value) for n, value in values.items() if isinstance(value, str)}
    chats = {name: value for name, value in decoded.items() if is_chat(value)}
    lists = {name for name, value in (values | chats).items() if isinstance(value, list)}
    taken = lists if lists >= QUESTION_AND_ANSWER or lists >= SIDES else set()
    if fields.cells:
        taken = taken | (lists & QUESTION_AND_ANSWER) | (SIDES if chats.keys() >= SIDES else set())
    for name in taken & chats.keys():
        fields[name] = chats[name]


def as_turns(value: Any, role: str, origin: str, *, where: str) -> list[ChatMessage]:
    """Return the messages of a text (one turn of `role`), a message, or a list of messages."""
    if isinstance(value, list | dict):
        return read_messages(as_list(value), origin, where=where)
    return [{"role": role, "content": text_field(value, origin, where=where)}]


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, any other value as the only element of a list."""
    return value if isinstance(value, list) else [value]


def is_messages(value: Any) -> bool:
    """Return whether this is a message or a list of them, by their keys."""
    turns = as_list(value)
    return bool(turns) and all(
        isinstance(turn, dict)
        and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
        for turn in turns
    )


def is_chat(value: Any) -> bool:
    """Return whether this is a message or a list of them, by their keys and roles."""
    return is_messages(value) and all(
        isinstance(role := _raw_role(turn), str) and role in ROLES for turn in as_list(value)
    )


def ends_with_user_turn(messages: list[Any]) -> bool:
    """Return whether the last of the messages is the user's."""
    last = messages[-1] if messages else {}
    return is_chat(last) and ROLES[_raw_role(last)] == "user"


def _raw_role(turn: dict[str, Any]) -> Any:
    return turn.get("role", turn.get("from"))


def unknown_keys(value: Any) -> dict[str, list[Any]]:
    """Return the keys of messages that no format reads, with their values; empty if not a chat."""
    if not (isinstance(value, list | dict) and value):
        return {}
    turns = as_list(value)
    if not (is_messages(value) or all(map(_is_round, turns))):
        return {}
    unknown: dict[str, list[Any]] = {}
    for turn in turns:
        for key in turn.keys() - KNOWN_KEYS:
            if turn[key] not in (None, "", [], {}):
                unknown.setdefault(str(key), []).append(turn[key])
    return dict(sorted(unknown.items()))


def _is_round(turn: Any) -> bool:
    return isinstance(turn, dict) and any(set(keys) <= turn.keys() for keys in ROUNDS)


def answers_with_unknown_keys(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the assistant turns, in fields of messages, with keys that no format reads."""
    for value in values:
        for turn in as_list(value):
            unknown = isinstance(turn, dict) and turn.keys() - KNOWN_KEYS
            if unknown and is_chat(turn) and ROLES[_raw_role(turn)] == "assistant":
                yield turn


def read_messages(value: Any, origin: str, *, where: str) -> list[ChatMessage]:
    """Read messages with OpenAI's keys (role, content) or ShareGPT's (from, value), or both."""
    value = decode_json(value)
    if not isinstance(value, list):
        raise wrong_type(origin, where, value, "a list of messages")
    return [_message(turn, origin, where=f"{where}[{i}]") for i, turn in enumerate(value)]


def _message(turn: Any, origin: str, *, where: str) -> ChatMessage:
    if not isinstance(turn, dict):
        raise wrong_type(origin, where, turn, "an object with role and content")
    raw_role = _raw_role(turn)
    role = read_role(raw_role, origin, where=where)
    check_no_media(turn, origin)
    content = turn.get("content", turn.get("value"))
    message: dict[str, Any] = {"role": role}
    is_call = raw_role == "function_call"  # ShareGPT: the content is the call
    if is_call:
        message |= {"content": "", "tool_calls": _read_calls(content, origin, where=where)}
    else:
        function_call = turn.get("function_call")
        calls = turn.get("tool_calls") or ([function_call] if function_call else [])
        if calls:
            message["tool_calls"] = _read_calls(calls, origin, where=f"{where}.tool_calls")
            content = "" if content is None else content
        message["content"] = text_field(content, origin, where=f"{where} ({role})")
    if role == "assistant" and read_mark(turn, origin, where=where) is False:
        message[TRAINED] = False
    for key in () if is_call else EXTRA_KEYS:
        if turn.get(key) is not None:
            message[key] = text_field(turn[key], origin, where=f"{where}.{key}")
    return cast(ChatMessage, message)


def read_role(role: Any, origin: str, *, where: str) -> str:
    """Return system, user, assistant or tool for a role of any known spelling."""
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


def _read_calls(value: Any, origin: str, *, where: str) -> list[dict[str, Any]]:
    """Return tool calls as {"type": "function", "function": {"name", "arguments"}, "id"?}."""
    calls = []
    for call in as_list(decode_json(value)):
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise wrong_type(origin, where, call, "a call with a name and arguments")
        # Kept as given, an object or its JSON text: `sft.chat_template.message_forms` converts
        # them to the form that the template expects.
        arguments = function.get("arguments") or {}
        if not isinstance(structure := decode_json(arguments), dict):
            raise wrong_type(origin, f"{where} arguments", arguments, "an object or its JSON text")
        _check_surrogates(structure, origin, where=f"{where} arguments")
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if isinstance(call.get("id"), str):
            made["id"] = call["id"]
        calls.append(made)
    _check_surrogates(calls, origin, where=where)
    return calls


def read_tools(value: Any, origin: str) -> tuple[list[dict[str, Any]] | None, tuple[str, ...]]:
    """Return function descriptions, each {"type": "function", ...}, or None; and the changes made.

    Null fields are dropped (see `drop_null_arguments`), but not from JSON text.
    """
    given = decode_json(value)
    value = given if isinstance(value, str) else drop_nulls(given)
    if value in (None, "", []):
        return None, ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise wrong_type(origin, "tools", value, "a list of function descriptions")
    tools = [t if "function" in t else {"type": "function", "function": t} for t in value]
    _check_surrogates(tools, origin, where="tools")
    return tools, () if value == given else ("null fields of tools cut",)


def _check_surrogates(value: Any, origin: str, *, where: str) -> None:
    # The reader has checked the row, but not JSON text within it.
    if place := find_lone_surrogate(value, where=where):
        raise invalid_text(origin, where=place, what="half a surrogate pair")


def drop_null_arguments(messages: list[ChatMessage]) -> tuple[list[ChatMessage], tuple[str, ...]]:
    """Drop null arguments of tool calls that are objects; return the messages and the changes.

    Arrow, and files written from it, give every call the arguments of all others, as null.
    """
    kept = []
    for message in messages:
        if calls := message.get("tool_calls"):
            calls = [
                {**call, "function": {k: drop_nulls(v) for k, v in call["function"].items()}}
                for call in calls
            ]
            message = {**message, "tool_calls": calls}
        kept.append(message)
    return kept, () if kept == messages else ("null arguments of tool calls cut",)


def text_field(value: Any, origin: str, *, where: str) -> str:
    """Return a text, or the joined text parts of an OpenAI content list."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for part in value:
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type")
                raise wrong_type(origin, f"{where} part", part, f"text (its type is {kind!r})")
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise wrong_type(origin, where, value, "text")
    if INVALID_CHARACTERS.search(value):
        what = "a NUL character" if "\x00" in value else "half a surrogate pair"
        raise invalid_text(origin, where=where, what=what)
    return value


def check_chat(
    messages: list[ChatMessage], origin: str
) -> tuple[list[ChatMessage], tuple[str, ...]]:
    """Check the rules of a chat to train on; return it and the names of the changes made to it.

    Turns after the last trained answer, assistant turns before the first user turn (no generation
    prompt leads to them) and an empty system turn are cut.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise RowError(
            origin,
            rule="no assistant turn",
            detail="the conversation has no assistant turn",
            remedy="add the answer or remove the row",
        )
    trained = [i for i in answers if is_trained(messages[i])]
    if not trained:
        raise RowError(
            origin,
            rule="marked as not trained",
            detail="every answer is marked as not trained",
            remedy="such a row teaches nothing",
            counted=True,
        )
    changes = []
    if answers[-1] + 1 < len(messages):
        changes.append("turns after the last answer cut")
    if trained != answers:
        changes.append("answers marked as not trained")
    messages, cut = cut_lead(messages[: trained[-1] + 1])
    messages, dropped = drop_null_arguments(messages)
    check_turns(messages, origin)
    return messages, (*changes, *cut, *dropped)


def cut_lead(messages: list[ChatMessage]) -> tuple[list[ChatMessage], tuple[str, ...]]:
    """Cut an empty system turn and assistant turns before the first question."""
    changes = []
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
        changes.append("empty system turn cut")
    lead = messages[:1] if messages and messages[0]["role"] == "system" else []
    body = messages[len(lead) :]
    begin = next((i for i, m in enumerate(body) if m["role"] != "assistant"), 0)
    if begin:
        changes.append("assistant turn before the first question cut")
    return lead + body[begin:], tuple(changes)


def check_turns(messages: list[ChatMessage], origin: str) -> None:
    """Check that no turn of user or assistant is empty and that only the first is a system turn."""
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role == "system" and number > 1:
            raise RowError(
                origin,
                rule="misplaced system turn",
                detail=f"message {number} is a system turn",
                remedy="only the first message may be one; merge them",
            )
        empty = not message["content"].strip()
        # An answer that only calls tools has no text.
        if empty and (role == "user" or (role == "assistant" and not message.get("tool_calls"))):
            raise RowError(
                origin,
                rule="empty question" if role == "user" else "empty answer",
                detail=f"message {number} ({role}) is empty",
                remedy="fill it or remove the row",
            )
