"""Text of others reaches the terminal as text, from every place that writes; and output that
cannot be written ends the command in words."""

import io
import os
import re
import subprocess
import sys

import pytest
from files import ROOT
from rich.table import Table

from sft.chat_template.encoding import EncodedChat
from sft.planning.mask_display import colored
from sft.run.terminal import SafeConsole, SafeStream, visible

# A new title, a cleared screen, a color, a line written over, C1, a direction, half a character.
HOSTILE = (
    "a\x1b]0;owned\x07\x1b[2J\x1b[31m\rerror: all is well\x08\x9b31m\u202e\u2066\u2028\ud800\x7f"
)
KEY = "hf_" + "a1" * 12
# Each way in which a command writes what others wrote; the last one ends the process.
WRITES = {
    "print": "print('kind', text)",
    "print to stderr": "print(text, file=sys.stderr)",
    "log": "logging.warning('kind %s', text)",
    "log of an error": "try: fail()\n    except ValueError: logging.exception('no')",
    "table": "SafeConsole().print(table)",
    "table shown": "show(table)",
    "progress bar": "list(tqdm([1, 2], desc=text))",
    "warning": "import warnings; warnings.warn(text)",
    "several lines": "logging.warning('kind %s', 'math\\nerror: no space')",
    "refusal": "raise UserError(text)",
    "refusal of several lines": "raise UserError('math\\nstopped by SIGTERM')",
    "uncaught error": "raise LookupError(text)",
}
SCRIPT = """
import logging, sys
from rich.table import Table
from tqdm import tqdm
from sft.run.command import run_command
from sft.errors import UserError
from sft.run.console import show, start_logging
from sft.run.terminal import SafeConsole
text = {text!r}
table = Table(text, title=text, caption=text)
table.add_row(text)
def fail():
    raise ValueError(text)
start_logging_once = [start_logging]
"""
CALL = """
print("==", {way!r}, file=sys.stderr, flush=True)
def work():
    if start_logging_once:
        start_logging_once.pop()()
    {write}
    sys.stdout.flush()
codes = run_command(work)
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_control_character_of_others_reaches_the_terminal(encoding):
    script = SCRIPT.format(text=f"{HOSTILE} {KEY}")
    script += "".join(CALL.format(way=way, write=write) for way, write in WRITES.items())
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stdout
    parts = re.split(r"^== (.*)\n", done.stdout.decode(encoding), flags=re.MULTILINE)[1:]
    out = dict(zip(parts[::2], parts[1::2], strict=True))
    assert out.keys() == WRITES.keys()
    assert out.pop("several lines") == "kind math\n    error: no space\n"
    assert out.pop("refusal of several lines") == "\nerror: math\n    stopped by SIGTERM\n"
    for way, text in out.items():
        if way == "progress bar":  # its own return to the start of the line
            text = re.sub(r"\r(?=a|$)", "", text)
        raw = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", text)
        assert raw == [], way
        escape = "␛" if encoding == "utf-8" else r"\\u241b"
        assert re.search(rf"{escape}]0;\s*owned", text), (way, text)
        assert KEY not in text, way


def test_what_the_command_itself_writes_stays(monkeypatch):
    said = "Größe ⟦你好⟧ 🙂 \u200d\n\tx → 1"
    assert visible(said) == said
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", SafeStream(terminal, errors=False))
    console = SafeConsole()
    console.print("\x1b[31mred[/red]", style="bold")
    written = terminal.getvalue()
    assert written.startswith("\x1b[1m␛")
    assert re.sub(r"\x1b\[[0-9;]*m", "", written) == "␛[31mred[/red]\n"


def test_a_terminal_too_narrow_breaks_no_figure_and_leaves_no_column_out(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    figures = ["30.6-86.3%", "21.5-78.5%", "p = 1.00", "-12.5"]
    table = Table(box=None)
    for name in ("sft-dialogue", "base to dpo", "p after Holm", "change"):
        table.add_column(name, overflow="fold")
    table.add_row(*figures)
    SafeConsole().show(table)
    shown = capsys.readouterr().out
    assert all(figure in shown for figure in figures) and "sft-dialogue" in shown


def test_a_token_cannot_look_trained_by_its_own_colors(tiny_tokenizer):
    ids = tiny_tokenizer("\x1b[32mhi\x1b[0m")["input_ids"]
    assert colored(tiny_tokenizer, EncodedChat(ids, [False] * len(ids))) == (
        "\x1b[2m␛[32mhi␛[0m\x1b[0m"
    )


# Outputs that cannot be written, folders that are gone, memory that runs out


def ended(work, shell="{}", **more):
    script = f"import sys\nfrom sft.run.command import run_command\ndef work():\n    {work}\n"
    script += "sys.exit(run_command(work))\n"
    line = shell.format(f'"{sys.executable}" -c "$SCRIPT"')
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env=os.environ | {"SCRIPT": script, "PYTHONPATH": str(ROOT)},
        **more,
    )


def test_a_closed_reader_ends_the_output_and_not_the_work(tmp_path):
    work = f"[print(i) for i in range(50_000)]; open({str(tmp_path / 'done')!r}, 'w')"
    done = ended(work, "{} | head -1; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n0\n", "")
    assert (tmp_path / "done").exists()
    done = ended("print(1, file=sys.stderr); print(2)", "{} 2>&1 >/dev/full | true")
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_an_error_in_one_sentence():
    for work in ("print(1)", "[print(i) for i in range(50_000)]"):
        done = ended(work, "{} > /dev/full")
        assert done.returncode == 1
        assert re.fullmatch(r"\nerror: the output could not be .*free some space.*\n", done.stderr)
    assert ended("print(1, file=sys.stderr)", "{} 2> /dev/full").returncode == 0


def test_closed_outputs_are_no_mistake():
    work = "from tqdm import tqdm; list(tqdm([1])); print(1); print(2, file=sys.stderr)"
    for closed in ("{} >&-", "{} 2>&-", "{} >&- 2>&-"):
        done = ended(work, closed)
        assert done.returncode == 0, done.stderr


def test_a_removed_working_directory_is_reported(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = ended("print(1)", f"rmdir {gone}; {{}}", cwd=gone)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"\nerror: the working directory cannot be read .*another folder.*\n", done.stderr
    )


def test_a_working_directory_that_goes_while_a_command_runs_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = ended(f"import os; os.rmdir({str(gone)!r}); open('x', 'w')", cwd=gone)
    assert done.returncode == 1
    assert re.fullmatch(
        r"\nerror: the working directory cannot be read .*another folder.*\n", done.stderr
    )
    # Any other missing file is a mistake of ours.
    assert "FileNotFoundError" in ended("open('nowhere/x')").stderr


@pytest.mark.parametrize(
    "work",
    [
        "raise MemoryError",
        "bytearray(1 << 60)",
        "import torch; torch.empty(1 << 50)",
        "raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB')",
    ],
)
def test_memory_that_runs_out_is_reported_as_a_sentence(work):
    done = ended(work)
    assert done.returncode == 1
    assert re.fullmatch(r"\nerror: memory ran out.*per_device_train_batch_size.*\n", done.stderr)


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("open('/etc/passwd/x')", "/etc/passwd/x .*name a folder"),
        ("open('/tmp/' + 'x' * 300)", "shorter name"),
        ("open('/')", "Is a directory"),
    ],
)
def test_errors_of_the_file_system_are_sentences(work, words):
    done = ended(work)
    assert done.returncode == 1
    assert re.fullmatch(rf"\nerror: .*{words}.*\n", done.stderr), done.stderr
