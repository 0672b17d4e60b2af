"""The run directory: stages, checkpoints, trackers and the console.

adapters: LoRA adapters on disk: their base model, also in a run that was moved.
chain_arguments: Command line of the chain, checked before the imports that take seconds.
checkpoint: Atomic checkpoints: written to a draft folder, sealed by a manifest, then renamed
    into place.
command: Exit code of a command, and the sentence for an expected error.
console: Logging and tables on the main process.
directory: Opening a run directory: locked by one command, marked as a run's, and of one preset.
directory_checks: Checks of a run directory: where it may be, and that no link leads out of it.
earlier_versions: Compatibility with runs of earlier versions: their files and hashes.
fingerprint: Hashes of plain data, files, folders and models, which decide whether work is done
    again.
output_folder: Atomic output folders outside of a run: renamed into place when complete.
revisions: Hub revisions: resolve branches and tags to commits, and keep a run on the commits it
    began with.
run_record: The record `run.json`: the versions, hardware, seed, date and inputs that a run was
    made with.
stage_cache: Cache by input hash: a stage is skipped while its inputs and outputs are unchanged.
stage_folders: Stage folders of a run: the facts and the models of its finished stages.
stage_summary: Facts of a training stage: tokens, steps, seconds, first and last loss.
terminal: Text for the terminal: control characters shown as symbols, keys hidden, in any
    encoding.
trackers: TensorBoard, trackio and Weights & Biases: log lines and measures of a run
    (`report_to`).
"""
