"""Chats to token rows: checked, truncated and cached.

input_hashes: Hashes the inputs that a run reads besides its preset, so that an error names a
    change.
prepare: Prepares token rows: read, clean, mix, tokenize and check the sources, and cache the
    result.
row_checks: Checks hard rules on every token row before a model loads, and prints tables of the
    rows.
tokenize: Tokenizes chats to a Parquet file of token rows, in chunks, on all cores if that is
    faster.
truncation: Handles rows beyond a length: drops them, cuts them, or splits them at turns.
"""
