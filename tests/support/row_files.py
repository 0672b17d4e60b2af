"""Row files for the tests of readers, and their chats."""

import json
import re

from sft.config.sections import Source
from sft.data.sources import read_sft

GOOD = {"prompt": "a", "response": "b"}
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHAT_LINE = json.dumps(GOOD)
# One hand-written row of each format; each is read as CHAT.
FORMATS = {
    "openai": {"messages": CHAT},
    "openai parts": {
        "messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "sharegpt with roles": {"conversations": CHAT},
    "sharegpt as text": {"conversations": json.dumps(CHAT)},
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "alpaca without input": {"instruction": "a", "output": "b"},
    "alpaca with a response": {"instruction": "a", "input": None, "response": "b"},
    "prompt and response": GOOD,
    "prompt and completion": {"prompt": "a", "completion": "b"},
    "trl messages": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "gsm8k": {"question": "a", "answer": "b"},
    "metamath": {"query": "a", "response": "b"},
    "firefly": {"conversation_id": 1, "conversation": [{"human": "a", "assistant": "b"}]},
    "firefly pairs": {"kind": "k", "input": "a", "target": "b"},
    "capybara": {"source": "x", "conversation": [{"input": "a", "output": "b"}]},
    "ultrachat": {"id": "1", "data": ["a", "b"]},
    "open orca": {"id": "1", "system_prompt": "", "question": "a", "response": "b"},
    "aya": {"inputs": "a", "targets": "b", "language": "English"},
    "question and text": {"user": "a", "assistant": "b"},
    "messages under a name of its own": {"id": "1", "dialogue_turns": CHAT, "tags": "x"},
    "seed task": {"instruction": "a", "instances": [{"input": "", "output": "b"}]},
    "open assistant": {
        "message_tree_id": "x",
        "prompt": {
            "role": "prompter",
            "text": "a",
            "replies": [
                {"role": "assistant", "text": "worse", "rank": 1, "replies": []},
                {"role": "assistant", "text": "b", "rank": 0, "replies": []},
                {"role": "assistant", "text": "unranked", "replies": []},
            ],
        },
    },
}


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def read(path, *, on_error="stop", **source):
    return read_sft([Source(path=str(path), **source)], on_error=on_error)


def messages_of(tmp_path, row, **source):
    (one,) = read(write(tmp_path / "rows.jsonl", [row]), **source).rows
    return one["messages"]


def check_row(row):
    """Assert the invariants of a row that later code relies on."""
    if "text" in row:
        assert row["text"].strip() and "messages" not in row
    messages = row.get("messages", [])
    assert "text" in row or messages[-1]["role"] == "assistant"
    assert row["kind"] and isinstance(row["kind"], str)
    assert re.search(r":\d+$", row["origin"])
    for i, message in enumerate(messages):
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(message["content"], str)
        assert message["role"] != "system" or i == 0
        if message["role"] in ("user", "assistant"):
            assert message["content"].strip() or message.get("tool_calls")
        message["content"].encode()


def read_given(tmp_path, *rows, on_error="stop", **source):
    """Write rows to a file and read them."""
    return read(write(tmp_path / "rows.jsonl", rows), on_error=on_error, **source)


def turns(tmp_path, row, **source):
    """Return the texts of the one chat that a row gives."""
    (one,) = read_given(tmp_path, row, **source).rows
    return [message["content"] for message in one["messages"]]
