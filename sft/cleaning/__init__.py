"""Near-duplicate rows and benchmark contamination, found and removed.

decontamination: Training rows that contain a benchmark's question, found by overlap of
    character n-grams.
filters: Filters of training rows: benchmark questions and near-duplicates, each with stored
    evidence.
near_duplicates: Near-duplicate removal with MinHash LSH, within and across sources, verified by
    exact overlap.
ngrams: Hashes of the character n-grams of normalized texts, for duplicates and contamination.
"""
