"""Sections of a preset as dataclasses; the docstring of each field documents its key.

`sft.config.keys` generates the page of all keys from this module and `sft.config.restricted_keys`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class RunSection:
    """The run directory, and the checks that stop a run."""

    dir: str = "runs/quickstart"
    """Folder that receives everything the run writes."""
    seed: int = 0
    """Seed of every random choice."""
    date: str | None = None
    """Date (YYYY-MM-DD) that chat templates insert; null: the day of the first start."""
    on_bad_step: Literal["stop", "skip"] = "stop"
    """Reaction to a step whose loss or gradient is not finite, whose loss jumps, or whose gradient
    is zero for the third time in a row; skip: leave out its update, 9 times in a row at most. With
    skip, looping answers are only warned of."""
    spike_factor: float = 10.0
    """A loss above this multiple of the median of the last 20 steps (of 0.5 if that is less) is a
    jump; 0: no limit."""
    collapse_nats: float = 2.0
    """Drop of the chosen answers' log-probability per token (nats below the reference, mean of 10
    steps) at which DPO stops; 0: no limit."""
    loop_checks: int = 3
    """Number of times within a stage that generated answers are checked for loops, besides once
    before its first step; 0: never."""
    loop_rise: float = 0.3
    """Rise of the share of looping answers over its lowest value in a stage at which DPO stops and
    the SFT stages warn; 0: no limit."""
    loop_budget: float = 0.05
    """Largest share of a stage's time that the checks for loops may take; 0: no limit."""
    report_to: list[Literal["tensorboard", "trackio", "wandb", "none"]] = field(
        default_factory=list
    )
    """Experiment trackers; wandb writes offline unless $WANDB_MODE is set."""


@dataclass
class ModelSection:
    """The base model and how it is loaded."""

    name_or_path: str = ""
    """Local directory or Hub id (org/name or org/name@revision) of the base model."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null: the main branch. A run keeps the commit of its first
    start."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Floating-point type of matrix products; trained weights stay in float32. auto: bfloat16 if
    the hardware has it, otherwise float32."""
    load_in_4bit: bool = False
    """QLoRA: load frozen weights in NF4 with bitsandbytes; needs LoRA and CUDA."""
    attn_implementation: Literal["auto", "documents", "flex", "sdpa", "eager"] = "auto"
    """Attention backend; auto: documents on a CPU, flex on CUDA with Triton, otherwise sdpa. Where
    documents or flex fail the packing check on the model, sdpa is used."""
    chat_template: str | None = None
    """File or text of the chat template; null: the tokenizer's, or the built-in one."""
    add_tokens: list[str] = field(default_factory=list)
    """Special tokens to add if the vocabulary lacks them; their embeddings are trained, also under
    LoRA."""
    max_unknown: float = 0.03
    """Largest share of a source's characters that the tokenizer may fail to encode; above it, the
    run stops."""
    trust_remote_code: bool = False
    """Run the Python files that come with the model (command line only)."""
    base_model: str | None = None
    """Hub id of a local base model, for the model card."""
    license: str | None = None
    """License of the base model, for the model card."""


@dataclass
class LoraSection:
    """The adapter. Keys have the meaning of PEFT's `LoraConfig`."""

    r: int = 0
    """Rank of the adapter; 0: full fine-tuning."""
    lora_alpha: int = 32
    """Scale of the adapter: its output is multiplied by lora_alpha / r."""
    lora_dropout: float = 0.0
    """Dropout probability of the adapter's input."""
    target_modules: Any = "all-linear"
    """Layers that get an adapter: all-linear, or a list of names."""
    target_parameters: list[str] | None = None
    """Parameters outside linear layers (stacked experts, routers) that get an adapter, by name;
    null: every one under all-linear, otherwise none."""
    use_rslora: bool = False
    """Multiply the adapter's output by lora_alpha / sqrt(r) instead."""
    use_dora: bool = False
    """Also train the norm of each row of the weight matrices (DoRA)."""
    between_stages: Literal["continue", "merge"] = "continue"
    """What a later stage trains: the same adapter, or a new one after merging the last."""


def describe_training(lora: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Describe what a preset's `lora` and `model` sections train."""
    if not lora.get("r"):
        return "all weights"
    kind = "rank-stabilized " if lora.get("use_rslora") else ""
    kind += "DoRA" if lora.get("use_dora") else "LoRA"
    over = " over 4-bit weights" if model.get("load_in_4bit") else ""
    merged = ", a new one in each stage" if lora.get("between_stages") == "merge" else ""
    return f"{kind} of rank {lora['r']}{over}{merged}"


@dataclass
class Source:
    """A local file or a Hub dataset, and how its rows are read."""

    path: str = ""
    """File, folder or Hub id."""
    name: str | None = None
    """Configuration of a dataset on the Hub."""
    revision: str | None = None
    """Branch, tag or commit of a dataset on the Hub; null: the main branch."""
    kind: str | None = None
    """Kind of every row (math, code, dialogue, safety, ...); null: the row's own field `kind`."""
    kind_rule: dict[str, str] = field(default_factory=dict)
    """Kind to regular expression, searched in the user turns and applied before `kind`."""
    weight: float = 1.0
    """Share of the rows that is taken; above 1, the number of repetitions."""
    count: int | None = None
    """Exact number of rows, instead of `weight`; rows are repeated if there are fewer."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column name to the file's."""
    labels: dict[str, Literal["first", "second", "tie"]] = field(default_factory=dict)
    """In files of two answers and a label: which answer each label prefers."""
    ignore: list[str] = field(default_factory=list)
    """Columns with text that are left out on purpose; otherwise unread text stops the run."""
    split: str = "train"
    """Split of a dataset on the Hub."""
    strip_calculator: bool = False
    """Remove GSM8K's annotations (<<6*7=42>>); the line "#### 42" stays."""
    tree_paths: Literal["best", "all"] = "best"
    """Paths taken from an Open-Assistant tree; best: the top-ranked reply at every turn."""
    license: str | None = None
    """License of the data, for the model card."""


@dataclass
class DataSection:
    """Training data, its cleaning and its truncation."""

    sft: list[Source] = field(default_factory=list)
    """Sources of chats for supervised fine-tuning."""
    preference: list[Source] = field(default_factory=list)
    """Sources of given preference pairs; empty: pairs are sampled (section `pairs`)."""
    on_error: Literal["stop", "drop"] = "stop"
    """Reaction to an invalid row; drop: leave it out and count it."""
    near_duplicates: float = 0.8
    """Overlap (Jaccard index of 8-character n-grams) from which a chat counts as a duplicate of an
    earlier one; 0: exact duplicates only."""
    decontaminate_tasks: bool = True
    """Search rows, pairs and prompts for the questions of `eval.tasks`."""
    decontaminate: list[str] = field(default_factory=list)
    """Further files of questions that no row, pair or prompt may contain."""
    system_prompt: str = "template"
    """System turn of chats without one: template (the template's default), none, or a text."""
    turns: Literal["all", "last", "each"] = "all"
    """Assistant turns that are trained; each: one row per turn, with its own prompt."""
    too_long: Literal["drop", "truncate", "split"] = "drop"
    """Treatment of rows longer than max_length: left out, cut without an end-of-turn, or split
    between turns."""


def _sft_defaults() -> dict[str, Any]:
    return {
        "learning_rate": 1e-5,  # the paper's, for 7B
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": 8,  # TRL's default
        "lr_scheduler_type": "cosine",
        "max_length": 1024,  # TRL's default
        "activation_checkpointing": False,
        "save_steps": 0.25,  # a share of all steps
        "save_total_limit": 2,  # the one before serves if the last one is damaged
        "logging_steps": 1.0,  # curves of short stages need every step
    }


def _dpo_defaults() -> dict[str, Any]:
    # The paper's: one epoch at 5e-6, warm-up and cosine. Its beta is not stated; 0.1 is TRL's.
    ours = {"learning_rate": 5e-6, "num_train_epochs": 1.0, "warmup_steps": 0.1, "beta": 0.1}
    return _sft_defaults() | ours | {"loss_type": ["sigmoid"]}


@dataclass
class SftStage:
    """Stage 1, supervised fine-tuning. Other keys are those of TRL's `SFTConfig`."""

    enabled: bool = True
    """Whether the stage runs."""
    kinds: list[str] = field(default_factory=list)
    """Kinds of rows that are trained; empty: every row."""
    train_batch_size: int = 0
    """Chats per optimizer step over all devices; 0: TRL's product of batch size, accumulation steps
    and devices."""
    packing: bool = True
    """Pack several chats into one row; a step trains the same chats either way."""
    trl: dict[str, Any] = field(default_factory=_sft_defaults)


@dataclass
class DialogueStage(SftStage):
    """Stage 2, supervised fine-tuning on dialogue. Other keys are those of TRL's `SFTConfig`."""

    enabled: bool | Literal["auto"] = True  # type: ignore[assignment]
    """Whether the stage runs; auto: if stage 1 repeats itself (`min_repetition`), and its model is
    kept if neither the benchmarks nor the repetition rate get significantly worse."""
    min_repetition: float = 0.02
    """Repetition rate of stage 1 above which `enabled: auto` runs the stage."""


@dataclass
class PairsSection:
    """Preference pairs that are sampled from the model itself."""

    prompts: list[Source] = field(default_factory=list)
    """Sources of prompts."""
    samples_per_prompt: int = 4
    """Answers that are sampled for each prompt."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus sampling: probability mass of the tokens that are sampled from."""
    max_new_tokens: int = 400
    """Largest number of tokens of an answer."""
    min_score_gap: float = 0.5
    """Smallest difference between the scores of the best and the worst answer that makes a pair."""


@dataclass
class DpoStage:
    """Stage 3, preference training. Other keys are those of TRL's `DPOConfig`."""

    enabled: bool | Literal["auto"] = True
    """Whether the stage runs; auto: its model is kept if neither the benchmarks nor the repetition
    rate get significantly worse."""
    train_batch_size: int = 0
    """Pairs per optimizer step over all devices; 0: TRL's product of batch size, accumulation steps
    and devices."""
    packing: bool = True
    """Pack several pairs into one row; a step trains the same pairs either way."""
    trl: dict[str, Any] = field(default_factory=_dpo_defaults)


@dataclass
class RepetitionSection:
    """How often answers repeat themselves without end."""

    prompts: str | None = "eval/prompts/repetition.jsonl"
    """File of rows {"messages": [...]}; null: repetition is not measured."""
    cap: int = 400
    """Largest number of tokens of an answer; one that loops is continued to twice as many."""
    temperature: float = 0.0
    """Above 0: measure again on answers sampled at this temperature."""
    double_cap: bool = False
    """Measure again with twice the cap, continuing the first answers."""
    limit: int | None = None
    """Number of prompts, evenly spaced in the file; null: all."""


@dataclass
class SafetySection:
    """Refusal where it is due, and over-refusal."""

    prompts: str | None = None
    """File of rows {"prompt", "category", "reference": {"refuse": true}}, such as
    eval/prompts/safety.jsonl; null: safety is not measured."""
    cap: int = 256
    """Largest number of tokens of an answer."""
    limit: int | None = None
    """Number of prompts, evenly spaced in the file; null: all."""


@dataclass
class TaskOptions:
    """Options of one benchmark; null: the value for all tasks."""

    base_shots: int | None = None
    """Few-shot examples for the base model."""
    chat_shots: int | None = None
    """Few-shot examples for chat models."""
    metric: str | None = None
    """Metric that is reported; null: the first that the task lists."""
    filter: str | None = None
    """Filter of lm-eval whose output is scored; null: the first that the task lists."""
    max_gen_toks: int | None = None
    """Largest number of tokens of a generated answer; null: the task's own."""


@dataclass
class EachEpochSection:
    """Small measurements of the model in training, in the chat template, at the end of each epoch.

    No stage depends on these keys: they may change at any time, and finished stages stay finished.
    """

    enabled: bool = False
    """Whether the model is measured at the end of each epoch."""
    prompts: int = 50
    """Number of prompts of `eval.repetition.prompts`, evenly spaced; 0: none."""
    tasks: list[str] | None = None
    """Tasks of `eval.tasks` that are measured; null: all."""
    limit: int = 50
    """Number of documents of each task, the first ones."""


@dataclass
class EvalSection:
    """Benchmarks and other measurements of every model."""

    tasks: list[str] = field(default_factory=list)
    """Tasks by lm-eval's names, or by those of the files in `task_dir`."""
    task_dir: str | None = None
    """Folder of task files in lm-eval's YAML format."""
    data_dir: str | None = None
    """Folder of the data files of `task_dir`'s tasks; null: the same folder."""
    limit: int | None = None
    """Number of documents of each task, the first ones; null: all."""
    allow_code_execution: bool = False
    """Run the programs that the models write, in a sandbox (command line only)."""
    allow_unconfined_code: bool = False
    """Run them also where the machine has no sandbox (command line only)."""
    base_format: Literal["auto", "plain", "chat"] = "auto"
    """Prompt format of the base model; auto: chat if it is a chat model already."""
    base_shots: int = 5
    """Few-shot examples for the base model."""
    chat_shots: int = 0
    """Few-shot examples for chat models."""
    per_task: dict[str, TaskOptions] = field(default_factory=dict)
    """Options of single tasks, by task name."""
    same_format: list[Literal["plain", "chat"]] = field(default_factory=list)
    """Prompt formats in which the benchmarks of all models are measured in addition."""
    repetition: RepetitionSection = field(default_factory=RepetitionSection)
    safety: SafetySection = field(default_factory=SafetySection)
    each_epoch: EachEpochSection = field(default_factory=EachEpochSection)
    backend: Literal["transformers", "vllm"] = "transformers"
    """Inference engine of all models that are compared."""
    vllm_python: str | None = None
    """Python interpreter that has vLLM installed; null: the running one (command line only)."""
    in_parts: bool | Literal["auto"] = "auto"
    """Under FSDP2, measure with sharded weights; auto: if no device can hold all weights."""


@dataclass
class Preset:
    """All sections of a preset."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoraSection = field(default_factory=LoraSection)
    data: DataSection = field(default_factory=DataSection)
    sft_all: SftStage = field(default_factory=SftStage)
    sft_dialogue: DialogueStage = field(default_factory=lambda: DialogueStage(kinds=["dialogue"]))
    pairs: PairsSection = field(default_factory=PairsSection)
    dpo: DpoStage = field(default_factory=DpoStage)
    eval: EvalSection = field(default_factory=EvalSection)


def measuring_preset(run: RunSection, model: ModelSection, section: EvalSection) -> Preset:
    """Return a preset that measures models and trains nothing."""
    return Preset(
        run,
        model,
        sft_all=SftStage(enabled=False),
        # Not a DialogueStage: stored presets of such runs have no min_repetition to compare with.
        sft_dialogue=SftStage(enabled=False),  # type: ignore[arg-type]
        dpo=DpoStage(enabled=False),
        eval=section,
    )


# Keys of a source that take effect, by the list that contains it; the others are refused there.
SOURCE_OPTIONS = {
    "data.sft": {"weight", "count", "kind_rule", "strip_calculator", "tree_paths"},
    "data.preference": {"weight", "count", "kind_rule", "labels"},
    "pairs.prompts": {"weight"},
}
