"""Compare a base model, few-shot on plain text, with chat models in their template.

    python recipes/base_vs_chat.py --base BASE --chat CHAT --tasks gsm8k,hellaswag
    python recipes/base_vs_chat.py --base B --chat C --preset recipes/paper/protocol.yaml
    python recipes/base_vs_chat.py --base B --chat sft=DIR --chat dpo=DIR --tasks mmlu
    python recipes/base_vs_chat.py --samples A --samples B      # measured earlier: nothing runs

A single model is measured; two or more are compared. A model is a directory, a Hub id (org/name or
org/name@revision), or a run of sft_then_dpo.py (its last kept model). Each task is stored when it
is done: the same command, or one with more tasks, measures only what is missing. Other settings or
models need another folder (--to)."""

if __name__ == "__main__":  # before the imports, which take seconds
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.config.preset import load_preset
from sft.config.sections import (
    EvalSection,
    LoraSection,
    ModelSection,
    Preset,
    RepetitionSection,
    RunSection,
    measuring_preset,
)
from sft.config.validation import check_measuring
from sft.errors import UserError
from sft.run.command import command_parser, run_command
from sft.run.directory_checks import check_run_dir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft.model.placement import Placement

log = logging.getLogger("truing")

# A preset's other stages, which are not run.
_MEASURE_ALONE = ("sft_all.enabled=false", "sft_dialogue.enabled=false", "dpo.enabled=false")


@dataclass(frozen=True)
class Compared:
    """Models to measure and stored measurements, by name."""

    models: dict[str, str]
    samples: dict[str, str]


@dataclass(frozen=True)
class CheckedModel:
    """A model that passed every check, with the values that the checks resolved."""

    section: ModelSection
    path: str
    tokenizer: "PreTrainedTokenizerBase"
    window: int | None  # context length in tokens
    templated: bool  # whether the model or the preset has a chat template


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and compare; the exit codes are those of `run_command`."""
    given = _parser().parse_intermixed_args(argv)

    def work() -> None:
        compared = _compared(given)
        preset = _preset(given, model=next(iter(compared.models.values()), "none"))
        read = [*compared.models.values(), *compared.samples.values()]
        check_run_dir(preset, read=[*read, *([given.preset] if given.preset else [])])
        compare(preset, compared)

    return run_command(work)


def compare(preset: Preset, compared: Compared) -> None:
    """Measure the models into the run folder, add stored measurements, write the report."""
    from eval.backends.base import check_one_backend
    from eval.backends.loading import check_backend
    from eval.measures.measure import measure
    from eval.report.tables import console_table
    from eval.results.external_results import import_measures
    from eval.results.results import write_results
    from sft.context import RunContext
    from sft.distributed.collectives import run_on_main
    from sft.model.placement import choose_placement
    from sft.run.console import print_summary, start_logging
    from sft.run.directory import open_run
    from sft.run.run_record import write_run_record

    start_logging()
    for path in compared.samples.values():
        if not Path(path).expanduser().exists():
            raise UserError(
                f"--samples {path}: no such file or folder; give a run, or an output of lm-eval"
            )
    preset, models = _check_models(preset, compared.models)
    parts: dict[str, bool] = {}
    if models:
        placement = choose_placement(preset.model)
        check_backend(preset.eval, placement)
        for name, model in models.items():
            parts[name] = _fits_in_parts(name, model, preset.eval, placement=placement)
    # Before the first model is loaded, since a question that fails would end hours of measuring.
    for name, model in models.items():
        _check_questions(name, model, preset)
    # More tasks and formats are added to what is stored; any other change needs a new folder.
    growing = ("eval.tasks", "eval.same_format", "eval.in_parts")
    with open_run(preset, growing=growing, ways_on="give --to a new folder") as folder:
        write_run_record(folder, preset)
        measured_by: dict[str, str | None] = dict.fromkeys(models, preset.eval.backend)
        for name, source in compared.samples.items():
            to = folder / "eval" / name
            measured_by[name] = run_on_main(
                partial(import_measures, Path(source), to, section=preset.eval)
            )
        check_one_backend(measured_by)
        for name, model in models.items():
            context = RunContext.of(
                preset, folder=folder, tokenizer=model.tokenizer, placement=placement
            )
            context = replace(context, parts=parts[name])
            measure(name, model.path, context, preset.eval, replaces=False)
        names = [*models, *compared.samples]
        # Without models, --tasks chooses among the stored measurements.
        only = [] if models else preset.eval.tasks
        results = run_on_main(lambda: write_results(folder, names, only=only))
        last = next(reversed(models.values()), None)
        chats = last.path if last is not None and last.templated else None
        print_summary(console_table(results), folder=folder, model=chats)


def _check_models(preset: Preset, given: dict[str, str]) -> tuple[Preset, dict[str, CheckedModel]]:
    """Check models, tokenizers and prompts; return the preset with its date, and the models."""
    from eval.measures.measure import check_lengths, check_measures
    from sft.model.loading import check_model, context_window, has_template, load_tokenizer
    from sft.run.run_record import with_date

    sections = {name: replace(preset.model, name_or_path=path) for name, path in given.items()}
    paths = {name: check_model(section) for name, section in sections.items()}
    if sections:
        check_measures(preset.eval)
    preset = with_date(preset, models=list(paths.values()))
    models = {
        name: CheckedModel(
            section,
            paths[name],
            load_tokenizer(paths[name], section, date=preset.run.date),
            context_window(paths[name], section),
            has_template(paths[name], section),
        )
        for name, section in sections.items()
    }
    most = preset.model.max_unknown
    for model in models.values():
        check_lengths(preset.eval, model.tokenizer, window=model.window, max_unknown=most)
    _warn_of_differences({name: model.tokenizer for name, model in models.items()})
    for name, model in models.items():
        if name != "base" and not model.templated:
            log.warning(
                "%s: %s has no chat template, so that the built-in one is used, which it may not "
                "know; set model.chat_template in a preset, or give a base model as --base",
                *(name, model.section.name_or_path),
            )
    return preset, models


def _fits_in_parts(
    name: str, model: CheckedModel, section: EvalSection, *, placement: "Placement"
) -> bool:
    """Check that the model fits the device; return whether it is measured with sharded weights."""
    from sft.distributed.sharding import loads_shards
    from sft.model.loading import read_config
    from sft.planning.device_memory import DeviceMemory
    from sft.planning.devices import this_machine
    from sft.run.adapters import is_adapter

    config = read_config(model.path, model.section)
    sharded = loads_shards(config) and not is_adapter(model.path)
    # Nothing is trained: the launcher's sharding matters only to a model that is loaded in shards.
    machine = replace(this_machine(placement), sharded=sharded)
    device_memory = DeviceMemory(config, LoraSection(), placement, machine)
    parts = device_memory.in_parts(section.in_parts, backend=section.backend)
    device_memory.check_full_model(f"{name} ({model.section.name_or_path})")
    return parts


def _check_questions(name: str, model: CheckedModel, preset: Preset) -> None:
    """Ask the tasks that are not measured yet without the model, to find what would stop a run."""
    from eval.measures.dry_run import check_questions
    from eval.measures.measure import uses_chat_template
    from sft.system.atomic_files import read_json

    scores = read_json(Path(preset.run.dir).expanduser() / "eval" / name / "scores.json") or {}
    done = scores.get("benchmarks", {}) | scores.get("language", {})
    section = replace(preset.eval, tasks=[task for task in preset.eval.tasks if task not in done])
    trust = preset.model.trust_remote_code
    chat = uses_chat_template(name, model.path, section, trust_remote_code=trust)
    check_questions(
        replace(preset, eval=section),
        model.tokenizer,
        window=model.window,
        formats={chat, *(form == "chat" for form in section.same_format)},
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add, flag = parser.add_argument, {"action": "store_true", "default": None}
    several: dict[str, Any] = {"action": "append", "default": []}
    add("--base", help="the base model, asked with examples as plain text")
    add("--chat", **several, metavar="[NAME=]MODEL", help="a chat model; can be repeated")
    add(
        "--samples",
        **several,
        metavar="[NAME=]PATH",
        help="a run, eval/<model> of a run, or lm-eval's folder of samples_*.jsonl",
    )
    add("--preset", help="a YAML file whose section `eval` defines the measurements")
    add("overrides", nargs="*", metavar="section.key=value", help="of the preset")
    add(
        "--tasks",
        help="lm-eval task names, comma-separated: the only measurements of a preset, without its "
        "repetition and safety prompts; the only tasks of --samples that count",
    )
    add("--task-dir", help="folder of your own task YAML files")
    add("--data-dir", help="folder of their data files")
    add("--same-format", choices=("plain", "chat", "both"), help="also ask all models in it")
    add("--prompts", help="prompts for the repetition rate, such as eval/prompts/repetition.jsonl")
    add("--safety", help="prompts for refusal, such as eval/prompts/safety.jsonl")
    add("--cap", type=int, help="tokens of an answer (400)")
    add("--base-shots", type=int, help="examples for the base model (5)")
    add("--chat-shots", type=int, help="examples for the chat models (0)")
    add("--limit", type=int, help="documents of each task, prompts for repetition and for safety")
    add("--allow-code-execution", **flag, help="run the programs of code tasks in a sandbox")
    add("--allow-unconfined-code", **flag, help="run them with your rights if there is no sandbox")
    add("--vllm", metavar="PYTHON", help="measure with the vLLM of this Python")
    add("--seed", type=int, default=0)
    add("--to", default="runs/base-vs-chat", help="output folder")
    return parser


def _compared(given: argparse.Namespace) -> Compared:
    """Return models and samples by name, at least one, each name once."""
    named = [("base", given.base)] if given.base else []
    alone = "chat" if len(given.chat) == 1 else None
    named += [_named(text, default=alone) for text in given.chat]
    samples = [_named(text) for text in given.samples]
    names = [name for name, _ in (*named, *samples)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two of what is compared are called {twice!r}; give one as NAME=PATH")
    if not names:
        raise UserError("name a model (--base, --chat) or measures (--samples); two are compared")
    return Compared(dict(named), dict(samples))


def _named(text: str, *, default: str | None = None) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():  # a path may contain an equals sign
        return default or Path(text).resolve().name, text
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"{text!r}: {name!r} is no name for a folder; use letters and digits")
    return name, path


def _preset(given: argparse.Namespace, *, model: str) -> Preset:
    """Return the section `eval` of the preset, or its defaults, with the command line's options."""
    if given.preset:
        overrides = [f"model.name_or_path={model}", *_MEASURE_ALONE, *given.overrides]
        preset = load_preset(given.preset, overrides=overrides)
        section, date = preset.eval, preset.run.date
        models = replace(preset.model, revision=None)  # it names a commit of the preset's own model
    elif given.overrides:
        raise UserError(f"{given.overrides[0]!r} overrides a preset; name one with --preset")
    else:
        section = EvalSection(repetition=RepetitionSection(None))
        models, date = ModelSection(model), None
    options = {
        name: getattr(given, name)
        for name in (
            *("task_dir", "data_dir", "limit", "base_shots", "chat_shots"),
            *("allow_code_execution", "allow_unconfined_code"),
        )
    }
    if given.vllm:
        options |= {"backend": "vllm", "vllm_python": given.vllm}
    if given.same_format:
        both = given.same_format == "both"
        options["same_format"] = ["plain", "chat"] if both else [given.same_format]
    if given.tasks:
        options["tasks"] = [name for task in given.tasks.split(",") if (name := task.strip())]
        section = _without_prompts(section, given.overrides)
    repetition = {"prompts": given.prompts, "cap": given.cap, "limit": given.limit}
    safety = {"prompts": given.safety, "limit": given.limit}
    section = replace(
        section,
        repetition=replace(section.repetition, **_present(repetition)),
        safety=replace(section.safety, **_present(safety)),
        **_present(options),
    )
    if problems := list(check_measuring(section)):
        raise UserError("; ".join(problems))
    asked = section.tasks or section.repetition.prompts or section.safety.prompts
    if (given.base or given.chat) and not asked:
        raise UserError(
            "nothing is asked of the models; give --tasks, --prompts or --safety, or a preset"
        )
    return measuring_preset(RunSection(given.to, given.seed, date), models, section)


def _without_prompts(section: EvalSection, overrides: Sequence[str]) -> EvalSection:
    """Return the section without the prompts of the preset's file; overrides keep theirs."""
    keys = {override.partition("=")[0] for override in overrides}
    left_out = {
        name: replace(getattr(section, name), prompts=None)
        for name in ("repetition", "safety")
        if not keys & {f"eval.{name}", f"eval.{name}.prompts"}
    }
    return replace(section, **left_out)


def _present(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _warn_of_differences(tokenizers: "dict[str, PreTrainedTokenizerBase]") -> None:
    """Warn if scores of models with different tokenizers or templates cannot be compared."""
    from sft.tokenization.input_hashes import tokenizer_fingerprint

    names, given = ", ".join(tokenizers), list(tokenizers.values())
    if len({tokenizer.backend_tokenizer.to_str() for tokenizer in given}) > 1:
        log.warning(
            "%s: different tokenizers: scores can be compared, but acc_per_token and the cap of "
            "repetition are in tokens of each model's own tokenizer",
            names,
        )
    elif len(set(map(tokenizer_fingerprint, given))) > 1:
        log.warning("%s: different chat templates: the chat format is not the same in each", names)


if __name__ == "__main__":
    sys.exit(main())
