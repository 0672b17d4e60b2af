"""The rooms of the house: who may import whom, and what no file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"sft": {"sft"}, "dpo": {"dpo", "sft"}, "eval": {"eval", "sft"}}
ROOMS = {"sft", "dpo", "eval", "recipes"}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
# `accelerate launch recipes/x.py` puts recipes/ first on sys.path: these names would shadow.
SHADOWS = {"sft.py", "dpo.py", "eval.py", "evaluate.py", "datasets.py"}


def imported_rooms(path):
    """Top-level names of ours that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names = [node.module]
        yield from (name.split(".")[0] for name in names if name.split(".")[0] in ROOMS)


def test_there_are_files_to_check():
    assert len(FILES) > 25


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_the_design_allows(path):
    room = path.relative_to(ROOT).parts[0]
    used = set(imported_rooms(path))
    if room == "recipes":
        return
    assert used <= ALLOWED[room], f"{path} imports {used - ALLOWED[room]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_imports_eval_by_its_bare_name(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in ROOMS
    ]
    assert not bare, f"{path}: write `from {bare[0]}.x import y`"


def test_no_recipe_shadows_a_package_and_no_sink_modules():
    names = {p.name for p in (ROOT / "recipes").glob("*.py")}
    assert not names & SHADOWS
    sinks = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [p for p in FILES if p.name in sinks]


def test_code_lives_in_the_folders_of_the_design_card():
    tops = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    with_code = {t for t in tops if any((ROOT / t).rglob("*.py"))}
    assert with_code - {"runs"} == {*ROOMS, "tests"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_of_other_programs_is_read_in_an_encoding_that_is_named(path):
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            unnamed = "True" in (given.get("text"), given.get("universal_newlines"))
            assert not unnamed or "encoding" in given, f"{path}:{call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_can_be_read_in_one_sitting(path):
    if path.stem.endswith("_lines"):
        return  # lists of sentences: text, not code
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_every_module_of_the_packages_imports(room):
    import importlib

    for path in (ROOT / room).rglob("*.py"):
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
