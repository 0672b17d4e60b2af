"""Moves the calling process into new Linux namespaces.

It then has no network, sees no other processes, and has its own root: system and Python files
read-only, and an empty /tmp in memory of limited size. It has no capabilities and cannot create
namespaces; root becomes an unused user id. `eval.graders.sandbox_process` sends this source to the
process, which imports the standard library alone.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Sequence

# System files that Python may load; missing ones are skipped.
TREES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# From linux/sched.h, sys/mount.h, linux/prctl.h and linux/capability.h; syscall numbers above 423
# are the same on all architectures.
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    *(0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
)
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = (
    *(1, 2, 4, 8, 32, 4096, 16384, 1 << 18),
)
DETACH = 2
ROOT = "/proc"  # mount point of the new root: exists everywhere, and the new root needs none
MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD = 442, 0x8000, -100
SET_PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION = 0x20080522


def enter(*, size: int, user: int, shown: Sequence[str]) -> None:
    """Enter new namespaces and return in a grandchild, whose parent is the namespace's process 1.

    Args:
        size: bytes of /tmp.
        user: user id of the process if it is root.
        shown: readable folders in addition to TREES.

    Raises:
        OSError: the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *args: object) -> None:
        if getattr(libc, name)(*args) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # ends with the evaluation
    own, group = os.geteuid(), os.getegid()
    root = own == 0
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # the new root has no /proc
    call("unshare", NEWNS | NEWNET | NEWPID | NEWIPC | NEWUTS | (0 if root else NEWUSER))
    if not root:
        _map_ids(proc, own, group)
    _build_root(call, size=size, shown=shown)
    for _ in range(2):
        child = os.fork()
        if child:
            _wait_for(child)
        call("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if root:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        call(
            "prctl", SET_DUMPABLE, 1, 0, 0, 0
        )  # setuid cleared it, and /proc/self would belong to root
        try:
            call("unshare", NEWUSER)
            _map_ids(proc, user, user)
        except OSError:
            pass  # the system forbids it, so that the program cannot create namespaces either
    os.close(proc)
    call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())


def _wait_for(child: int) -> None:
    """Reap children until `child` ends, then exit with its code; process 1 ends all others."""
    for file in range(3):  # readers see the end only after all copies are closed
        os.close(file)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _map_ids(proc: int, user: int, group: int) -> None:
    """Map these ids to themselves in the new user namespace, and forbid nested namespaces."""
    # In a nested namespace a program could mount file systems of any size.
    for path, text in (
        ("self/setgroups", "deny"),
        ("self/uid_map", f"{user} {user} 1"),
        ("self/gid_map", f"{group} {group} 1"),
        ("sys/user/max_user_namespaces", "0"),
    ):
        file = os.open(path, os.O_WRONLY, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


def _build_root(call: Callable[..., None], *, size: int, shown: Sequence[str]) -> None:
    """Make ROOT the root: visible folders read-only, /tmp empty and writable."""
    read_only = (ctypes.c_uint64 * 4)(RDONLY | NOSUID, 0, 0, 0)  # struct mount_attr
    call("mount", None, b"/", None, REC | PRIVATE, None)
    call("mount", b"none", ROOT.encode(), b"tmpfs", NOSUID | NODEV, b"mode=755,size=1m")
    for tree in (*TREES, *DEVICES, *shown):
        place = ROOT + tree
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
    os.makedirs(f"{ROOT}/tmp", exist_ok=True)
    options = f"mode=1777,size={size},nr_inodes=4096".encode()
    call("mount", b"none", f"{ROOT}/tmp".encode(), b"tmpfs", NOSUID | NODEV | NOEXEC, options)
    call("mount", None, ROOT.encode(), None, REMOUNT | BIND | RDONLY | NOSUID | NODEV, None)
    os.chdir(ROOT)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/tmp")
