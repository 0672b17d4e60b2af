"""Near-duplicate rows and benchmark contamination, found and removed.

decontamination: Training rows that hold a benchmark's question, found by overlap of character
    windows.
filters: Rows that should not be trained on, taken out of what was read: benchmark questions,
    repetitions.
near_duplicates: Near-duplicate rows, inside and across sources: found by MinHash, confirmed by
    exact overlap.
ngrams: Text reduced to what a copy keeps, and hashes of its windows: for duplicates and
    contamination.
"""
