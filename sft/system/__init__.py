"""Disk, locks, signals and the hub: what can fail outside of the program.

atomic_files: Atomic file and folder writes, with OS errors as one sentence.
file_lock: Lock a run directory for one process, with flock and a heartbeat in the lock file.
heartbeat: Heartbeats: a process writes a small record again and again to show that it is alive.
hub: Checks whether the Hub is reachable, and explains what it did not provide.
record_hash: Records that contain their own hash, so that damage is detected when they are read.
run_marker: The marker of a run directory: the id of the run and the list of all files that it
    wrote there.
signals: Handlers for SIGTERM, SIGINT, SIGUSR1 and SIGHUP: the first ends the run, the second at
    once.
time_limit: Time limit for code that a model or a task brings along.
"""
