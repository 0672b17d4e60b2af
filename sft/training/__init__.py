"""The SFT trainer: micro-batches, resumable steps, divergence checks and schedules.

divergence: Divergence checks: bad steps, collapsing preferences and looping answers.
eval_callbacks: Evaluation callback that measures a model while it trains, on a schedule.
lr_schedules: Learning-rate schedules as pure functions of the step: a factor of the peak in [0,
    1].
micro_batches: Micro-batches as forward passes of packed rows of a bounded number of tokens.
optimizer: Trial of the options of optimizer, schedule, checkpointing and data loader.
progress_log: Progress of training: log.jsonl, the progress bar and the trackers.
resumable: Trainer mixin: step checks, signals, and checkpoints that resume bit-identically.
stage: A training stage, from the model that it starts from to the model that it saves.
throughput: Throughput of training: tokens, padding, FLOP/s against the device's peak, memory.
trainer: SFT trainer on trl's, with packed rows and a loss on answers only.
"""
