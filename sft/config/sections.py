"""The sections of a preset: every key of ours with its default, and which of trl's are not open."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RunSection:
    dir: str = "runs/quickstart"
    seed: int = 0
    date: str | None = None  # YYYY-MM-DD that chat templates write; absent: of the first start
    on_bad_step: str = "stop"  # a loss or gradient that is not finite, dead or jumps: stop, skip
    spike_factor: float = 10.0  # times the median loss of the last 20 steps; 0: jumps are allowed
    collapse_nats: float = 2.0  # chosen answers may lose so much a token in DPO; 0: any amount
    loop_checks: int = 3  # looks within a stage at whether answers begin to loop; 0: none
    loop_rise: float = 0.3  # the share that loops may rise by so much in a stage; 0: by anything
    loop_budget: float = 0.05  # share of a stage's time that looks for loops may take; 0: any
    report_to: list[str] = field(default_factory=list)  # tensorboard, trackio, wandb (offline)


@dataclass
class ModelSection:
    name_or_path: str = ""
    revision: str | None = None  # branch, tag or commit on the hub; absent: the main branch
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    load_in_4bit: bool = False  # QLoRA: frozen weights in NF4 (bitsandbytes); LoRA on CUDA alone
    attn_implementation: str = "auto"  # auto, documents, flex, sdpa, eager
    chat_template: str | None = None  # file or template text; absent: the tokenizer's, else ours
    add_tokens: list[str] = field(default_factory=list)  # trained too under LoRA; added if missing
    # Share of the characters of a source, or of what is measured, that the tokenizer cannot write
    # above which a run stops.
    max_unknown: float = 0.03
    trust_remote_code: bool = False  # see ASKED_BY_THE_USER
    base_model: str | None = None  # hub id of a local base, for the card of what is published
    license: str | None = None  # of the base, for the same card


@dataclass
class LoraSection:
    r: int = 0  # 0: full fine-tuning
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: Any = "all-linear"  # or names of layers; see sft.model.lora_targets
    # Parameters that are no torch.nn.Linear (stacked experts, routers) by name; absent: with
    # all-linear every one, else none; []: none.
    target_parameters: list[str] | None = None
    use_rslora: bool = False  # the adapter counts lora_alpha / sqrt(r) times, not lora_alpha / r
    use_dora: bool = False  # the length of each row of a weight matrix is trained beside it
    between_stages: str = "continue"  # the adapter goes on; merge: into its base, a new one begins


def how_trained(lora: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """What a preset's `lora` and `model` sections train, in words."""
    if not lora.get("r"):
        return "all weights"
    kind = "rank-stabilised " if lora.get("use_rslora") else ""
    kind += "DoRA" if lora.get("use_dora") else "LoRA"
    over = " over 4-bit weights" if model.get("load_in_4bit") else ""
    anew = ", anew in each stage" if lora.get("between_stages") == "merge" else ""
    return f"{kind} of rank {lora['r']}{over}{anew}"


@dataclass
class Source:
    """Where rows come from: a local file or a hub id, and how to read it."""

    path: str = ""
    name: str | None = None  # configuration of a dataset on the hub
    revision: str | None = None  # its branch, tag or commit; absent: the main branch
    kind: str | None = None  # math, code, dialogue, safety, ...; absent: the row's own `kind`
    kind_rule: dict[str, str] = field(default_factory=dict)  # kind: regex searched in user turns
    weight: float = 1.0  # share of the rows taken, or times that they are repeated
    count: int | None = None  # instead of weight: how many rows, exactly
    columns: dict[str, str] = field(default_factory=dict)
    # Of a file of two answers: value of its label: first, second or tie.
    labels: dict[str, str] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)  # fields that are left out on purpose
    split: str = "train"
    strip_calculator: bool = False  # remove GSM8K's <<6*7=42>>; the line "#### 42" stays
    tree_paths: str = "best"  # of an Open-Assistant tree: best (the top-ranked), all
    license: str | None = None  # for the card of what is published


@dataclass
class DataSection:
    sft: list[Source] = field(default_factory=list)
    preference: list[Source] = field(default_factory=list)
    on_error: str = "stop"  # stop, drop
    near_duplicates: float = 0.8  # overlap from which a chat is a duplicate; 0: exact ones only
    decontaminate_tasks: bool = True  # no training on questions of eval.tasks
    decontaminate: list[str] = field(default_factory=list)  # nor on those in these files
    # Where a chat has no system turn: template (what the template writes), none, or a text.
    system_prompt: str = "template"
    turns: str = "all"  # assistant turns that are trained: all, last, each
    too_long: str = "drop"  # rows beyond max_length: drop, truncate, split


def _sft_defaults() -> dict[str, Any]:
    return {
        "learning_rate": 1e-5,  # the paper's, for 7B
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "cosine",
        "max_length": 1024,
        "activation_checkpointing": False,
        "save_steps": 0.25,  # a share of all steps
        "save_total_limit": 2,
        "logging_steps": 1.0,
    }


def _dpo_defaults() -> dict[str, Any]:
    # The paper's: one epoch at 5e-6, warm-up and cosine. Its beta is not stated; 0.1 is trl's.
    ours = {"learning_rate": 5e-6, "num_train_epochs": 1.0, "warmup_steps": 0.1, "beta": 0.1}
    return _sft_defaults() | ours | {"loss_type": ["sigmoid"]}


@dataclass
class SftStage:
    """A stage of supervised fine-tuning. `kinds` empty means every row."""

    enabled: bool | str = True
    kinds: list[str] = field(default_factory=list)
    train_batch_size: int = 0  # chats per optimiser step over all devices; 0: upstream's product
    packing: bool = True  # several chats in a row; a matter of layout, not of what a step sees
    trl: dict[str, Any] = field(default_factory=_sft_defaults)  # SFTConfig, by its own names


@dataclass
class DialogueStage(SftStage):
    """Stage 2; `auto` runs it where stage 1 repeats itself, and keeps it if benchmarks hold."""

    min_repetition: float = 0.02  # auto: it runs where stage 1's rate is above this; our choice


@dataclass
class PairsSection:
    prompts: list[Source] = field(default_factory=list)
    samples_per_prompt: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 400
    min_score_gap: float = 0.5  # verdicts closer than this make no pair


@dataclass
class DpoStage:
    """The preference stage; `beta`, `loss_type` and the rest are DPOConfig's. `auto` keeps its
    model if benchmarks and the repetition rate hold."""

    enabled: bool | str = True
    train_batch_size: int = 0
    packing: bool = True
    trl: dict[str, Any] = field(default_factory=_dpo_defaults)


@dataclass
class RepetitionSection:
    # Rows of {"messages": [...]}; absent: ours, English and Chinese; null: no repetition measure.
    prompts: str | None = "eval/prompts/repetition.jsonl"
    cap: int = 400  # tokens; a response that loops is followed to twice this
    temperature: float = 0.0  # above 0: measured again on answers sampled at this
    double_cap: bool = False  # measured again at twice the cap, from where the first ended
    limit: int | None = None  # prompts, at equal distances in the file; absent: all of them


@dataclass
class SafetySection:
    # Prompts with the answer that is due: {"prompt", "category", "reference": {"refuse": true}}.
    prompts: str | None = None  # ours: eval/prompts/safety.jsonl; absent: no safety measure
    cap: int = 256  # tokens of an answer
    limit: int | None = None  # prompts, at equal distances in the file; absent: all of them


@dataclass
class TaskOptions:
    """Where one benchmark departs from the rest; what is absent is as for all tasks."""

    base_shots: int | None = None
    chat_shots: int | None = None
    metric: str | None = None  # the task's first metric otherwise; see eval.tasks.sample_rows
    filter: str | None = None  # the task's first filter otherwise
    max_gen_toks: int | None = None  # tokens of a written answer; the task's own number otherwise


@dataclass
class EachEpochSection:
    """The model in training, measured a little at each epoch's end (see
    `eval.measures.epoch_eval`); no input of a stage, so it may change at any time: a finished stage
    stays as it is."""

    enabled: bool = False
    prompts: int = 50  # of repetition.prompts, at equal distances; 0: no repetition by epoch
    tasks: list[str] | None = None  # of eval.tasks; absent: all of them, []: none
    limit: int = 50  # documents of each task, the first


@dataclass
class EvalSection:
    tasks: list[str] = field(default_factory=list)
    task_dir: str | None = None
    data_dir: str | None = None  # where data files of task_dir's tasks are; absent: beside them
    limit: int | None = None
    allow_code_execution: bool = False  # tasks that run model-written programs; ASKED_BY_THE_USER
    allow_unconfined_code: bool = False  # where nothing confines them too; ASKED_BY_THE_USER
    base_format: str = "auto"  # plain, chat; auto: chat where the start is a chat model already
    base_shots: int = 5
    chat_shots: int = 0
    per_task: dict[str, TaskOptions] = field(default_factory=dict)
    same_format: list[str] = field(default_factory=list)  # plain, chat: all models asked so too
    repetition: RepetitionSection = field(default_factory=RepetitionSection)
    safety: SafetySection = field(default_factory=SafetySection)
    each_epoch: EachEpochSection = field(default_factory=EachEpochSection)
    backend: str = "transformers"  # transformers, vllm; one for all models that are compared
    vllm_python: str | None = None  # the Python that has vLLM; absent: this one; ASKED_BY_THE_USER
    # Under FSDP2: measure with each process's part of the weights; auto: where none holds all.
    in_parts: bool | str = "auto"


@dataclass
class Preset:
    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    sft_all: SftStage = field(default_factory=SftStage)
    sft_dialogue: DialogueStage = field(default_factory=lambda: DialogueStage(kinds=["dialogue"]))
    pairs: PairsSection = field(default_factory=PairsSection)
    dpo: DpoStage = field(default_factory=DpoStage)
    eval: EvalSection = field(default_factory=EvalSection)


CHOICES = {
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "model.attn_implementation": ("auto", "documents", "flex", "sdpa", "eager"),
    "lora.between_stages": ("continue", "merge"),
    "run.on_bad_step": ("stop", "skip"),
    "data.on_error": ("stop", "drop"),
    "eval.backend": ("transformers", "vllm"),
    "eval.base_format": ("auto", "plain", "chat"),
    "data.turns": ("all", "last", "each"),
    "data.too_long": ("drop", "truncate", "split"),
}

# Members that a list may have.
MEMBERS = {
    "eval.same_format": ("plain", "chat"),
    "run.report_to": ("tensorboard", "trackio", "wandb", "none"),
}

# Options of a source by the list that it stands in: what nothing there would read is refused.
SOURCE_OPTIONS = {
    "data.sft": {"weight", "count", "kind_rule", "strip_calculator", "tree_paths"},
    "data.preference": {"weight", "count", "kind_rule", "labels"},
    "pairs.prompts": {"weight"},
}

# Upstream keys that the chain decides itself, with the place where they are decided instead.
DECIDED = {
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
    "accelerator_config": "the chain, which makes and spreads batches itself",
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

# Keys that run programs or code that others wrote, or send what is trained: a preset's file, which
# may be a stranger's, does not set them, the command line does (`sft.config.preset.load_preset`).
ASKED_BY_THE_USER = {
    "model.trust_remote_code": "runs the Python files that come with the model",
    "eval.vllm_python": "starts this program",
    "eval.allow_code_execution": "runs the programs that the models write",
    "eval.allow_unconfined_code": "runs them where nothing confines them",
    **{
        f"{stage}.push_to_hub": "uploads what is trained"
        for stage in ("sft_all", "sft_dialogue", "dpo")
    },
}

# Upstream keys that our loss and our rows would pass over in silence.
WITHOUT_EFFECT = frozenset(
    {
        "project",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "truncation_mode",
        "shuffle_dataset",
        "eval_packing",
        "label_smoothing_factor",
        "router_aux_loss_coef",
        "use_liger_kernel",
        "liger_kernel_config",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "use_weighting",
        "discopop_tau",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "disable_dropout",
        "eval_on_start",
        "eval_strategy",
        "eval_steps",
        "do_eval",
        "load_best_model_at_end",
        "metric_for_best_model",
        "include_for_metrics",
    }
)
