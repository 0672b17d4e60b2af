"""Ways to confine a process with what the platform has: the command line of each.

Linux: new namespaces (`eval.graders.namespaces`), or bubblewrap, which some systems allow where
they allow no other program to make namespaces. macOS: `sandbox-exec`. Either: a container of Docker
or Podman. Which of them holds on this machine is found by trying (`eval.graders.sandbox_probe`).
"""

import enum
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.graders import namespaces
from sft.config.sections import EvalSection

# Ids that systemd's table of user ids leaves to nobody, so that limits count one program alone.
USERS = range(60706, 61184)
IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
# Where Python of a Mac and its libraries may lie, besides its own prefix.
MAC_TREES = (
    *("/usr/lib", "/usr/share", "/System", "/opt/homebrew/Cellar", "/opt/homebrew/opt"),
    *("/opt/homebrew/lib", "/usr/local/Cellar", "/usr/local/opt", "/opt/local/lib"),
)
# Of the user's engine and shell, which it would pass on to a container.
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
# Later rules override earlier ones; `system.sb` is what Apple's own profiles start from.
MAC_PROFILE = """(version 1)
(deny default)
(import "system.sb")
(deny network*)
(deny file-write*)
(deny signal)
(deny process-info*)
(deny process-fork)
(deny ipc*)
(allow process-info* (target self))
(allow signal (target self))
(allow sysctl-read)
(allow process-exec {trees})
(allow file-read* file-map-executable {trees})
(allow file-read-metadata {above})
(allow file-read* (literal "/dev/null") (literal "/dev/random") (literal "/dev/urandom"))
(allow file-write-data (literal "/dev/null"))
(allow file-read* file-write* (subpath {folder}))
"""


@dataclass(frozen=True)
class SandboxLimits:
    """What one program may use; memory is address space a process and resident size together.

    CPU time decides; the clock is for programs that wait, and ample so that a busy machine changes
    no verdict.
    """

    cpu_seconds: int = 10
    wall_seconds: int = 60
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20


class RunCode(enum.Enum):
    """Whether programs that models write are run: confined, or also where nothing confines them."""

    NEVER = "never"
    CONFINED = "confined"
    UNCONFINED = "unconfined"

    @classmethod
    def of(cls, section: EvalSection) -> "RunCode":
        if section.allow_unconfined_code:
            return cls.UNCONFINED
        return cls.CONFINED if section.allow_code_execution else cls.NEVER


@dataclass(frozen=True)
class Place:
    """Where a process is confined: its folder (empty, or `/` where its files lie in memory), a name
    of its own, its limits."""

    folder: str
    name: str
    limits: SandboxLimits


@dataclass(frozen=True)
class Isolation:
    """A way to confine a process.

    Attributes:
        name: how it confines, for the log and the report.
        command: the words in front of Python's arguments.
        own_processes: the process may start others, which end with it and are counted apart.
        own_files: its files lie in memory, of a size that the kernel limits.
        drops_root: it becomes a user that owns nothing where the caller is root.
        stop: the command that ends it, where killing the process is not enough.
        enters: arguments of `eval.graders.namespaces.enter`, where the process confines itself.
        by_client: the command is a client of a daemon or of a storage that the user's environment
            names; it gets that environment, and the program does not.
    """

    name: str
    command: Callable[[Place], list[str]]
    own_processes: bool = True
    own_files: bool = True
    drops_root: bool = False
    stop: Callable[[str], list[str]] | None = None
    enters: Callable[[Place], dict[str, Any]] | None = None
    by_client: bool = False


def free_user() -> int:
    """A user id that owns no file and no process of this machine."""
    return USERS[os.getpid() % len(USERS)]


def ways() -> dict[str, Isolation | str]:
    """What may confine a process on this system, best first; or why it cannot."""
    found: dict[str, Isolation | str] = {}
    if sys.platform == "linux":
        found["namespaces"] = Isolation(
            "namespaces: no network, own processes, read-only system files and an empty /tmp; "
            f"{_LIMITED}",
            lambda place: [sys.executable],
            enters=_namespaces,
        )
        root = os.geteuid() == 0  # whose processes no limit counts
        found["bubblewrap"] = (
            "is for users other than root" if root else _installed("bwrap", bubblewrap)
        )
    if sys.platform == "darwin":
        found["sandbox-exec"] = _installed("/usr/bin/sandbox-exec", sandbox_exec)
    for engine in ("docker", "podman"):
        found[engine] = _installed(engine, container)
    return found


_LIMITED = "limits on CPU, memory, processes and files"


def _installed(tool: str, way: Callable[[str], Isolation]) -> Isolation | str:
    path = shutil.which(tool)
    return way(path) if path else "is not installed"


def unconfined() -> Isolation:
    """None: a program may read and write what this user may, and reach the network."""
    return Isolation(
        f"nothing, as --allow-unconfined-code allows; {_LIMITED}",
        lambda place: [sys.executable],
        own_processes=False,
        own_files=False,
        drops_root=True,
    )


def bubblewrap(tool: str) -> Isolation:
    """The same root, network and processes as `eval.graders.namespaces` gives."""

    def command(place: Place) -> list[str]:
        words = [tool, "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        words += ["--die-with-parent", "--new-session"]
        for tree in (*namespaces.TREES, *_shown()):
            if os.path.islink(tree):
                words += ["--symlink", os.readlink(tree), tree]
            elif os.path.exists(tree):
                words += ["--ro-bind", tree, tree]
        for device in namespaces.DEVICES:
            words += ["--dev-bind", device, device]
        words += ["--size", str(place.limits.disk_bytes), "--tmpfs", "/tmp", "--remount-ro", "/"]
        return [*words, "--chdir", "/tmp", "--", _python()]

    name = "bubblewrap: no network, own processes, read-only system files and an empty /tmp"
    return Isolation(f"{name}; {_LIMITED}", command)


def sandbox_exec(tool: str) -> Isolation:
    """Apple's sandbox: its own folder and Python's files, no network, no other process."""

    def command(place: Place) -> list[str]:
        trees = [*MAC_TREES, *_shown(), *map(os.path.realpath, _shown())]
        above = {str(parent) for tree in (*trees, place.folder) for parent in Path(tree).parents}
        profile = MAC_PROFILE.format(
            trees=" ".join(f"(subpath {_quoted(tree)})" for tree in dict.fromkeys(trees)),
            above=" ".join(f"(literal {_quoted(path)})" for path in sorted(above)),
            folder=_quoted(place.folder),
        )
        return [tool, "-p", profile, _python()]

    name = "sandbox-exec: no network, no other processes, no files but Python's and its own folder"
    return Isolation(f"{name}; {_LIMITED}", command, own_processes=False, own_files=False)


def _quoted(path: str) -> str:
    """A string of the profile's language, which has no escapes for other than quotes."""
    return json.dumps(path, ensure_ascii=False)


def container(engine: str) -> Isolation:
    """A container of an image that is there already; none is fetched."""

    podman = Path(engine).name == "podman"

    def command(place: Place) -> list[str]:
        limits, user = place.limits, free_user()
        memory, size = str(limits.memory_bytes), limits.disk_bytes
        words = [engine, "run", "--rm", "--interactive", "--name", place.name, "--pull", "never"]
        words += ["--network", "none", "--ipc", "none", "--read-only", "--cap-drop", "ALL"]
        # Podman makes more folders writable unless that is refused.
        words += ["--read-only-tmpfs=false"] if podman else []
        words += ["--security-opt", "no-new-privileges", "--user", f"{user}:{user}"]
        words += ["--pids-limit", str(limits.processes + 1)]
        words += ["--memory", memory, "--memory-swap", memory]
        # Podman knows no limit on the number of files; their memory counts in any case.
        words += ["--tmpfs", f"/tmp:rw,noexec,nosuid,nodev,mode=1777,size={size}"]
        # What a program writes is kept in no log, and what does not end is killed at once.
        words += ["--workdir", "/tmp", "--log-driver", "none", "--stop-timeout", "0"]
        for name in PROXIES:
            words += ["--env", f"{name}=", "--env", f"{name.upper()}="]
        for name, value in environment("/tmp").items():
            words += ["--env", f"{name}={value}"]
        return [*words, "--entrypoint", "python3", IMAGE]

    def stop(name: str) -> list[str]:
        return [engine, "rm", "--force", name]

    name = f"container of {Path(engine).name} ({IMAGE}): no network, own processes and files"
    return Isolation(f"{name}; {_LIMITED}", command, stop=stop, by_client=True)


def environment(home: str) -> dict[str, str]:
    """All variables that a program sees. Sets of strings have one order, so that a verdict can be
    repeated."""
    path = "/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0"}


def _namespaces(place: Place) -> dict[str, Any]:
    """Arguments of `eval.graders.namespaces.enter`."""
    return {"size": place.limits.disk_bytes, "user": free_user(), "shown": _shown()}


def _python() -> str:
    """The interpreter itself: a virtual environment's link may lie outside of what is shown."""
    return os.path.realpath(sys.executable)


def _shown() -> list[str]:
    """Folders of Python's own that a program needs."""
    return list(dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)))
