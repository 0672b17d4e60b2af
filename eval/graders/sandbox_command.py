"""Defines the sandboxes of each platform: the command line that starts a process in one.

Linux: new namespaces (`eval.graders.sandbox_namespaces`), or bubblewrap, which some systems permit
to create namespaces when other programs may not. macOS: `sandbox-exec`. Both: a Docker or Podman
container. `eval.graders.sandbox_probe` finds which of them works.
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

from eval.graders import sandbox_namespaces
from sft.config.sections import EvalSection

# User ids that systemd leaves unused, so that process limits count one program alone.
USERS = range(60706, 61184)
IMAGE = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
# Folders that may hold Python and its libraries on a Mac, in addition to its prefix.
MAC_TREES = (
    *("/usr/lib", "/usr/share", "/System", "/opt/homebrew/Cellar", "/opt/homebrew/opt"),
    *("/opt/homebrew/lib", "/usr/local/Cellar", "/usr/local/opt", "/opt/local/lib"),
)
# Variables that Docker and Podman would pass from the user to a container.
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
    """Limits of one program."""

    cpu_seconds: int = 10
    wall_seconds: int = 60  # for programs that wait; ample, so that a busy machine fails none
    memory_bytes: int = 1 << 30  # address space of each process, resident size of all
    processes: int = 16
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20


class RunCode(enum.Enum):
    """Whether programs that models write are run: never, confined, or also unconfined."""

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
    """Folder of a process (`/` if its files are in memory), a unique name, and limits."""

    folder: str
    name: str
    limits: SandboxLimits


@dataclass(frozen=True)
class Isolation:
    """A way to confine a process.

    Attributes:
        name: description for the log and the report.
        command: returns the command that runs Python, without Python's arguments.
        own_processes: the process may start others, which end with it and have their own limit.
        own_files: its files are in memory, of a size that the kernel limits.
        drops_root: the process changes to a user that owns nothing if the caller is root.
        stop: returns the command that ends it, if killing the process is not enough.
        enters: returns arguments of `sandbox_namespaces.enter`, if the process confines itself.
        by_client: the command is a client that needs the user's environment; the program does not
            get it.
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
    """Return a user id that owns no file and no process."""
    return USERS[os.getpid() % len(USERS)]


def ways() -> dict[str, Isolation | str]:
    """Return the isolations of this system, best first, or the reason why one is not available."""
    found: dict[str, Isolation | str] = {}
    if sys.platform == "linux":
        found["namespaces"] = Isolation(
            "namespaces: no network, own processes, read-only system files and an empty /tmp; "
            f"{_LIMITED}",
            lambda place: [sys.executable],
            enters=_namespace_arguments,
        )
        root = os.geteuid() == 0  # RLIMIT_NPROC does not apply to root
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
    """Return no isolation: a program has the rights of this user and network access."""
    return Isolation(
        f"nothing, as --allow-unconfined-code allows; {_LIMITED}",
        lambda place: [sys.executable],
        own_processes=False,
        own_files=False,
        drops_root=True,
    )


def bubblewrap(tool: str) -> Isolation:
    """Return the isolation that `eval.graders.sandbox_namespaces` gives, created by bubblewrap."""

    def command(place: Place) -> list[str]:
        words = [tool, "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        words += ["--die-with-parent", "--new-session"]
        for tree in (*sandbox_namespaces.TREES, *_python_folders()):
            if os.path.islink(tree):
                words += ["--symlink", os.readlink(tree), tree]
            elif os.path.exists(tree):
                words += ["--ro-bind", tree, tree]
        for device in sandbox_namespaces.DEVICES:
            words += ["--dev-bind", device, device]
        words += ["--size", str(place.limits.disk_bytes), "--tmpfs", "/tmp", "--remount-ro", "/"]
        return [*words, "--chdir", "/tmp", "--", _python()]

    name = "bubblewrap: no network, own processes, read-only system files and an empty /tmp"
    return Isolation(f"{name}; {_LIMITED}", command)


def sandbox_exec(tool: str) -> Isolation:
    """Return Apple's sandbox: its own folder and Python's files, no network, no other process."""

    def command(place: Place) -> list[str]:
        trees = [*MAC_TREES, *_python_folders(), *map(os.path.realpath, _python_folders())]
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
    """Return a string literal of the profile language, which escapes quotes only."""
    return json.dumps(path, ensure_ascii=False)


def container(engine: str) -> Isolation:
    """Return a container of IMAGE, which is never pulled."""
    podman = Path(engine).name == "podman"

    def command(place: Place) -> list[str]:
        limits, user = place.limits, free_user()
        memory, size = str(limits.memory_bytes), limits.disk_bytes
        words = [engine, "run", "--rm", "--interactive", "--name", place.name, "--pull", "never"]
        words += ["--network", "none", "--ipc", "none", "--read-only", "--cap-drop", "ALL"]
        # Podman adds writable folders by default.
        words += ["--read-only-tmpfs=false"] if podman else []
        words += ["--security-opt", "no-new-privileges", "--user", f"{user}:{user}"]
        words += ["--pids-limit", str(limits.processes + 1)]
        words += ["--memory", memory, "--memory-swap", memory]
        # Podman has no limit on the number of files; their memory is limited.
        words += ["--tmpfs", f"/tmp:rw,noexec,nosuid,nodev,mode=1777,size={size}"]
        # Output is not logged, and a container that does not end is killed at once.
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
    """Return all environment variables of a program."""
    path = "/usr/local/bin:/usr/bin:/bin"
    # A fixed hash seed gives sets of strings one order, so that verdicts are reproducible.
    return {"PATH": path, "HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0"}


def _namespace_arguments(place: Place) -> dict[str, Any]:
    """Return the arguments of `eval.graders.sandbox_namespaces.enter`."""
    return {"size": place.limits.disk_bytes, "user": free_user(), "shown": _python_folders()}


def _python() -> str:
    """Return the real path of the interpreter: a link may be outside of the visible folders."""
    return os.path.realpath(sys.executable)


def _python_folders() -> list[str]:
    """Return the folders of Python that a program needs."""
    return list(dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)))
