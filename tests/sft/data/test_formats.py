"""Formats, one hand-made row each, in every kind of file."""

import json

import pytest
from files import KINDS_OF_FILE, write_as
from row_files import CHAT, FORMATS, read

from sft.errors import UserError


@pytest.mark.parametrize("file", KINDS_OF_FILE)
@pytest.mark.parametrize("name", FORMATS)
def test_format_is_recognized_in_every_kind_of_file(name, file, tmp_path):
    write_as(tmp_path / file, FORMATS[name])
    (row,) = read(tmp_path / file).rows
    assert row["messages"] == CHAT


def test_a_system_turn_may_be_in_a_separate_field_or_in_both(tmp_path):
    system = {"role": "system", "content": "s"}
    rows = [
        {"system_prompt": "s", "question": "a", "response": "b"},
        {"system": "s", "messages": [CHAT[0], {"role": "assistant", "content": "c"}]},
        {"system_prompt": "s", "conversations": [system, CHAT[0], {"from": "gpt", "value": "d"}]},
    ]
    for name, row in enumerate(rows):
        write_as(tmp_path / f"{name}.jsonl", row)
        (read_row,) = read(tmp_path / f"{name}.jsonl").rows
        assert read_row["messages"][:2] == [system, CHAT[0]] and len(read_row["messages"]) == 3
    write_as(tmp_path / "two.jsonl", {"system": "t", "messages": [system, *CHAT]})
    with pytest.raises(UserError, match="message 2 is a system turn"):
        read(tmp_path / "two.jsonl")


@pytest.mark.parametrize("file", KINDS_OF_FILE)
def test_tools_and_calls_are_recognized_in_every_kind_of_file(file, tmp_path):
    function = {"name": "f", "arguments": {"x": 1}}
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "b"},
    ]
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    write_as(tmp_path / file, {"conversations": turns, "tools": json.dumps([tool])})
    (row,) = read(tmp_path / file).rows
    assert row["tools"] == [{"type": "function", "function": tool}]
    assert [m["role"] for m in row["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert row["messages"][2]["tool_calls"] == [{"type": "function", "function": function}]
