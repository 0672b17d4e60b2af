"""Near-duplicate rows and benchmark contamination, found and removed.

decontamination: Training rows that hold a benchmark's question, found by overlap of character
    n-grams.
filters: Rows that should not be trained on, taken out of what was read: benchmark questions,
    repetitions.
near_duplicates: Near-duplicate removal with MinHash LSH, within and across sources, verified by
    exact overlap.
ngrams: Normalized text and hashes of its character n-grams, for duplicates and contamination.
"""
