"""Processes of one run: ranks, shards, collectives and heartbeats.

collectives: Work of the processes of a run: each does its share, or one does it and tells the
    others.
fsdp_forward: Forward passes of a model whose weights are spread over the processes (FSDP2).
heartbeat: The processes of one run watch each other: one that dies or hangs ends the others,
    with a reason.
sharding: The processes that a launcher started, and weights spread over them (FSDP2, ZeRO-3).
workers: Forked worker processes that leave signals to their parent, and end when it does.
"""
