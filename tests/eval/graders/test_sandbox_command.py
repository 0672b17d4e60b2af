"""What confines programs: what is tried at the start, what is refused, and the commands of tools
that this machine may lack."""

import json
import os
import shutil
import sys

import pytest

from eval.graders import sandbox_command, sandbox_probe
from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_command import (
    IMAGE,
    Isolation,
    Place,
    RunCode,
    SandboxLimits,
    bubblewrap,
    container,
)
from eval.graders.sandbox_probe import check_confinement, find_isolation
from sft.config.sections import EvalSection
from sft.errors import UserError

PLACE = Place("/somewhere/of its own", "truing-1", SandboxLimits())


@pytest.fixture
def without(monkeypatch):
    """A machine on which nothing confines."""
    monkeypatch.setattr(sandbox_probe, "ways", lambda: {"bubblewrap": "is not installed"})
    sandbox_probe._confining.cache_clear()
    yield
    sandbox_probe._confining.cache_clear()


def test_what_confines_here_holds():
    found = find_isolation(RunCode.CONFINED)
    check_confinement(found)
    assert "nothing" not in found.name


def test_limits_alone_are_found_out_as_no_confinement():
    """The control: without confinement the attempts succeed, and are seen."""
    with pytest.raises(OSError, match="a program can"):
        check_confinement(Isolation("limits", lambda place: [sys.executable], own_files=False))


def test_where_nothing_confines_programs_are_refused_unless_that_is_allowed(without):
    refusal = r"cannot be confined .*\(bubblewrap: is not installed\).*Docker.*--allow"
    with pytest.raises(UserError, match=refusal):
        find_isolation(RunCode.CONFINED)
    found = find_isolation(RunCode.UNCONFINED)
    assert found.name.startswith("nothing, as --allow-unconfined-code allows")


def test_what_lets_an_attempt_through_is_passed_over(monkeypatch):
    leaky = Isolation("leaky", lambda place: [sys.executable], own_files=False)
    monkeypatch.setattr(sandbox_probe, "ways", lambda: {"leaky": leaky})
    sandbox_probe._confining.cache_clear()
    with pytest.raises(UserError, match=r"\(leaky: a program can"):
        find_isolation(RunCode.CONFINED)
    sandbox_probe._confining.cache_clear()


def test_permission_is_of_the_section():
    assert RunCode.of(EvalSection()) is RunCode.NEVER
    assert RunCode.of(EvalSection(allow_code_execution=True)) is RunCode.CONFINED
    assert RunCode.of(EvalSection(allow_unconfined_code=True)) is RunCode.UNCONFINED


@pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")
def test_bubblewrap_holds():
    check_confinement(bubblewrap("bwrap"))


def test_bubblewrap_shows_no_more_than_the_systems_files():
    words = bubblewrap("/usr/bin/bwrap").command(PLACE)
    shown = [words[i + 1] for i, word in enumerate(words) if word in ("--ro-bind", "--symlink")]
    assert {"--unshare-all", "--disable-userns", "--die-with-parent"} <= set(words)
    assert "/etc" not in shown and "/" not in shown and os.path.expanduser("~") not in shown
    assert "--bind" not in words and words[-3:-1] == ["/tmp", "--"]


def test_a_mac_sandbox_allows_its_folder_and_nothing_after_that():
    tool, flag, profile, python = sandbox_command.sandbox_exec("/usr/bin/sandbox-exec").command(
        PLACE
    )
    assert (tool, flag) == ("/usr/bin/sandbox-exec", "-p") and python.startswith("/")
    rules = profile.splitlines()
    assert rules[:2] == ["(version 1)", "(deny default)"]
    writes = [rule for rule in rules if "allow" in rule and "file-write" in rule]
    assert writes == [
        '(allow file-write-data (literal "/dev/null"))',
        '(allow file-read* file-write* (subpath "/somewhere/of its own"))',
    ]
    for what in ("network*", "signal", "process-fork", "ipc*", "file-write*"):
        assert f"(deny {what})" in rules
    assert not [rule for rule in rules if rule.startswith("(allow network")]
    assert profile.count("(") == profile.count(")")


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_container_fetches_nothing_and_is_ended_by_name(engine):
    way = container(f"/usr/bin/{engine}")
    words = way.command(PLACE)
    for pair in (
        ("--pull", "never"),
        ("--network", "none"),
        ("--cap-drop", "ALL"),
        ("--security-opt", "no-new-privileges"),
        ("--name", "truing-1"),
        ("--memory", str(1 << 30)),
        ("--entrypoint", "python3"),
        ("--ipc", "none"),  # else /dev/shm is writable
        ("--log-driver", "none"),  # else the daemon stores what a program writes, without limit
        ("--stop-timeout", "0"),  # else Podman waits for 10 s before it removes by force
    ):
        assert words[words.index(pair[0]) + 1] == pair[1]
    assert "--read-only" in words and words[-1] == IMAGE and "--volume" not in words
    assert way.stop is not None
    assert way.stop("truing-1") == [f"/usr/bin/{engine}", "rm", "--force", "truing-1"]
    assert engine in json.dumps(way.name)
    # Podman refuses other options of a tmpfs, and would make /run and /var/tmp writable.
    options = words[words.index("--tmpfs") + 1].removeprefix("/tmp:").split(",")
    assert {o.split("=")[0] for o in options} == {"rw", "noexec", "nosuid", "nodev", "mode", "size"}
    assert ("--read-only-tmpfs=false" in words) == (engine == "podman")


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_engines_client_has_the_users_environment_and_the_program_has_not(engine, tmp_path):
    """The client finds its daemon, or its images, by HOME, DOCKER_HOST and XDG_RUNTIME_DIR.

    A stand-in for the client writes down its environment, and runs the command as it is asked to.
    """
    client, python = tmp_path / engine, os.path.realpath(sys.executable)
    client.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "words = sys.argv[1:]\n"
        "if words[0] == 'rm': sys.exit()\n"
        f"open({str(tmp_path / 'seen')!r}, 'a').write(os.environ['HOME'] + '\\n')\n"
        "given = [w for flag, w in zip(words, words[1:]) if flag == '--env']\n"
        f"rest = words[words.index({IMAGE!r}) + 1:]\n"
        "own = dict(pair.split('=', 1) for pair in given)\n"
        "own = {**{k: v for k, v in os.environ.items() if 'PROXY' in k.upper()}, **own}\n"
        f"os.execve({python!r}, [{python!r}, *rest], own)\n"
    )
    client.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        patch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
        program = "import os\ndef f(): return str(os.environ) + open('/proc/self/environ').read()"
        tests = f"assert 'secret' not in f() and {str(tmp_path)!r} not in f()"
        outcome = run_program(
            Submission(program, tests, entry="f"), isolation=container(str(client))
        )
    assert outcome.passed, outcome.reason
    assert (tmp_path / "seen").read_text().splitlines() == [str(tmp_path)] * 2


def test_a_mac_sandbox_names_folders_as_they_are():
    """Its language has no escapes for letters: a home may be called José."""
    words = sandbox_command.sandbox_exec("/x").command(
        Place('/Users/José/a "b"', "truing-1", SandboxLimits())
    )
    assert '(subpath "/Users/José/a \\"b\\"")' in words[2]
