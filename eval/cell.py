"""The process that runs one program: `eval.programs` starts this file as a script of its own.

It reads its order from standard input, confines itself, writes READY to the result pipe, and runs
the program. What goes wrong before READY is the system's doing, what comes after the program's.
Only the standard library is there, and of that as little as can be: memory is limited.

With namespaces (Linux), the program sees no network, no process but its own, and a root of its own:
the system's and Python's files read-only, and an empty /tmp of limited size in memory. It has no
capabilities, cannot make namespaces, and is not root outside: where the caller is, it gets a user
id that nobody has. Without namespaces an audit hook (PEP 578) stands in, which keeps an ordinary
program from files, network, processes and signals, but is no wall against one that attacks the
interpreter.
"""

import importlib
import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

READY = b"ready\n"
PROGRAM = "program.py"

# System files that a program's Python may load from; missing ones are passed over.
TREES = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
)
# Imported beforehand where there are no namespaces: a user id that nobody has may not be allowed to
# read Python's own folder, as under /root.
PRELOADED = (
    *("__future__", "abc", "array", "ast", "base64", "bisect", "calendar", "cmath", "collections"),
    *("contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "math"),
    *("numbers", "operator", "queue", "random", "re", "statistics", "string", "struct"),
    *("tempfile", "textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata"),
    *("unittest", "zlib"),
)

# linux/sched.h, sys/mount.h, linux/prctl.h, linux/capability.h; syscall numbers above 423 are one
# for all architectures.
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    *(0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
)
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = (
    *(1, 2, 4, 8, 32, 4096, 16384, 1 << 18),
)
DETACH = 2
MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD = 442, 0x8000, -100
SET_PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION = 0x20080522


def main() -> None:
    """Confine this process as ordered, then run the program in it."""
    order = json.load(sys.stdin.buffer)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.umask(0o022)
    result = order["result"]
    try:
        if order["namespaces"]:
            _enter_namespaces(order)
        else:
            _settle(order)
        _limit(order["limits"], processes=order["namespaces"])
        # The folder of this file is no place to import from.
        sys.path[:] = [path for path in sys.path if path != os.path.dirname(__file__)]
        if not order["namespaces"]:
            sys.addaudithook(_guard(os.getcwd()))
    except (OSError, ValueError) as error:
        os.write(result, str(getattr(error, "strerror", None) or error).encode())
        os._exit(1)
    os.write(result, READY)
    _run(order["source"], result=result, mark=order["mark"].encode())


def _run(source: str, *, result: int, mark: bytes) -> None:
    """Run the program as a module that is not `__main__`; write mark and error, if any."""
    write, leave, line_of = os.write, os._exit, _line_of
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(source, PROGRAM, "exec", dont_inherit=True), module.__dict__)
        report = b""
    except BaseException as error:  # the program's own, of any kind, is what is asked for
        report = line_of(error, source).encode("utf-8", "replace")
    write(result, mark + report[:1000])
    leave(0)


def _line_of(error: BaseException, source: str) -> str:
    """The error in a line, with the program's line that raised it."""
    try:
        text = str(error)[:300]
    except BaseException:  # `__str__` is the program's, too
        text = ""
    named = f"{type(error).__name__}: {text}".rstrip(": ")
    lines = source.splitlines()
    number, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == PROGRAM:
            number = trace.tb_lineno
        trace = trace.tb_next
    if 0 < number <= len(lines):
        named += f" (line {number}: {lines[number - 1].strip()[:200]})"
    return " ".join(named.split())


def _limit(limits: dict[str, int], *, processes: bool) -> None:
    """Kernel limits on this process and what it starts; without namespaces it starts nothing."""
    wanted = {
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NPROC: limits["processes"] if processes else 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS refuses to set it
        wanted[resource.RLIMIT_AS] = limits["memory_bytes"]
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    # The second after SIGXCPU is for programs that ignore it.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))


def _settle(order: dict[str, Any]) -> None:
    """Without namespaces: modules at hand, another user id, an alarm should the parent be gone."""
    for name in PRELOADED:
        importlib.import_module(name)
    _change_user(order["user"])
    signal.alarm(order["limits"]["wall_seconds"] + 1)


def _change_user(user: int | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


def _enter_namespaces(order: dict[str, Any]) -> None:
    """Return in the program's process, two forks down: below it is the namespace's process 1."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: object) -> None:
        if getattr(libc, name)(*args) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    user, group = os.geteuid(), os.getegid()
    root = user == 0
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # the new root has none
    call("unshare", NEWNS | NEWNET | NEWPID | NEWIPC | NEWUTS | (0 if root else NEWUSER))
    if not root:
        _settle_namespace(proc, user, group)
    _build_root(call, order["folder"], size=order["limits"]["disk_bytes"])
    for _ in range(2):
        child = os.fork()
        if child:
            _wait_for(child)
        call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if root:
        _change_user(order["user"])
        call("prctl", SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self stays root's
        try:
            call("unshare", NEWUSER)
            _settle_namespace(proc, order["user"], order["user"])
        except OSError:
            pass  # where it may not be done, the program cannot do it either
    os.close(proc)
    _drop_capabilities(call)


def _wait_for(child: int) -> None:
    """Reap until `child` ends, then end as it did; as process 1, all others end with this one."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _settle_namespace(proc: int, user: int, group: int) -> None:
    """In a new user namespace: these ids alone, under their own numbers, and none below it.

    In a namespace below, a program would have the capability to mount file systems of any size.
    """
    for path, text in (
        ("self/setgroups", "deny"),
        ("self/uid_map", f"{user} {user} 1"),
        ("self/gid_map", f"{group} {group} 1"),
        ("sys/user/max_user_namespaces", "0"),
    ):
        file = os.open(path, os.O_WRONLY, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


def _build_root(call: Callable[..., None], folder: str, *, size: int) -> None:
    """Make `folder` the root: TREES and Python read-only, /tmp empty and writable."""
    import ctypes

    read_only = (ctypes.c_uint64 * 4)(RDONLY | NOSUID, 0, 0, 0)  # struct mount_attr
    call("mount", None, b"/", None, REC | PRIVATE, None)
    call("mount", b"none", folder.encode(), b"tmpfs", NOSUID | NODEV, b"mode=755,size=1m")
    for tree in (*TREES, sys.base_prefix, sys.base_exec_prefix):
        place = folder + tree
        if os.path.lexists(place) or not os.path.exists(tree):
            continue
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.islink(tree):
            os.symlink(os.readlink(tree), place)
            continue
        if os.path.isdir(tree):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT))
        call("mount", tree.encode(), place.encode(), None, BIND | REC, None)
        setting = (place.encode(), AT_RECURSIVE, read_only, ctypes.sizeof(read_only))
        call("syscall", MOUNT_SETATTR, AT_FDCWD, *setting)
    os.mkdir(f"{folder}/tmp")
    options = f"mode=1777,size={size},nr_inodes=4096".encode()
    call("mount", b"none", f"{folder}/tmp".encode(), b"tmpfs", NOSUID | NODEV | NOEXEC, options)
    call("mount", None, folder.encode(), None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None)
    os.chdir(folder)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/tmp")


def _drop_capabilities(call: Callable[..., None]) -> None:
    import ctypes

    call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())


def _guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: no network, processes, signals or foreign memory; files only where allowed.

    Everything it uses is its own, so that a program that changes `os` or a builtin changes nothing.
    Links, folders and changes of the working folder are refused, so a path is what it says.
    """
    refused = (
        *("socket.", "ctypes.", "subprocess.", "pty.", "sqlite3.", "fcntl.", "gc.", "code.__new__"),
        *("os.kill", "os.fork", "os.posix_spawn", "os.spawn", "os.exec", "os.system", "os.chdir"),
        *("os.fchdir", "os.link", "os.symlink", "os.mkdir", "os.chmod", "os.chown", "os.chflags"),
        *("os.setxattr", "os.removexattr", "os.getxattr", "os.listxattr", "resource."),
    )
    modules = (
        *("ctypes", "_ctypes", "_posixsubprocess", "_posixshmem", "_gdbm", "_dbm", "_testcapi"),
        "_testinternalcapi",
    )
    paths = (
        *("os.listdir", "os.scandir", "os.remove", "os.rename", "os.rmdir", "os.truncate"),
        "os.utime",
    )
    readable = (sys.base_prefix + "/", sys.base_exec_prefix + "/", "/dev/null", "/dev/urandom")
    own = folder + "/"
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    starts, to_text, kinds = str.startswith, bytes.decode, (str, bytes)
    is_a, error = isinstance, PermissionError

    def inside(path: Any, allowed: tuple[str, ...]) -> bool:
        if path is None or is_a(path, int):
            return True
        if not is_a(path, kinds):
            return False
        text = to_text(path, "utf-8", "replace") if is_a(path, bytes) else path
        if ".." in str.split(text, "/"):
            return False
        return not starts(text, "/") or text == folder or starts(text, allowed)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            allowed = (own,) if flags & writing else (own, *readable)
            if not inside(path, allowed):
                raise error(f"no access to {path!r}")
        elif event == "import":
            if args[0] in modules:
                raise error(f"no import of {args[0]}")
        elif starts(event, refused):
            raise error(f"{event} is not allowed")
        elif starts(event, paths) and not (
            inside(args[0], (own,)) and (len(args) < 2 or inside(args[1], (own,)))
        ):
            raise error(f"{event} is not allowed there")

    return hook


if __name__ == "__main__":
    main()
