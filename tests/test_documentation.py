"""What the documentation prints is what the code takes: commands, keys, options, files, links."""

import re
import shlex

import pytest
from files import ROOT
from printed_commands import (
    NOT_OURS,
    PROGRAMS,
    WORK,
    Command,
    code_spans,
    commands,
    commands_of_make,
    documents,
    known_key,
    options,
    problem,
)

SECTIONS = "run|model|lora|data|sft_all|sft_dialogue|pairs|dpo|eval"
KEY = re.compile(rf"({SECTIONS})(\.[a-z_]\w*)+(=.*)?")
FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|ya?ml|md|sh|toml|jinja|png|jsonl?|html)")
# Files that a run writes or a reader has; every other file that is named is here.
NOT_HERE = {
    "a run's": {
        "report.html",
        "results.json",
        "generation_config.json",
        "data/data.json",
        "data/duplicates.jsonl",
        "data/contamination.jsonl",
        "runs/quickstart/report.html",
    },
    "a reader's": {"picture.png", "chats.jsonl", "question.jsonl"},
}
# The changelog may name what was there once.
PAGES = [p for p in documents() if p.suffix == ".md" and p.name != "CHANGELOG.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "recipes/benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def printed(paths=None):
    for path in documents() if paths is None else paths:
        name = str(path.relative_to(ROOT))
        yield from commands(path.read_text(encoding="utf-8"), file=name)


def wrong_names(text, *, file="README.md"):
    """Keys, options, files and links of a page that lead nowhere."""
    spans = [span for span in code_spans(text) if " " not in span or KEY.match(span)]
    scripts = (*WORK, "recipes/quickstart/generate/pretrain.py")
    taken = {option for script in scripts for option in options(script)}
    for span in spans:
        if KEY.fullmatch(span) and not (ROOT / f"{span.replace('.', '/')}.py").is_file():
            if said := known_key(span):
                yield f"{file}: {span}: {said}"
        elif span.startswith("--") and span.split()[0] not in taken:
            yield f"{file}: no command takes {span}"
        elif FILE.fullmatch(span) and not _is_there(span, of=file):
            yield f"{file}: no file {span}"
    here = (ROOT / file).parent
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        if target.startswith("http"):
            continue
        if not (here / path).exists():
            yield f"{file}: no file {path}"
        elif heading and heading not in _anchors((here / path).read_text(encoding="utf-8")):
            yield f"{file}: {path} has no heading {heading}"


def _is_there(name, *, of):
    if any(name in names for names in NOT_HERE.values()):
        return True
    # A folder's page names its own files; a bare name is one of the recipes' or the tests'.
    if (ROOT / name).exists() or ((ROOT / of).parent / name).exists():
        return True
    folders = ("recipes", "tests")
    return "/" not in name and any(next((ROOT / f).rglob(name), None) for f in folders)


def _anchors(text):
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_command_is_one_that_its_reader_takes():
    found = list(printed())
    assert len(found) > 70 and len({command.file for command in found}) > 20
    assert [f"{command}: {said}" for command in found if (said := problem(command))] == []


def test_what_is_not_looked_at_is_still_printed():
    found = [*printed(), *commands_of_make("quickstart", "test", "check")]
    words = {word.rpartition("/")[2] for command in found for word in command.words}
    assert sorted(set(NOT_OURS) - words) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_keys_options_files_and_links_of_a_page_are_there(path):
    name = str(path.relative_to(ROOT))
    assert list(wrong_names(path.read_text(encoding="utf-8"), file=name)) == []


def test_every_sh_block_of_a_page_is_read():
    """An indented block or one without a language would be passed over."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
        assert set(fences[::2]) <= {"sh", "text"} and set(fences[1::2]) <= {""}, path
        for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            assert not [line for line in block.splitlines() if line.split()[0] in PROGRAMS], path
        assert not re.search(r"\n\n {4,}(python|accelerate|make|\.venv|pip|\$)", text), path


MISTAKES = {
    "option": ("--limit 200", "--limits 200", "unrecognized arguments: --limits"),
    "value": ("--limit 200", "--limit many", "invalid int value"),
    "switch": ("PRESET --dry-run", "PRESET --try", "unrecognized arguments: --try"),
    "key": ("sft_dialogue.enabled=false", "sft_dialog.enabled=false", "did you mean sft_dialogue"),
    "type": ("sft_dialogue.enabled=false", "sft_dialogue.enabled=perhaps", "sft_dialogue.enabled"),
    "preset": ("presets/own_model.yaml \\", "presets/my_model.yaml \\", "no such preset file"),
    "recipe": ("python recipes/export.py", "python recipes/exports.py", "exports.py is not there"),
    "target": ("make quickstart ", "make quickstep ", "quickstep"),
    "module": ("-m eval.report", "-m eval.reports", "python -m eval.reports is not known"),
    "device": ("--device h100", "--device h1000", "--device h1000 is not one of"),
    "rule": ("--devices 8 --sharded", "--devices 1 --sharded", "--sharded shards"),
    "benchmark": ("--kills 100", "--kill-all 100", "unrecognized arguments: --kill-all"),
    "launcher": ("launch --quiet", "launch --quietly", "--quietly"),
    "task": ("--tasks hellaswag,", "--tasks helloswag,", "helloswag"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_readme_or_the_benchmarks_is_found(mistake):
    right, wrong, words = MISTAKES[mistake]
    page = BENCHMARKS if mistake == "benchmark" else README
    assert right in page
    before = commands(page, file="page.md")
    changed = [c for c in commands(page.replace(right, wrong), file="page.md") if c not in before]
    assert changed
    for command in changed:
        assert words in (problem(command) or "")


def test_a_misspelt_option_or_key_of_any_command_is_found():
    """Every option and every dotted key of every page, with a letter too many."""
    tried = 0
    for command in printed(PAGES):
        for i, word in enumerate(command.words):
            name, equals, value = word.partition("=")
            if not re.match(r"--\w|[a-z_]+\.[a-z_.]+=", word):
                continue
            words = (*command.words[:i], f"{name}q{equals}{value}", *command.words[i + 1 :])
            assert problem(Command(words, command.file)), shlex.join(words)
            tried += 1
    assert tried > 50


WRONG_NAMES = {
    "`sft_dialogue`": ("`sft_dialogue.kind`", "did you mean sft_dialogue.kinds"),
    "`data.too_long`": ("`data.too_long=never`", "data.too_long"),
    "`recipes/presets/own_model.yaml` explains": ("`recipes/own_model.yaml` says", "no file"),
    "(recipes/mac.md)": ("(recipes/mac.md#nowhere)", "no heading nowhere"),
    "(SECURITY.md)": ("(SECRETS.md)", "no file SECRETS.md"),
    "`open_ended.py`": ("`open_end.py`", "no file open_end.py"),
    "`train_batch_size`": ("`--train-batch`", "no command takes --train-batch"),
}


@pytest.mark.parametrize("right", WRONG_NAMES)
def test_a_wrong_name_in_the_readme_is_found(right):
    wrong, words = WRONG_NAMES[right]
    assert right in README
    (said,) = wrong_names(README.replace(right, wrong))
    assert words in said


def test_a_newcomer_sees_what_it_is_and_three_commands_first():
    first = "\n".join(README.splitlines()[:40])
    shown = [shlex.join(command.words) for command in commands(first, file="README.md")]
    assert shown[:2] == ["make quickstart", "make test"]
    assert shown[2].startswith(".venv/bin/accelerate launch recipes/sft_then_dpo.py")
    assert "report.html" in first and "Python 3.10" in first


def test_the_readme_is_short_and_its_tree_shows_every_package():
    assert len(README.splitlines()) <= 150
    (tree,) = re.findall(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    shown, package = set(), ""
    for line in tree.splitlines():
        names = re.findall(r"([a-z_]+)/(?=,|\s)", re.split(r" {2,}", line.strip())[0] + " ")
        package = package if line.startswith(" ") else names[0]
        shown |= {f"{package}/{name}" if line.startswith(" ") else name for name in names}
    assert sorted(name for name in shown if not (ROOT / name).is_dir()) == []
    packages = {str(p.parent.relative_to(ROOT)) for p in ROOT.glob("[a-z]*/**/__init__.py")}
    assert {name for name in packages if name.split("/")[0] in ("sft", "dpo", "eval")} <= shown
