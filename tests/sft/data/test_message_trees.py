"""Trees with one message a row give the same chats as nested trees."""

import csv
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from dpo.data import read_preferences
from sft.config.sections import Source
from sft.data.prompts import read_prompts
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.system.atomic_files import write_jsonl


def read(path, *, on_error="stop", **source):
    return read_sft([Source(path=str(path), **source)], on_error=on_error)


def chats(path, **source):
    return [[m["content"] for m in row["messages"]] for row in read(path, **source).rows]


def message(number, parent, role, text, **more):
    return {"message_id": number, "parent_id": parent, "role": role, "text": text, **more}


ROWS = [
    message("1", None, "prompter", "q", lang="en"),
    message("2", "1", "assistant", "worse", rank=1, lang="en"),
    message("3", "1", "assistant", "a", rank=0, lang="en"),
    message("4", "3", "prompter", "more", lang="en"),
    message("5", "4", "assistant", "b", lang="en"),
    message("6", None, "prompter", "r", lang="de"),
    message("7", "6", "assistant", "c", lang="de"),
]


def flat(tree):
    """Oracle: the messages of a nested tree, each a row as on the hub."""

    def walk(node, parent):
        number = node["message_id"] if "message_id" in node else f"{tree['message_tree_id']}"
        yield message(number, parent, node["role"], node["text"], rank=node.get("rank"))
        for reply in node.get("replies") or []:
            yield from walk(reply, number)

    return list(walk(tree["prompt"], None))


@pytest.mark.real
@pytest.mark.parametrize("paths", ["best", "all"])
def test_real_trees_in_rows_equal_the_nested_ones(real_data, tmp_path, paths):
    nested = real_data / "sft/oasst_en_100_trees.jsonl"
    lines = nested.read_text().rstrip("\n").split("\n")
    rows = [row for line in lines for row in flat(json.loads(line))]
    assert len(rows) > 500
    expected = chats(nested, tree_paths=paths)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert chats(tmp_path / "rows.jsonl", tree_paths=paths) == expected
    ranked = [row for row in rows if row["rank"] is not None]
    if paths == "best" and len(ranked) < len(rows):
        return  # unranked replies keep the order of the file
    random.Random(0).shuffle(rows)
    write_jsonl(tmp_path / "mixed.jsonl", rows)
    assert sorted(chats(tmp_path / "mixed.jsonl", tree_paths=paths)) == sorted(expected)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv"])
def test_trees_are_assembled_from_every_kind_of_file(tmp_path, name):
    path = tmp_path / name
    rows = [{"rank": None, **row} for row in reversed(ROWS)]
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name == "a.csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    assert sorted(chats(path)) == [["q", "a", "more", "b"], ["r", "c"]]
    assert sorted(chats(path, tree_paths="all")) == [
        ["q", "a", "more", "b"],
        ["q", "worse"],
        ["r", "c"],
    ]


def test_a_prompt_is_read_and_a_preference_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    asked = [row["messages"] for row in read_prompts([Source(path=str(tmp_path / "a.jsonl"))])]
    assert [m[-1]["content"] for m in asked] == ["more", "r"]
    with pytest.raises(UserError, match="no known preference"):
        read_preferences([Source(path=str(tmp_path / "a.jsonl"))])


@pytest.mark.parametrize("on_error", ["stop", "drop"])
@pytest.mark.parametrize("lost", [["parent_id"], ["message_id"], ["message_id", "parent_id"]])
def test_messages_without_parents_are_refused(tmp_path, lost, on_error):
    """Otherwise they would be trained as plain texts."""
    rows = [{k: v for k, v in row.items() if k not in lost} for row in ROWS]
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"a.jsonl:1: the row is a single message .*'prompter'"):
        read(tmp_path / "a.jsonl", on_error=on_error)
    texts = read(tmp_path / "a.jsonl", ignore=["role"]).rows
    assert [row["text"] for row in texts] == [row["text"] for row in ROWS]


def test_an_empty_message_id_is_refused(tmp_path):
    """A root with the id "" would be its own reply, since "" also marks a missing parent."""
    (tmp_path / "a.csv").write_text("message_id,parent_id,role,text\n,,prompter,q\n")
    with pytest.raises(UserError, match=r"a.csv:2: the row is a single message"):
        read(tmp_path / "a.csv")


def test_messages_outside_of_trees_are_reported_and_deleted_ones_counted(tmp_path):
    bad = [
        (message("8", "none", "assistant", "x"), "missing parent"),
        (message("9", "8", "prompter", "x"), "missing parent"),
        (message("10", "11", "assistant", "x"), "parents in a circle"),
        (message("11", "10", "assistant", "x"), "parents in a circle"),
        (message("7", "6", "assistant", "again"), "message twice"),
    ]
    deleted = [
        message("12", "1", "assistant", "x", rank=-1, deleted=True),
        message("13", "12", "prompter", "x", deleted=False),
    ]
    for row, rule in bad[:1] + bad[4:]:
        write_jsonl(tmp_path / "a.jsonl", [*ROWS, row])
        with pytest.raises(UserError, match=r"a.jsonl:8: .*correct message_id and parent_id"):
            read(tmp_path / "a.jsonl")
        assert read(tmp_path / "a.jsonl", on_error="drop").counts[0].dropped == {rule: 1}
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, *(row for row, _ in bad), *deleted])
    result = read(tmp_path / "a.jsonl", on_error="drop")
    assert len(result.rows) == 2 and result.rows[0]["messages"][1]["content"] == "a"
    assert result.counts[0].dropped == {
        "missing parent": 2,
        "parents in a circle": 2,
        "deleted message": 2,
        "message twice": 1,
    }
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, *deleted])
    assert read(tmp_path / "a.jsonl").counts[0].dropped == {"deleted message": 2}
