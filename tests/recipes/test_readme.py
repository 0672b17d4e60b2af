"""The README's commands in order, on small stand-ins for a reader's model and data."""

import re
import runpy
import sys

import pytest
import torch
from files import ROOT
from printed_commands import commands
from tiny_models import make_tiny_tokenizer
from tiny_world import build_world, chat

from sft.model.loading import load_model
from sft.model.placement import Placement
from sft.system.atomic_files import read_json, write_jsonl

PLACEMENT = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
# A reader's words, and what stands for them in the folder where the commands are typed.
STAND_INS = {
    "/models/my-base": "base",
    "PRESET": "preset.yaml",
    "RUN": "runs/mine",
    "DIR": "out",
    "BASE": "base",
    "CHAT": "runs/mine",
    "A": "runs/mine",
    "B": "run",
    "hellaswag,gsm8k": "sums",
    "runs/quickstart": "runs/mine",
}
# What is added to a command with that word, so that it needs no hub and little time.
ADDED = {
    "recipes/presets/own_model.yaml": [
        *("model.dtype=float32", "eval.tasks=[sums]", "eval.task_dir=tasks", "eval.base_shots=2"),
        *("eval.repetition.prompts=prompts.jsonl", "eval.repetition.cap=80"),
        *("pairs.prompts=[{path: rows.jsonl}]", "pairs.max_new_tokens=12"),
    ],
    "hellaswag,gsm8k": ["--task-dir", "tasks", "--base-shots", "2", "--to", "runs/compared"],
    "recipes/paper/protocol.yaml": [
        *("--tasks", "sums", "--task-dir", "tasks", "--to", "runs/by-protocol"),
        *("eval.per_task={}", "eval.repetition.prompts=null"),
    ],
    # 8 devices of 4 rows each.
    "--sharded": [f"{s}.train_batch_size=32" for s in ("sft_all", "sft_dialogue", "dpo")],
    "--samples": ["--to", "runs/of-samples"],
    "--rerun": ["sft_dialogue.enabled=false", "dpo.enabled=false"],
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder like a checkout, with a reader's model, chats, prompts, tasks and preset."""
    build_world(tmp_path, make_tiny_tokenizer())
    chats = [{"messages": chat(f"tell {c}", c * 3)} for c in "abcdefghijkl"]
    write_jsonl(tmp_path / "chats.jsonl", chats)
    for name in ("recipes", "eval"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed():
    """Yield the recipes and modules that the README starts, and the one that draws its picture."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```sh\n.*?^```\n", text, re.MULTILINE | re.DOTALL))
    found = commands(blocks, file="README.md")
    found += [c for c in commands(text, file="README.md") if "eval.report" in c.words]
    for words in (command.words for command in found):
        if "-m" in words or any(word.startswith("recipes/") for word in words):
            more = [word for key, added in ADDED.items() if key in words for word in added]
            yield [*map(stand_in, words), *more]


def stand_in(word):
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{STAND_INS.get(value, value)}"


def exit_code(words, monkeypatch):
    """Run a command in this process as Python would start it."""
    start = words.index("launch") + 1 if "launch" in words else 1
    as_module = words[start] == "-m"
    name, *arguments = words[start + as_module :]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        if as_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    return ended.value.code


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
def test_the_readme_typed_from_top_to_bottom(desk, monkeypatch, capsys):
    codes = {" ".join(words): exit_code(words, monkeypatch) for words in typed()}
    assert len(codes) >= 10 and set(codes.values()) == {0}, (codes, capsys.readouterr().err[-2000:])
    run = desk / "runs" / "mine"
    assert read_json(run / "results.json")["models"] == ["base", "sft-all", "dpo"]
    assert (run / "report.html").is_file() and (desk / "picture.png").stat().st_size > 10_000
    for folder in (run / "1-sft-all" / "model", run / "3-dpo" / "model", desk / "out"):
        assert load_model(str(folder), PLACEMENT).config.model_type == "llama"
    models = {
        "compared": ["base", "chat"],
        "by-protocol": ["base", "chat"],
        "of-samples": ["mine", "run"],
    }
    for name, compared in models.items():
        assert read_json(desk / "runs" / name / "results.json")["models"] == compared
