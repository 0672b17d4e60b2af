"""One model measured: benchmarks, repetition and safety, cached by what they read.

cost: The hours that measuring a run's models takes at most, from the questions and caps
    themselves.
epoch_eval: Repetition and benchmarks of a model in training, at the end of each epoch.
loop_probe: A probe of a model in training: do its answers begin to loop?
measure: A model measured, with its samples on disk, measure by measure.
measure_cache: What is measured stays: each task of each model is a unit that a later start does
    not redo.
measured_inputs: Which of the files that measuring reads a run has measured on already.
rehearsal: Questions asked without a model, so that what would stop a measure is found before
    training.
repetition: The repetition rate: the share of greedy answers that never end and repeat for ever.
repetition_breakdown: Stored answers looked at more closely: by language and category, under
    other thresholds, and the answers that nearly loop. Pure functions of the rows of
    generations.jsonl.
safety: Safety: what a model does with prompts that it should refuse, and with harmless ones
    like them.
tracker_metrics: What trackers are told of a measure: one number a measure, by its place in
    scores.json.
"""
