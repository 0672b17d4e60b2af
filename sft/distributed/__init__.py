"""Processes of one run: ranks, shards, collectives and heartbeats.

collectives: Map items over the ranks of a run, or run on the main process.
fsdp_forward: Synchronize the forward passes of a model that is sharded over processes (FSDP2).
sharding: Join the processes that a launcher started, and shard weights over them (FSDP2,
    ZeRO-3).
watchdog: Watchdog of a run's processes: if one dies or hangs, the others exit and report which
    and why.
workers: Fork worker processes that ignore the signals of a run and exit with their parent.
"""
