"""Finds an isolation that works on this machine: `eval.graders.sandbox_escapes` tries to escape."""

import functools
import json
import logging
import os
import secrets
import socket
import subprocess
import tempfile
from pathlib import Path

from eval.graders import sandbox_escapes
from eval.graders.sandbox import Submission, run_program
from eval.graders.sandbox_command import IMAGE, Isolation, RunCode, unconfined, ways
from sft.errors import UserError

log = logging.getLogger(__name__)

# A confined program must still be able to import, allocate and write.
ORDINARY = "import heapq, json, typing\nopen('a', 'w').write('b')\ndef f(x): return [x]\n"


def find_isolation(code: RunCode) -> Isolation:
    """Return the first of `sandbox_command.ways` that works, or `unconfined` where it is allowed.

    Raises:
        UserError: none works, or not even limits can be set.
    """
    found = _confining()
    if isinstance(found, Isolation):
        return found
    if code is not RunCode.UNCONFINED:
        raise UserError(
            f"programs that models write cannot be confined on this machine ({found}); install "
            f"bubblewrap, or Docker or Podman with the image {IMAGE}, or leave out the tasks that "
            "run them; on a machine without valuable data, --allow-unconfined-code runs them "
            "unconfined"
        )
    log.warning("programs run unconfined, with the rights of this user (%s)", found)
    try:
        _check_ordinary(unconfined())
    except OSError as error:
        raise UserError(
            f"programs that models write cannot be run under limits on this machine ({error}); "
            "leave out the tasks that run them"
        ) from None
    return unconfined()


@functools.cache
def _confining() -> Isolation | str:
    """Return the first isolation that works, or why each does not."""
    reasons = []
    for name, way in ways().items():
        if isinstance(way, Isolation):
            try:
                _check_ordinary(way)
                check_confinement(way)
            except OSError as error:
                way = str(error)
            else:
                log.info("programs are confined by %s", way.name)
                return way
        reasons.append(f"{name}: {way}")
    return "; ".join(reasons)


def _check_ordinary(isolation: Isolation) -> None:
    submission = Submission(ORDINARY, "assert f(1) == [1]", entry="f")
    outcome = run_program(submission, isolation=isolation)
    if not outcome.passed:
        raise OSError(outcome.reason)


def check_confinement(isolation: Isolation) -> None:
    """Run the escape attempts confined and check their effects from outside.

    Raises:
        OSError: an attempt succeeded.
    """
    secret = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="truing-probe-") as name,
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as other,
    ):
        folder = Path(os.path.realpath(name))
        folder.chmod(0o777)  # accessible to any user: the isolation must protect it, not the mode
        (folder / "secret").write_text(f"{secret}\n")  # readline reads complete lines
        (folder / "secret").chmod(0o666)
        priority = os.getpriority(os.PRIO_PROCESS, other.pid)
        try:
            facts = json.dumps([str(folder), server.getsockname()[1], other.pid])
            source = Path(sandbox_escapes.__file__).read_text(encoding="utf-8")
            tests = (
                f"for name, found in escapes(*{facts}).items():\n"
                f"    assert {secret!r} not in found and 'memory of' not in found, name\n"
            )
            outcome = run_program(Submission(source, tests, entry="escapes"), isolation=isolation)
            if other.poll() is not None:
                raise OSError("a program can end other processes")
            if os.getpriority(os.PRIO_PROCESS, other.pid) != priority:
                raise OSError("a program can slow other processes")
        finally:
            other.kill()
        if not outcome.passed:
            raise OSError(f"a program can get out: {outcome.reason}")
        kept = (folder / "secret").is_file() and (folder / "secret").read_text() == f"{secret}\n"
        mode = (folder / "secret").stat().st_mode & 0o777 if kept else 0
        if [p.name for p in folder.iterdir()] != ["secret"] or mode != 0o666:
            raise OSError("a program can change files outside of its folder")
        server.settimeout(0)
        try:
            server.accept()
        except BlockingIOError:
            return
        raise OSError("a program can reach the network")
