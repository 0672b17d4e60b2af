"""Pure functions: statistics, paired comparisons, loop detection and number formatting.

bounded_mean: Confidence bounds and tests for the mean of values in a known range.
clusters: Scores of questions that share a passage, a template or a subject, and how little they
    add.
formatting: Numbers as text: percentages, differences in points, intervals, p-values and
    durations.
loop_detection: Loop detection in token ids: the period, the number of copies and where the loop
    begins.
paired_comparison: What a stage changed: two models' stored samples joined on the document,
    compared in pairs.
power: What a paired comparison could have shown: the smallest visible change, and questions
    needed.
sign_flips: Ratios of two sums, tested and bounded by random signs: for bits per byte.
stats: Intervals and tests for scores and for paired differences: pure functions, no I/O.
"""
