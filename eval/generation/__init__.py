"""Batched decoding with a KV cache and stops for each row.

batch: Decode a batch of rows with a KV cache.
generate: Batched generation with a KV cache, in which a finished row costs nothing.
padding_check: Check, before a model's first generation, that padded batches decode as single
    rows do.
stopping: Stop rules of generation: a stop id, a stop string, the cap, or a loop.
thinking: Split thinking from the answer, so that only the answer is graded.
"""
