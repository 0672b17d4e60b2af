"""Preset keys that the chain sets itself, ignores, or accepts from the command line only."""

# Keys of TRL that the chain sets itself, with the place that decides them instead.
DECIDED_BY = {
    "output_dir": "run.dir",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "use_cpu": "the launcher (accelerate launch --cpu)",
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config"),
        "the launcher (accelerate launch --config_file recipes/accelerate/...)",
    ),
    "accelerator_config": "the chain, which builds and distributes batches itself",
    "model_init_kwargs": "the model section",
    "trust_remote_code": "model.trust_remote_code",
    "hub_token": "the environment ($HF_TOKEN), so that it is in no file",
    "chat_template_path": "model.chat_template",
    "eos_token": "the tokenizer and its chat template",
    "pad_token": "the tokenizer",
    "report_to": "run.report_to, for all stages and measures",
    "run_name": "run.dir, whose name the trackers show",
    "trackio_space_id": "the environment ($TRACKIO_SPACE_ID)",
    "disable_tqdm": "the recipe",
    "logging_nan_inf_filter": "run.on_bad_step",
    "logging_first_step": "the report, which needs the first loss",
    "remove_unused_columns": "the data section",
    "dataloader_pin_memory": "the device",
    "include_num_input_tokens_seen": "the report, which counts tokens",
    "resume_from_checkpoint": "starting the same command again",
    "save_strategy": "save_steps",
    **dict.fromkeys(
        ("assistant_only_loss", "completion_only_loss"), "the chain: only answers are trained"
    ),
    **dict.fromkeys(
        ("dataset_kwargs", "dataset_text_field", "dataset_num_proc"), "the data section"
    ),
    **dict.fromkeys(("padding_free", "packing_strategy", "pad_to_multiple_of"), "packing"),
    **dict.fromkeys(
        ("precompute_ref_log_probs", "precompute_ref_batch_size", "sync_ref_model"),
        "the chain: the reference is the stage's own start, computed once",
    ),
}

# Keys that run other people's code, or upload the trained model. A preset file may come from a
# stranger, so only the command line may set them (`sft.config.preset.load_preset`).
COMMAND_LINE_ONLY = {
    "model.trust_remote_code": "runs the Python files that come with the model",
    "eval.vllm_python": "starts this program",
    "eval.allow_code_execution": "runs the programs that the models write",
    "eval.allow_unconfined_code": "runs them where nothing confines them",
    **{
        f"{stage}.push_to_hub": "uploads what is trained"
        for stage in ("sft_all", "sft_dialogue", "dpo")
    },
}

# Keys of TRL that our loss, our rows and our measurements would ignore.
WITHOUT_EFFECT = frozenset(
    (
        *("project", "trackio_bucket_id", "trackio_static_space_id"),
        # Rows: we truncate, shuffle and pack them ourselves.
        *("truncation_mode", "shuffle_dataset", "eval_packing"),
        # The loss: these are read in methods of TRL's trainers that ours replace.
        *("label_smoothing_factor", "router_aux_loss_coef", "ld_alpha", "use_weighting"),
        *("f_divergence_type", "f_alpha_divergence_coef", "discopop_tau"),
        *("use_liger_kernel", "liger_kernel_config", "disable_dropout"),
        # The reference model, which never changes.
        *("ref_model_mixup_alpha", "ref_model_sync_steps"),
        # Evaluation, which `eval` does between the stages.
        *("eval_on_start", "eval_strategy", "eval_steps", "do_eval"),
        *("load_best_model_at_end", "metric_for_best_model", "include_for_metrics"),
    )
)
