"""Check that docstrings, comments and messages avoid words that readers stumbled over."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from files import ROOT

# Word -> what to write instead. Stored keys and flags keep their spelling.
INSTEAD = {
    r"beside": "next to, in addition to",
    r"aloud": "with a log line",
    r"mend(ed|s|ing)?": "fix",
    r"knock(s|ed)?": "connect",
    r"nobody": "no one, or name the subject",
    r"whatever": "for every, regardless of",
    r"told|tells?": "report, pass",
    r"hands? (over|back|on)": "pass, return",
    r"behind": "after",
    r"(it|that|which|as|file|row|text|message) says": "contains, reports",
    r"of (its|his|her|their|one's|our|my) own": "a separate one",
    r"by lot": "at random",
    r"to the bit": "bit-identical",
    r"quantis\w+|tokenis\w+|normalis\w+|optimis\w+|recognis\w+|summaris\w+|initialis\w+": "-iz-",
    r"colou?r(?<=colour)\w*|behaviour|neighbour\w*|favour\w*|licence": "American spelling",
}
KEPT = ("not_tokenised", "`mended`", '"mended"', "--utilisation")
FILES = sorted(
    path
    for folder in ("sft", "dpo", "eval", "recipes")
    for path in (ROOT / folder).rglob("*.py")
    if "quickstart" not in path.parts
)
WORDS = re.compile("|".join(rf"\b(?:{word})\b" for word in INSTEAD), re.IGNORECASE)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of a file with their lines."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_listed_word_is_used(path):
    found = []
    for line, text in texts(path):
        for kept in KEPT:
            text = text.replace(kept, "")
        found += [f"{path.name}:{line}: {match[0]}" for match in WORDS.finditer(text)]
    assert found == []


def test_a_listed_word_is_found(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""Mended beside it."""\nx = "of its own"  # told aloud\n')
    found = {match[0] for _, text in texts(file) for match in WORDS.finditer(text)}
    assert found == {"Mended", "beside", "of its own", "told", "aloud"}
