"""Batched decoding with a KV cache and stops for each row.

batch: Rows that are decoded together, with a KV cache.
generate: Batched generation with a KV cache, in which a finished row costs nothing.
padding_check: The proof, before a model's first answers, that rows of a batch are decoded as
    each is alone.
stopping: When an answer is over: at a stop id, a stop string, its cap, or a loop.
thinking: Thinking split off from what a model wrote, so that only its answer is graded.
"""
