"""Generate malformed files of every kind that is read, reproducible from a seed.

Each starts as a valid file. Then some values are replaced, removed, duplicated or nested, or bytes
are cut or changed.
"""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from made_up_run import MODELS, make_run

ODD: list[Any] = [
    *(None, True, False, 0, -1, 3.5, float("nan"), float("inf"), -0.0, 10**400, 1e308),
    *("", " ", "\n", "\x00", "\ud800", "x\udc00y", "\u202egnp", "\x1b]0;owned\x07", "a" * 5000),
    *(
        "../../../x",
        "/etc/passwd",
        "~root",
        "a\x00b",
        "null",
        "NaN",
        "1e999",
        "\\",
        "[",
        "{",
        "{{x}}",
    ),
    *("[" * 3000, '{"a":' * 3000, '"\\ud800"', '[{"role":"user","content":"\\ud800"}]'),
    *(
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<think>",
        "https://me:word@host/x",
        "(a+)+$",
        "é" * 9,
    ),
    *([], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": {"c": [1, "2"]}}}, [1, "a", None, {}]),
    *({"role": "user"}, {"role": ["user"], "content": 3}, {"name": {"x": 1}, "arguments": "["}),
    *([{"type": "image_url", "image_url": "x"}], [{"type": "text", "text": "\ud800"}], ["a", "b"]),
]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "What is 6 times 7?"},
            {"role": "assistant", "content": "6 times 7 is 42.", "weight": 1},
        ],
        "kind": "math",
        "id": "1",
        "language": "en",
    },
    {
        "messages": [
            {"role": "user", "content": "Call it."},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "It is 3.", "reasoning_content": "hm"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello you."}]},
    {
        "instruction": "Add.",
        "input": "1 2",
        "output": "It is 3.",
        "system": "x",
        "history": [["a", "b"]],
    },
    {"prompt": "Say a.", "completion": "The letter a."},
    {"question": "Why is it so?", "answer": "Because it is.", "kind": "dialogue"},
    {"text": "Some plain text that is read as it stands."},
    {
        "message_id": "m",
        "parent_id": None,
        "message_tree_id": "m",
        "text": "Hi there",
        "role": "prompter",
        "lang": "en",
    },
]
PAIRS = [
    {"prompt": "Say a.", "chosen": "The letter a.", "rejected": "No.", "id": "p"},
    {
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
    },
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"instruction": "Q?", "output_1": "one answer", "output_2": "another", "preference": 1},
    {"prompt": "Q?", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 2}]},
    {"prompt": "Q?", "response_0": "a", "response_1": "b", "safer_response_id": 0},
]
PROMPTS = [
    {"messages": [{"role": "user", "content": "Say a."}], "id": "1", "language": "en"},
    {
        "prompt": "Say b.",
        "reference": {"final": "b", "any_of": ["b"], "none_of": [], "refuse": False},
    },
    {"question": "6*7?", "answer": "42", "category": "math", "id": 7},
    {"instruction": "Add.", "input": "1 2", "kind": "math", "reference": {"all_of": ["3"]}},
]
QUESTIONS = [
    {
        "question_id": 81,
        "category": "writing",
        "turns": ["Write.", "Again."],
        "reference": ["a", "b"],
    },
    {"question": "Why?", "category": "数学计算", "reference": "So."},
]
SAMPLE = {
    "doc_id": 0,
    "doc": {"question": "1+1", "gold": 0},
    "target": "0",
    "arguments": {
        "gen_args_0": {"arg_0": "Q", "arg_1": " 2"},
        "gen_args_1": {"arg_0": "Q", "arg_1": " 3"},
    },
    "resps": [[["-1.0", "True"]], [["-2.0", "False"]]],
    "filtered_resps": [["-1.0", "True"], ["-2.0", "False"]],
    "filter": "none",
    "metrics": ["acc", "acc_norm"],
    "doc_hash": "d0",
    "prompt_hash": "p0",
    "target_hash": "t0",
    "acc": 1.0,
    "acc_norm": 0.0,
}
RESULTS = {
    "results": {"sums": {"acc,none": 1.0}},
    "group_subtasks": {"all": ["sums"]},
    "configs": {
        "sums": {"metric_list": [{"metric": "acc"}], "metadata": {"version": 1, "cluster": "q"}}
    },
    "versions": {"sums": 1.0},
    "n-shot": {"sums": 0},
    "config": {"model": "hf", "model_sha": "c0"},
    "model_source": "hf",
    "model_name": "m",
    "chat_template": None,
}
REPLY = {
    "choices": [{"message": {"role": "assistant", "content": "Good. Rating: [[abcdefgh 7]]"}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 3},
}
PRESET = {
    "run": {"dir": "run", "seed": 0},
    "model": {"name_or_path": "base", "dtype": "float32", "add_tokens": ["<a>"]},
    "lora": {"r": 4, "target_modules": ["q_proj"]},
    "data": {
        "on_error": "stop",
        "sft": [{"path": "rows.jsonl", "kind": "math", "weight": 1.0, "columns": {"prompt": "q"}}],
        "preference": [{"path": "pairs.jsonl", "kind_rule": {"math": "[0-9]"}}],
    },
    "sft_all": {
        "learning_rate": 1e-4,
        "num_train_epochs": 1,
        "max_length": 64,
        "train_batch_size": 4,
    },
    "sft_dialogue": {"enabled": "auto", "kinds": ["dialogue"]},
    "pairs": {"prompts": [{"path": "prompts.jsonl"}], "samples_per_prompt": 2},
    "dpo": {"beta": 0.1, "enabled": True},
    "eval": {
        "tasks": ["sums"],
        "limit": 3,
        "repetition": {"prompts": "prompts.jsonl", "cap": 80},
        "per_task": {"sums": {"metric": "acc"}},
    },
}


def mutated(random_: random.Random, value: Any) -> Any:
    """Return the value with one to three changes."""
    value = json.loads(json.dumps(value))
    for _ in range(random_.randint(1, 3)):
        holder = [value]  # so that the top-level value can be replaced too
        path = random_.choice(list(_places(holder)))
        inner: Any = holder
        for key in path[:-1]:
            inner = inner[key]
        key, old = path[-1], inner[path[-1]]
        what = random_.randrange(8)
        if what < 4 or len(path) == 1:
            inner[key] = copy.deepcopy(random_.choice(ODD)) if len(path) > 1 or what == 0 else old
        elif what == 4 and isinstance(inner, dict):
            inner[str(random_.choice(ODD))[:40]] = inner.pop(key)
        elif what == 5:
            del inner[key]
        elif what == 6:
            for _ in range(random_.choice((1, 2, 80, 160))):
                old = [old] if random_.random() < 0.5 else {"x": old}
            inner[key] = old
        elif isinstance(old, str):
            inner[key] = old + str(random_.choice(ODD))
        else:
            inner[key] = json.dumps(old)
        value = holder[0]
    return value


def _places(value: Any, at: tuple = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, dict | list) and len(at) < 12:
            yield from _places(inner, (*at, key))


def as_bytes(random_: random.Random, text: str) -> bytes:
    """Return the text as bytes that may be cut, changed or in another encoding."""
    content = text.encode("utf-8", "surrogatepass")
    what = random_.randrange(14)
    if what == 0:
        content = content[: random_.randrange(len(content) + 1)]
    elif what == 1 and content:
        at = random_.randrange(len(content))
        content = content[:at] + bytes([random_.randrange(256)]) + content[at + 1 :]
    elif what == 2:
        content = text.encode(random_.choice(("utf-16", "utf-8-sig")), "replace")
    elif what == 3:
        content = content.replace(b"\n", random_.choice((b"\r", b"\r\n", b"\x0b", b"")))
    elif what == 4:
        content = random_.choice(
            (b"", b"\n", b"\x00" * 50, b"[" * 90_000, b'{"a":' * 90_000, content * 2)
        )
    return content


def json_text(value: Any, *, twice: bool = False) -> str:
    """Return JSON with lone surrogates as escapes; `twice` repeats the first field."""
    text = json.dumps(value)
    if twice and isinstance(value, dict) and value:
        name = next(iter(value))
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(value[name])}}}"
    return text


def write_rows(random_: random.Random, folder: Path, sound: list[Any]) -> Path:
    """Write one to four rows in any data format."""
    rows = [random_.choice(sound) for _ in range(random_.randint(1, 4))]
    hostile = [mutated(random_, row) if random_.random() < 0.7 else row for row in rows]
    kind = random_.choice(("jsonl", "jsonl", "jsonl", "json", "csv", "parquet"))
    path = folder / f"rows.{kind}"
    if kind == "parquet" and _write_table(random_, hostile, path):
        if random_.random() < 0.2:
            path.write_bytes(as_bytes(random_, path.read_bytes().decode("latin-1")))
        return path
    if kind == "csv":
        text = _csv(random_, [row for row in hostile if isinstance(row, dict)])
    elif kind == "json":
        text = json_text(random_.choice((hostile, {"data": hostile}, hostile[0])))
    else:
        texts = [json_text(row, twice=random_.random() < 0.05) for row in hostile]
        text = "\n".join(texts) + "\n"
    path = path.with_suffix(".jsonl") if kind == "parquet" else path
    path.write_bytes(as_bytes(random_, text))
    return path


def _write_table(random_: random.Random, rows: list[Any], path: Path) -> bool:
    """Write the rows as Parquet, perhaps with a duplicate column; return whether Arrow can."""
    try:
        table = pyarrow.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        if table.num_columns and random_.random() < 0.15:
            table = table.append_column(table.schema.names[0], table.column(0))
        pyarrow.parquet.write_table(table, path)
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        path.unlink(missing_ok=True)
        return False
    return True


def _csv(random_: random.Random, rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if names and random_.random() < 0.15:
        names.append(names[0])
    separator = random_.choice(",,,;\t|")

    def line(cells: list[str]) -> str:
        quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        return separator.join(quoted if random_.random() < 0.9 else cells)

    cells = [
        [v if isinstance(v := row.get(n, ""), str) else json.dumps(v) for n in names]
        for row in rows
    ]
    return "\n".join(line(row) for row in [names, *cells]) + "\n"


def write_preset(random_: random.Random, folder: Path) -> tuple[Path, list[str]]:
    """Write a preset; return it with overrides."""
    path = folder / "preset.yaml"
    value = mutated(random_, PRESET)
    text = json_text(value) if random_.random() < 0.5 else yaml.safe_dump(PRESET)
    path.write_bytes(as_bytes(random_, text))
    keys = [".".join(map(str, place)) for place in _places(PRESET)]
    odd = [json.dumps(one) if random_.random() < 0.5 else str(one) for one in ODD]
    overrides = [
        f"{random_.choice((*keys, 'x.y', '', 'data.sft.0.path'))}={random_.choice(odd)}"
        for _ in range(random_.randrange(3))
    ]
    return path, overrides


def write_samples(random_: random.Random, folder: Path) -> Path:
    """Write a folder of lm-eval samples and results."""
    samples = folder / "lm-eval"
    samples.mkdir()
    lines = [
        mutated(random_, SAMPLE) if random_.random() < 0.5 else SAMPLE
        for _ in range(random_.randint(1, 3))
    ]
    name = "2026-01-01T00-00-00.000000"
    text = "".join(json_text(line) + "\n" for line in lines)
    (samples / f"samples_sums_{name}.jsonl").write_bytes(as_bytes(random_, text))
    results = mutated(random_, RESULTS) if random_.random() < 0.5 else RESULTS
    if random_.random() < 0.9:
        (samples / f"results_{name}.json").write_bytes(as_bytes(random_, json_text(results)))
    return samples


def write_run(random_: random.Random, folder: Path) -> None:
    """Write a finished run with two rows per file, one of its files malformed."""
    make_run(folder)
    results = json.loads((folder / "results.json").read_text("utf-8"))
    for model in MODELS:
        tasks = {task: entries[model] for task, entries in results["benchmarks"].items()}
        scores = {"repetition": results["repetition"][model], "benchmarks": tasks}
        path = folder / "eval" / model / "scores.json"
        path.write_text(json.dumps(scores), encoding="utf-8")
    for path in folder.rglob("*.jsonl"):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:2]), encoding="utf-8")
    dpo = folder / "eval" / "dpo"
    files = [folder / "results.json", dpo / "scores.json", dpo / "generations.jsonl"]
    files += [dpo / "samples" / "world_math.jsonl", folder / "3-dpo" / "log.jsonl"]
    path = random_.choice([*files, folder / "data" / "data.json"])
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    at = random_.randrange(len(rows))
    rows[at] = mutated(random_, rows[at])
    path.write_bytes(as_bytes(random_, "".join(json_text(row) + "\n" for row in rows)))


def reply(random_: random.Random, code: str) -> bytes:
    """Return the body of a judge reply, usually a valid one with an unusual text."""
    sound = json.loads(json.dumps(REPLY).replace("abcdefgh", code))
    if random_.random() < 0.3:
        return as_bytes(random_, json_text(mutated(random_, sound)))
    message = sound["choices"][0]["message"]
    odd = [one for one in ODD if isinstance(one, str)]
    message["content"] = random_.choice(odd) + random_.choice((message["content"], ""))
    sound["usage"]["prompt_tokens"] = random_.choice(ODD)
    return json_text(sound).encode()
