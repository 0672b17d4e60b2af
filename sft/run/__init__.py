"""The run directory: stages, checkpoints, trackers and the console.

adapters: Where an adapter's base is, also after its run has been moved, and hashes that moving
    leaves.
chain_arguments: The command line of the chain, which is checked before any library that takes
    seconds.
checkpoint: Atomic checkpoints: written to a draft folder, sealed by a manifest, then renamed
    into place.
command: How a command writes and ends: 0, or one sentence and an exit code that says whose turn
    it is.
console: What a command says while it runs: one line a decision, on the first process only.
contents: Stages of a run directory: what a stage read, and when it is finished.
directory: Opening a run directory: held by one command, marked as a run's, and of one preset.
earlier_versions: Runs that earlier versions of truing began: which files are theirs, and what
    can be compared.
environment: Record of what a run was made with: `run.json` with versions, hardware, seeds and
    inputs.
new_folder: Folders that take their name when all of them is written, for results outside a run
    directory.
revisions: Hub revisions: resolve branches and tags to commits, and keep a run on the commits it
    began with.
run_date: The date of a run, `run.date`: as given, as recorded when the run began, or today's.
run_place: Where a run directory may be, and that nothing in it leads out of it.
stage_cache: A stage of a run directory: skipped when its inputs are unchanged, sealed when it
    is done.
stage_facts: What a training stage did: tokens, steps, seconds and the loss at its start and
    end.
terminal: Text for the terminal: control characters shown as symbols, keys hidden, in any
    encoding.
trackers: TensorBoard, trackio and Weights & Biases: they are told what the run writes down
    (`report_to`).
"""
