"""Attempts to escape from an isolation, run confined by `eval.graders.sandbox_probe`.

Run as a program with the standard library alone. An attempt that succeeds does no harm.
"""

import os
import socket
import subprocess
from typing import Any


def escapes(folder: str, port: int, pid: int) -> Any:
    """Run each attempt; return {attempt: data it read} for those that raise no error.

    Args:
        folder: a folder outside of the isolation, with a file `secret`.
        port: a port outside that accepts connections.
        pid: a process outside.
    """
    reached = {}
    for attempt in ATTEMPTS:
        try:
            found = attempt(folder, port, pid)
        except BaseException:  # of any kind: an attempt should fail
            continue
        reached[attempt.__name__] = str(found)[:1000]
    return reached


def read_file(folder: str, port: int, pid: int) -> Any:
    with open(f"{folder}/secret", encoding="utf-8") as file:
        return file.read()


def list_folder(folder: str, port: int, pid: int) -> Any:
    return os.listdir(folder)


def read_by_a_link(folder: str, port: int, pid: int) -> Any:
    os.symlink(folder, "link")
    with open("link/secret", encoding="utf-8") as file:
        return file.read()


def read_by_a_command(folder: str, port: int, pid: int) -> Any:
    return subprocess.run(["/bin/cat", f"{folder}/secret"], capture_output=True).stdout


def read_by_readline(folder: str, port: int, pid: int) -> Any:
    import readline

    readline.read_history_file(f"{folder}/secret")
    return [readline.get_history_item(i) for i in range(1, 3)]


def read_by_tcl(folder: str, port: int, pid: int) -> Any:
    import _tkinter

    return _tkinter.create(None, "x", "X", False, True, False, False, None).eval(
        f"read [open {{{folder}/secret}}]"
    )


def read_by_the_c_library(folder: str, port: int, pid: int) -> Any:
    import ctypes

    library = ctypes.CDLL(None)
    content = ctypes.create_string_buffer(1000)
    library.read(library.open(f"{folder}/secret".encode(), 0), content, 999)
    return content.value


def write_file(folder: str, port: int, pid: int) -> Any:
    with open(f"{folder}/written", "w", encoding="utf-8") as file:
        file.write("x")


def write_by_readline(folder: str, port: int, pid: int) -> Any:
    import readline

    readline.add_history("x")
    readline.write_history_file(f"{folder}/history")


def write_by_a_subinterpreter(folder: str, port: int, pid: int) -> Any:
    code = f"open({folder + '/subinterpreter'!r}, 'w').write('x')"
    try:
        import _interpreters as interpreters

        interpreters.exec(interpreters.create(), code)
    except ImportError:
        import _xxsubinterpreters as interpreters

        interpreters.run_string(interpreters.create(), code)


def make_pipe(folder: str, port: int, pid: int) -> Any:
    os.mkfifo(f"{folder}/pipe")


def make_node(folder: str, port: int, pid: int) -> Any:
    os.mknod(f"{folder}/node")


def make_folder(folder: str, port: int, pid: int) -> Any:
    os.mkdir(f"{folder}/folder")


def make_link(folder: str, port: int, pid: int) -> Any:
    os.symlink("secret", f"{folder}/link")


def rename_file(folder: str, port: int, pid: int) -> Any:
    os.rename(f"{folder}/secret", f"{folder}/renamed")


def change_mode(folder: str, port: int, pid: int) -> Any:
    os.chmod(f"{folder}/secret", 0o600)


def connect(folder: str, port: int, pid: int) -> Any:
    socket.create_connection(("127.0.0.1", port), timeout=2)


def lower_priority(folder: str, port: int, pid: int) -> Any:
    os.setpriority(os.PRIO_PROCESS, pid, 5)


def read_memory(folder: str, port: int, pid: int) -> Any:
    maps_file = f"/proc/{pid}/maps"
    with open(maps_file, encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(int(next(iter(maps)).split("-")[0], 16))
        return f"memory of {pid}: {memory.read(1)!r}"


def kill(folder: str, port: int, pid: int) -> Any:
    os.kill(pid, 9)


def kill_by_descriptor(folder: str, port: int, pid: int) -> Any:
    import signal

    signal.pidfd_send_signal(os.pidfd_open(pid), 9)


def kill_by_the_c_library(folder: str, port: int, pid: int) -> Any:
    import ctypes

    ctypes.CDLL(None).kill(pid, 9)


ATTEMPTS = [
    *(read_file, list_folder, read_by_a_link, read_by_a_command, read_by_readline, read_by_tcl),
    *(read_by_the_c_library, write_file, write_by_readline, write_by_a_subinterpreter, make_pipe),
    *(make_node, make_folder, make_link, change_mode, connect, lower_priority, read_memory),
    *(kill, kill_by_descriptor, kill_by_the_c_library, rename_file),
]
