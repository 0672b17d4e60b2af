"""What confines programs: what is tried at the start, what is refused, and the commands of tools
that this machine may lack."""

import json
import os
import shutil
import sys

import pytest

from eval import isolation, probe
from eval.isolation import IMAGE, Isolation, Limits, Place, RunCode, bubblewrap, container
from eval.probe import check_confinement, find_isolation
from sft.config import EvalSection, UserError

PLACE = Place("/somewhere/of its own", "truing-1", Limits())


@pytest.fixture
def without(monkeypatch):
    """A machine on which nothing confines."""
    monkeypatch.setattr(probe, "ways", lambda: {"bubblewrap": "is not installed"})
    probe._confining.cache_clear()
    yield
    probe._confining.cache_clear()


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
    monkeypatch.setattr(probe, "ways", lambda: {"leaky": leaky})
    probe._confining.cache_clear()
    with pytest.raises(UserError, match=r"\(leaky: a program can"):
        find_isolation(RunCode.CONFINED)
    probe._confining.cache_clear()


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
    tool, flag, profile, python = isolation.sandbox_exec("/usr/bin/sandbox-exec").command(PLACE)
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
    ):
        assert words[words.index(pair[0]) + 1] == pair[1]
    assert "--read-only" in words and words[-1] == IMAGE and "--volume" not in words
    assert way.stop is not None
    assert way.stop("truing-1") == [f"/usr/bin/{engine}", "rm", "--force", "truing-1"]
    assert engine in json.dumps(way.name)
