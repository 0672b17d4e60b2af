"""Packed rows (a trunk with branches) to log-probabilities, on every attention backend.

document_attention: Attention document by document, on devices where small kernels are cheap.
equivalence: Verification at load time: packed rows score and train exactly as single sequences
    do.
fillers: Rows without trained tokens that fill the last step of an epoch.
flex_attention: Flex attention over packed rows on CUDA, with a block mask from documents and
    branches.
kv_cache: KV-cache layers: one that writes in place, and one that repeats a prefix before every
    row.
layout: Trunk-and-branch rows: one layout for SFT packing, preference pairs and multiple choice.
liger: Liger's CUDA kernels for norms, rotary positions and gated activations, where they agree.
lm_head_logprobs: The vocabulary projection on scored tokens: log-probs without storing the
    logits.
logprobs: Log-probabilities of the scored tokens of packed rows.
shared_prefix: Rows of one chat with a common prefix as a trunk with a branch for each row.
tiled_attention: Attention of packed rows in bfloat16 on a CPU, as matrix products of a tile of
    queries.
tolerances: Tolerances for comparing two computations of the same model, by the dtype of the
    weights.
"""
