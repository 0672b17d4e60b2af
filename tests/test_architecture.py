"""Which package may import which, and what no file may be."""

import ast
import importlib
from collections import Counter

import pytest
from files import ROOT

ALLOWED = {"sft": {"sft"}, "dpo": {"dpo", "sft"}, "eval": {"eval", "sft"}}
PACKAGES = {"sft", "dpo", "eval", "recipes"}
# A sub-package imports only sub-packages of earlier levels.
LEVELS = {
    "sft": (
        ("errors", "schema"),
        ("config", "system"),
        ("data", "distributed"),
        ("chat_template", "run", "packing"),
        ("cleaning", "model"),
        ("context",),
        ("tokenization", "export"),
        ("training",),
        ("planning",),
    ),
    "eval": (
        ("schema",),
        ("schema_checks",),
        ("metrics", "generation"),
        ("backends", "graders"),
        ("tasks", "open_ended"),
        ("measures",),
        ("report",),
        ("results",),
    ),
}
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
# `accelerate launch recipes/x.py` puts recipes/ first on sys.path: these names would shadow.
SHADOWS = {"sft.py", "dpo.py", "eval.py", "evaluate.py", "datasets.py"}


def module_name(path):
    """The dotted name of a file; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported_modules(path):
    """Modules of ours that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            if node.module.split(".")[0] not in PACKAGES:
                continue
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def test_there_are_files_to_check():
    assert len(FILES) > 25


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_import_only_what_the_design_allows(path):
    package = path.relative_to(ROOT).parts[0]
    used = {module.split(".")[0] for module in imported_modules(path)}
    if package == "recipes":
        return
    assert used <= ALLOWED[package], f"{path} imports {used - ALLOWED[package]}"


@pytest.mark.parametrize("package", sorted(LEVELS))
def test_sub_packages_import_only_earlier_levels(package):
    level = {name: i for i, names in enumerate(LEVELS[package]) for name in names}
    upward = []
    for path in (ROOT / package).rglob("*.py"):
        own = module_name(path).split(".")[1:2]
        if not own:
            continue
        assert own[0] in level, f"{path} is in no sub-package of the levels"
        for module in imported_modules(path):
            top, *rest = module.split(".")
            if top == package and rest and rest[0] != own[0] and level[rest[0]] >= level[own[0]]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_cycle():
    imports = {name: {m for m in imported_modules(path)} for name, path in MODULES.items()}
    done = set()

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in imports.get(module, ()):
                if other != module:
                    visit(other, [*trail, module])
            done.add(module)

    for module in imports:
        visit(module, [])


@pytest.mark.parametrize("package", sorted(LEVELS))
def test_each_sub_package_says_its_job_and_lists_its_modules(package):
    for folder in (ROOT / package).iterdir():
        if not folder.is_dir() or not any(folder.glob("*.py")):
            continue
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert text, f"{folder}/__init__.py has no docstring"
        listed = {line.split(":")[0].strip() for line in text.splitlines()[1:] if ":" in line}
        assert listed == {p.stem for p in folder.glob("*.py")} - {"__init__", "__main__"}, folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_imports_eval_by_its_bare_name(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in PACKAGES
    ]
    assert not bare, f"{path}: write `from {bare[0]}.x import y`"


def test_no_recipe_shadows_a_package_and_no_catch_all_modules():
    names = {p.name for p in (ROOT / "recipes").glob("*.py")}
    assert not names & SHADOWS
    catch_all = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [p for p in FILES if p.name in catch_all]


def test_code_lives_in_the_folders_of_the_design_card():
    tops = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    with_code = {t for t in tops if any((ROOT / t).rglob("*.py"))}
    assert with_code - {"runs"} == {*PACKAGES, "tests"}


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_of_at_most_80_lines_and_seven_parameters(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [
                a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            ]
            given = [name for name in names if name not in ("self", "cls")]
            assert node.end_lineno - node.lineno < 80, f"{path}: {node.name} is too long"
            assert len(given) <= 7, f"{path}: {node.name} has {len(given)} parameters"


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_every_module_of_the_packages_imports(package):
    for path in (ROOT / package).rglob("*.py"):
        importlib.import_module(module_name(path))


def test_names_of_test_files_are_unique():
    """pytest imports test files by their base name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name, count in Counter(names).items() if count > 1] == []
