"""Disk, locks, signals and the hub: what can fail outside of the program.

atomic_files: Files that are whole or not there, folders that go all at once, and writes that
    fail in words.
file_lock: Lock a run directory for one process, with flock and a heartbeat in the lock file.
heartbeat: Heartbeats: a process writes a small record again and again to show that it is alive.
hub: what can fail outside of the program.

atomic_files: Files that are whole or not there, folders that go all at once, and writes that
    fail in words.
file_lock: One writer for a run directory: the kernel's lock, and a beating file where that is
    not enough.
hub: Whether the hub answers; and what it did not give, in words that say what to do about it.
run_marker: The marker of a run directory: the id of the run and the list of all that it wrote
    there.
seal: Records with their own hash in them, so that a damaged one is detected when it is read.
signals: SIGTERM, SIGINT, SIGUSR1, SIGHUP: the first ends the run at the next step, the second
    at once.
time_limit: Code that came with a model or a task, ended when it does not end by itself.
"""
