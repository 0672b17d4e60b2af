"""Chats to token rows: checked, truncated and cached.

fingerprints: What a run reads beside its preset, each with a hash, so that a change is refused
    by its name.
prepare: Sources to token rows: read, cleaned, mixed, tokenized, checked, kept in the data
    folder.
row_checks: Hard rules on token rows: checked on every one before a model loads, and shown as a
    table.
tokenize: Chats to a file of token rows, some thousands at a time, on all cores where that pays.
truncation: Rows beyond a length: left out, cut without a false ending, or split where a turn
    begins.
"""
