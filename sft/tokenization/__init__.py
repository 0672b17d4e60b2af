"""Chats to token rows: checked, truncated and cached.

fingerprints: Hash every input that a run reads in addition to its preset, so that a refusal
    names a change.
prepare: Sources to token rows: read, cleaned, mixed, tokenized, checked, kept in the data
    folder.
row_checks: Hard rules on token rows: checked on every one before a model loads, and shown as a
    table.
tokenize: Chats to a file of token rows, some thousands at a time, on all cores where that pays.
truncation: Rows beyond a length: left out, cut without a false ending, or split where a turn
    begins.
"""
