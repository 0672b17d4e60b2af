"""Messages of any known spelling to {"role", "content", "tool_calls"?}, and the rules of a chat."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sft.data.fields import Fields
from sft.data.json_values import decode_json, drop_nulls, find_lone_surrogate
from sft.data.loss_marks import KEYS, LISTS, TRAINED, is_trained, read_mark
from sft.data.records import RowError, invalid_text, wrong_type
from sft.data.unsupported import check_no_media

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
NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # NUL, half a surrogate pair
EXTRA_KEYS = ("tool_call_id", "name", "reasoning_content", "thinking", "reasoning")


# Keys of an object that holds a question and its answer.
ROUNDS = (("human", "assistant"), ("input", "output"))
KNOWN_KEYS = frozenset(
    {"role", "from", "content", "value", "tool_calls", "function_call", *EXTRA_KEYS}
    | KEYS
    | {key for keys in ROUNDS for key in keys}
)
# Fields that hold messages by their name, and such as hold either a text or messages.
CHATS = ("messages", "conversations", "conversation", "conversation_a", "conversation_b")
ALWAYS = frozenset({*CHATS, *LISTS})
EITHER = ("prompt", "completion", "chosen", "rejected")


def decode_chats(fields: Fields) -> None:
    """Replace JSON text by the messages that it holds, in fields that may hold messages.

    A text stays a text, whatever it parses to, where only its look speaks for messages. It is taken
    for messages under a name of CHATS; where both chosen and rejected, or both prompt and
    completion, are lists of messages; and in a CSV file, which has no other way to write them, in
    prompt or completion if it is a list of messages, and in chosen and rejected if both are
    messages.
    """
    for name in fields.of(ALWAYS):
        if isinstance(found := decode_json(fields.peek(name)), list):
            fields.put(name, found)
    either = fields.of(frozenset(EITHER))
    chats = {
        name: found
        for name in either
        if isinstance(fields.peek(name), str) and is_chat(found := decode_json(fields.peek(name)))
    }
    lists = {name for name in either if isinstance(chats.get(name, fields.peek(name)), list)}
    asked, sides = set(EITHER[:2]), set(EITHER[2:])
    taken = lists if asked <= lists or sides <= lists else set()
    if fields.cells:
        taken = taken | (lists & asked) | (sides if sides <= chats.keys() else set())
    for name in taken & chats.keys():
        fields.put(name, chats[name])


def as_turns(value: Any, role: str, origin: str, *, where: str) -> list[Message]:
    """A text (one turn of `role`), a message, or a list of messages."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return read_messages(value, origin, where=where)
    return [{"role": role, "content": text_field(value, origin, where=where)}]


def is_messages(value: Any) -> bool:
    """Whether this is a message or a list of them, by their keys."""
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict)
        and ({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys())
        for turn in turns
    )


def unknown_keys(value: Any) -> dict[str, list[Any]]:
    """Keys of messages that nothing reads, with their values; none where this is no chat."""
    if not isinstance(value, list | dict):
        return {}
    turns = value if isinstance(value, list) else [value]
    if not (is_messages(value) or (turns and all(map(_is_round, turns)))):
        return {}
    found: dict[str, list[Any]] = {}
    for turn in turns:
        for key in turn.keys() - KNOWN_KEYS:
            if turn[key] not in (None, "", [], {}):
                found.setdefault(str(key), []).append(turn[key])
    return dict(sorted(found.items()))


def _is_round(turn: Any) -> bool:
    return isinstance(turn, dict) and any(set(keys) <= turn.keys() for keys in ROUNDS)


def odd_answers(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Assistant turns, in fields of messages, with keys that nothing reads."""
    for value in values:
        for turn in value if isinstance(value, list) else [value]:
            if not (isinstance(turn, dict) and turn.keys() - KNOWN_KEYS and is_chat(turn)):
                continue
            if ROLES[str(turn.get("role", turn.get("from")))] == "assistant":
                yield turn


def is_chat(value: Any) -> bool:
    """Whether this is a message or a list of them, by their keys and roles."""
    turns = value if isinstance(value, list) else [value]
    return is_messages(value) and all(
        isinstance(role := turn.get("role", turn.get("from")), str) and role in ROLES
        for turn in turns
    )


def read_messages(value: Any, origin: str, *, where: str) -> list[Message]:
    """Messages of OpenAI's (role, content) or ShareGPT's (from, value) keys, mixed or not.

    Raises:
        RowError: a wrong type, an unknown role, a tool call that is no JSON.
    """
    value = decode_json(value)
    if not isinstance(value, list):
        raise wrong_type(origin, where, value, "a list of messages")
    return [_message(turn, origin, where=f"{where}[{i}]") for i, turn in enumerate(value)]


def _message(turn: Any, origin: str, *, where: str) -> Message:
    if not isinstance(turn, dict):
        raise wrong_type(origin, where, turn, "an object with role and content")
    raw_role = turn.get("role", turn.get("from"))
    role = read_role(raw_role, origin, where=where)
    check_no_media(turn, origin)
    content = turn.get("content", turn.get("value"))
    message: Message = {"role": role}
    if raw_role == "function_call":
        message |= {"content": "", "tool_calls": _read_calls(content, origin, where=where)}
        if read_mark(turn, origin, where=where) is False:
            message[TRAINED] = False
        return message
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if calls:
        message["tool_calls"] = _read_calls(calls, origin, where=f"{where}.tool_calls")
        content = "" if content is None else content
    message["content"] = text_field(content, origin, where=f"{where} ({role})")
    if role == "assistant" and read_mark(turn, origin, where=where) is False:
        message[TRAINED] = False
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


def _read_calls(value: Any, origin: str, *, where: str) -> list[dict[str, Any]]:
    """Tool calls as {"type": "function", "function": {"name", "arguments"}}.

    Arguments stay as they are given, an object or its JSON text; sft.chat_template.message_forms
    makes of them what a template takes.
    """
    value = decode_json(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise wrong_type(origin, where, call, "a call with a name and arguments")
        arguments = function.get("arguments") or {}
        if not isinstance(structure := decode_json(arguments), dict):
            raise wrong_type(origin, f"{where} arguments", arguments, "an object or its JSON text")
        _whole([structure], origin, where=f"{where} arguments")
        made = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if isinstance(call.get("id"), str):
            made["id"] = call["id"]
        calls.append(made)
    return _whole(calls, origin, where=where)


def read_tools(value: Any, origin: str) -> tuple[list[dict[str, Any]] | None, tuple[str, ...]]:
    """Function descriptions (a list or its JSON text), each {"type": "function", ...}, or None; and
    what was cut from them, by name.

    Fields that are null are cut, except from JSON text: see `cut_nulls`.
    """
    given = decode_json(value)
    value = given if isinstance(value, str) else drop_nulls(given)
    if value in (None, "", []):
        return None, ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise wrong_type(origin, "tools", value, "a list of function descriptions")
    tools = [t if "function" in t else {"type": "function", "function": t} for t in value]
    cut = () if value == given else ("null fields of tools cut",)
    return _whole(tools, origin, where="tools"), cut


def _whole(value: list[dict[str, Any]], origin: str, *, where: str) -> list[dict[str, Any]]:
    """Structure as it is, which may have come out of a text of JSON in a row of JSON."""
    if place := find_lone_surrogate(value, where=where):
        raise invalid_text(origin, where=place, what="half a surrogate pair")
    return value


def cut_nulls(messages: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Without the null fields of arguments that are objects; and what was cut, by name.

    Arrow, and what was written from it, gives every call the arguments of all others, as null.
    Arguments that are JSON text stay as they are.
    """
    kept = []
    for message in messages:
        if calls := message.get("tool_calls"):
            functions = [{k: drop_nulls(v) for k, v in call["function"].items()} for call in calls]
            both = zip(calls, functions, strict=True)
            message = {**message, "tool_calls": [{**c, "function": f} for c, f in both]}
        kept.append(message)
    return kept, () if kept == messages else ("null arguments of tool calls cut",)


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
    if NO_TEXT.search(value):
        what = "a NUL character" if "\x00" in value else "half a surrogate pair"
        raise invalid_text(origin, where=where, what=what)
    return value


def check_chat(messages: list[Message], origin: str) -> tuple[list[Message], tuple[str, ...]]:
    """The rules of a chat to imitate; returns it with what was mended.

    Turns after the last trained answer teach nothing and are cut; so is what the assistant says
    before the user has spoken, which no generation prompt leads to; so is an empty system turn.

    Raises:
        RowError: no assistant turn, or none that is trained, an empty answer or question, a
            misplaced system turn.
    """
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(
            origin,
            rule="no assistant turn",
            detail="the conversation has no assistant turn",
            remedy="add the answer or remove the row",
        )
    mended = []
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = [i for i in answers if is_trained(messages[i])]
    if not trained:
        raise RowError(
            origin,
            rule="marked as not trained",
            detail="every answer is marked as not trained",
            remedy="such a row teaches nothing",
            counted=True,
        )
    if answers[-1] + 1 < len(messages):
        mended.append("turns after the last answer cut")
    if trained != answers:
        mended.append("answers marked as not trained")
    messages = messages[: trained[-1] + 1]
    messages, cut = cut_lead(messages)
    messages, nulls = cut_nulls(messages)
    check_turns(messages, origin)
    return messages, (*mended, *cut, *nulls)


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
                remedy="fill it or remove the row",
            )
