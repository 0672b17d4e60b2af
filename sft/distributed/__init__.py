"""Processes of one run: ranks, shards, collectives and heartbeats.

collectives: Collectives over the processes of a run: map items over ranks, or run on the main
    process.
fsdp_forward: Forward passes of a model whose weights are sharded over the processes (FSDP2).
sharding: The processes that a launcher started, and weights spread over them (FSDP2, ZeRO-3).
watchdog: Watchdog of a run's processes: if one dies or hangs, the others exit and report which
    and why.
workers: Forked worker processes that leave signals to their parent, and end when it does.
"""
