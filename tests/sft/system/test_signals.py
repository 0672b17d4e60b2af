"""The first signal waits for the step, the second does not, and outside training none does."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from files import ROOT

from sft.run.command import run_command
from sft.system import signals
from sft.system.signals import Interrupted

SCRIPT = """
import hashlib, sys, time
from sft.run.command import run_command
from sft.system.signals import Interrupted, at_next_step, requested
def work():
    if sys.argv[1] == "outside":
        print("ready", flush=True)
        time.sleep(60)
    with at_next_step():
        print("ready", flush=True)
        while not requested():
            time.sleep(0.01)
        if sys.argv[1] == "long":
            print("noted", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no handler interrupts it
        print("step done", flush=True)
    raise Interrupted(requested(), saved=" at step 1, saved")
sys.exit(run_command(work))
"""


SENTENCE = b"\nstopped by SIGTERM; the same command continues from there\n"


def start(where):
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)],
)
@pytest.mark.parametrize("where", ["step", "outside"])
def test_a_signal_ends_the_run_with_its_own_code_and_one_sentence(where, signum, code):
    child = start(where)
    child.send_signal(signum)
    said = child.communicate(timeout=20)
    assert child.returncode == code
    assert ("step done" in said[0]) == (where == "step")
    assert "Traceback" not in said[1] and f"stopped by {signum.name}" in said[1]


def test_what_keeps_nothing_does_not_say_that_it_goes_on(capsys):
    def work():
        raise Interrupted(signal.SIGTERM)

    assert run_command(work, resumable=False) == 143
    assert capsys.readouterr().err == "\nstopped by SIGTERM\n"


def test_the_second_signal_ends_it_at_once_whatever_it_does():
    child = start("long")
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "noted\n"
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    out, said = child.communicate(timeout=20)
    assert child.returncode == 143 and "step done" not in out
    assert said.endswith("\nstopped by SIGTERM; the same command continues from there\n")
    assert time.monotonic() - begun < 10


def test_what_the_interrupted_code_made_of_the_signal_is_still_the_signal(capsys):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            raise AttributeError("half of an object")

    assert run_command(work) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    with pytest.raises(AttributeError):
        run_command(lambda: None.nothing)


def ended_by_sigterm(work, *, stderr=subprocess.PIPE):
    """Exit code and last words of a command that a first signal could not end where it arrived."""
    script = (
        "import hashlib, sys, threading, time\nfrom sft.system import signals\n"
        "from sft.run.command import run_command\n"
        "signals.GRACE = 0.5\n" + work + "sys.exit(run_command(work))\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
        assert b"Traceback" not in (said or b"")
        return child.returncode, said


def test_a_signal_that_a_destructor_swallows_ends_the_run_all_the_same():
    work = (
        "class Swallows:\n"
        "  def __del__(self):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        "def work():\n"
        "  Swallows()\n"
        "  time.sleep(60)\n"
    )
    assert ended_by_sigterm(work) == (143, SENTENCE)


def test_a_signal_that_a_long_call_keeps_from_being_noted_ends_the_run_by_its_name():
    work = (
        "def work():\n"
        "  threading.Timer(0.5, lambda: print('ready', flush=True)).start()\n"
        "  hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000_000)\n"
    )
    assert ended_by_sigterm(work) == (143, SENTENCE)
    with open(os.devnull, "rb") as closed:  # without a reader, the exit code still reports it
        assert ended_by_sigterm(work, stderr=closed)[0] == 143


def in_a_terminal(where, folder):
    """A command whose controlling terminal, stdout and stderr are a pseudoterminal; returns the
    process and the other end of the terminal, which closes it."""
    ours, its = os.openpty()
    take = "import fcntl, os, termios\nos.setsid()\nfcntl.ioctl(1, termios.TIOCSCTTY, 0)\n"
    touch = f'    open({str(folder / "done")!r}, "w").close()\n'
    script = take + SCRIPT.replace('    print("step done"', touch + '    print("step done"')
    child = subprocess.Popen([sys.executable, "-c", script, where], stdout=its, stderr=its)
    os.close(its)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 1000)
    return child, ours


def test_a_closed_terminal_ends_the_run_behind_its_step_although_nothing_can_be_written(tmp_path):
    child, terminal = in_a_terminal("step", tmp_path)
    os.close(terminal)  # the kernel sends SIGHUP, and writing fails from now on
    assert child.wait(20) == 129
    assert (tmp_path / "done").exists()


def test_a_reader_of_the_output_that_ends_with_the_terminal_does_not_end_the_step():
    child = start("long")
    child.send_signal(signal.SIGHUP)
    assert child.stdout.readline() == "noted\n"
    child.stdout.close()
    child.stderr.close()
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGHUP)
    assert child.wait(20) == 129


def test_under_nohup_a_closed_terminal_does_not_end_the_run():
    work = (
        "import signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from sft.run.command import run_command\n"
        "def work():\n"
        "  signal.raise_signal(signal.SIGHUP)\n"
        "  print('goes on')\n"
        "raise SystemExit(run_command(work))\n"
    )
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


# The processes of others: their parents read what they print, and end them.
CHILDREN = {"sft/model/tokenizer_subprocess.py", "eval/backends/vllm_worker.py"}
# They fork commands, which set their own handlers.
FORKING = {f"tests/benchmarks/{n}.py" for n in ("kill_commands", "kill_resume", "many_processes")}
COMMANDS = sorted(
    name
    for folder in ("recipes", "sft", "dpo", "eval", "tests/benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if re.search('^if __name__ == "__main__":$', path.read_text("utf-8"), re.MULTILINE)
    and (name := path.relative_to(ROOT).as_posix()) not in CHILDREN | FORKING
)


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_libraries_are_imported_is_no_traceback(tmp_path, name):
    """The first library that a command imports sends the signal."""
    for library in ("torch", "rich", "yaml", "jinja2"):
        (tmp_path / f"{library}.py").write_text(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
        )
    start = name if name.startswith(("recipes", "tests")) else name[:-3].replace("/", ".")
    command = [sys.executable, *([start] if start == name else ["-m", start])]
    paths = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_what_ignores_ctrl_c_still_does():
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from sft import end_on_interrupt\nend_on_interrupt()\nsignal.raise_signal(signal.SIGINT)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_a_block_does_not_start_after_an_earlier_signal_and_a_later_one_ends_only_it(at_once):
    reached = []

    def work():
        with signals.at_next_step():
            signals.run_until_signal(lambda: reached.append("before"), at_once=at_once)
            os.kill(os.getpid(), signal.SIGTERM)
            signals.run_until_signal(lambda: reached.append("after"), at_once=at_once)
            reached.append("step")
        raise Interrupted(signals.requested())

    assert run_command(work) == 143
    assert reached == ["before", "step"]

    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check_interrupt()
        reached.append("rest of the block")

    def work_of_a_later_signal():
        with signals.at_next_step():
            signals.run_until_signal(interrupted, at_once=at_once)
            reached.append("step")
        raise Interrupted(signals.requested())

    assert run_command(work_of_a_later_signal) == 143
    assert reached == ["before", "step", "step"]
