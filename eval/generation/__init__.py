"""Batched decoding with a KV cache and stops for each row.

batch: Rows that are decoded together, with a KV cache.
generate: Batched generation with a KV cache, in which a finished row costs nothing.
padding_check: Check, before a model's first generation, that padded batches decode as single
    rows do.
stopping: When an answer is over: at a stop id, a stop string, its cap, or a loop.
thinking: Thinking split off from what a model wrote, so that only its answer is graded.
"""
