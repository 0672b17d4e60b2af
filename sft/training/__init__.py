"""The SFT trainer: micro-batches, resumable steps, divergence checks and schedules.

divergence: Numbers that go wrong: every step is looked at before it changes a weight.
eval_callbacks: Evaluation callback that measures a model while it trains, on a schedule.
lr_schedules: Learning-rate schedules as pure functions of the step: a factor of the peak in [0,
    1].
micro_batches: Micro-batches as forward passes of packed rows, each of a bounded number of
    tokens.
optimizer: Tries a stage's options of optimizer, schedule, checkpointing and data loader before
    training.
progress_log: What training says while it runs: log.jsonl, the progress bar, the trackers.
resumable: What a trainer needs to be stopped, killed and resumed without a trace: on top of
    upstream's.
stage: A training stage from the model it starts with to the published one.
throughput: How fast a stage trains: tokens, padding, work done against what the device can do,
    memory.
trainer: The SFT trainer on trl's: packed rows in, a loss on answers only, sealed checkpoints.
"""
