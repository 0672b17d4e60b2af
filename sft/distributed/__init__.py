"""Processes of one run: ranks, shards, collectives and heartbeats.

collectives: Collectives over the processes of a run: map items over ranks, or run on the main
    process.
fsdp_forward: Forward passes of a model whose weights are sharded over the processes (FSDP2).
heartbeat: The processes of one run watch each other: one that dies or hangs ends the others,
    with a reason.
sharding: The processes that a launcher started, and weights spread over them (FSDP2, ZeRO-3).
workers: Forked worker processes that leave signals to their parent, and end when it does.
"""
