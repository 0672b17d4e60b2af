"""One model measured: benchmarks, repetition and safety, cached by what they read.

cost: Upper bound of the hours that measuring a run's models takes, from its questions and caps.
dry_run: Benchmarks on a backend without a model, which finds errors in the tasks before
    training.
in_training: Measures of a model while it trains: scores at the end of each epoch, and checks
    for loops.
measure: Measures of a model in a run, with its samples on disk.
measure_cache: Cache of measures: each task of each model is measured once for the same inputs.
measured_inputs: Inputs of measures that a run has not read yet, and that may therefore still
    change.
repetition: Repetition rate: the share of greedy answers that do not end and repeat a sequence.
repetition_breakdown: Repetition rate by language and category and under other thresholds.
safety: Safety: refusals of harmful prompts and of harmless ones that resemble them.
tracker_metrics: Values for trackers: one number for each measure, named by its place in
    scores.json.
"""
