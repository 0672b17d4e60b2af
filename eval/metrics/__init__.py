"""Pure functions: statistics, paired comparisons, loop detection and number formatting.

bounded_mean: Confidence bounds and tests for the mean of values in a known range.
clusters: Standard errors and effective sample sizes of scores that share a passage or a
    template.
loop_detection: Loop detection in token ids: the period, the number of copies and where the loop
    begins.
mcnemar: McNemar's exact test of paired right/wrong scores, and the interval of their mean
    difference.
number_format: Numbers as text: percentages, differences in points, intervals, p-values and
    durations.
paired_comparison: Paired comparison of two models, whose stored samples are joined on the
    document.
power: Power of paired comparisons: the smallest detectable change, and the questions needed.
sign_flips: Sign-flip test and interval for the ratio of two sums, such as bits per byte.
stats: Intervals and tests for scores and for paired differences: pure functions, no I/O.
"""
