"""Compare models: the base few-shot as plain text, the chat models in their template.

    python recipes/base_vs_chat.py --base BASE --chat CHAT --tasks gsm8k,hellaswag
    python recipes/base_vs_chat.py --base B --chat C --preset recipes/paper/protocol.yaml
    python recipes/base_vs_chat.py --base B --chat sft=DIR --chat dpo=DIR --tasks mmlu
    python recipes/base_vs_chat.py --samples A --samples B      # measured before: nothing runs

One model alone is measured, two or more are compared. A model is a directory, a hub id (org/name
or org/name@revision), or a run of sft_then_dpo.py (the last model that it kept). What is measured
is kept, each task when it is done: start the same command again and only what is missing is done,
and so it is with more tasks in --tasks. Other settings or models want a folder of their own
(--to)."""

if __name__ == "__main__":  # while libraries are imported, too
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
    DpoStage,
    EvalSection,
    LoraSection,
    ModelSection,
    Preset,
    RepetitionSection,
    RunSection,
    SftStage,
)
from sft.config.validation import check_measuring
from sft.errors import UserError
from sft.run.command import run_command
from sft.run.directory_checks import check_run_dir

if TYPE_CHECKING:
    from sft.model.placement import Placement

log = logging.getLogger("truing")

# A preset's other stages, which are not run.
_MEASURE_ALONE = ("sft_all.enabled=false", "sft_dialogue.enabled=false", "dpo.enabled=false")


@dataclass(frozen=True)
class Compared:
    """What is compared, by name: models to measure, and measures that are there already."""

    models: dict[str, str]
    samples: dict[str, str]


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
    """Measure the models into the run folder, add what was measured before, write the report."""
    from eval.backends.base import check_one_backend
    from eval.backends.loading import check_backend
    from eval.measures.measure import check_lengths, check_measures, measure
    from eval.report.tables import console_table
    from eval.results.imported import import_measures
    from eval.results.results import write_results
    from sft.context import RunContext
    from sft.distributed.collectives import run_on_main
    from sft.model.loading import (
        check_model,
        context_window,
        has_template,
        load_tokenizer,
    )
    from sft.model.placement import choose_placement
    from sft.run.console import print_summary, start_logging
    from sft.run.directory import open_run
    from sft.run.run_record import with_date, write_run_record

    start_logging()
    for path in compared.samples.values():
        if not Path(path).expanduser().exists():
            raise UserError(
                f"--samples {path}: no such file or folder; give a run, or what lm-eval wrote"
            )
    sections = {name: replace(preset.model, name_or_path=p) for name, p in compared.models.items()}
    paths = {name: check_model(section) for name, section in sections.items()}
    if sections:
        check_measures(preset.eval)
    preset = with_date(preset, models=list(paths.values()))
    date = preset.run.date
    tokenizers = {
        n: load_tokenizer(paths[n], section, date=date) for n, section in sections.items()
    }
    windows = {name: context_window(paths[name], section) for name, section in sections.items()}
    most = preset.model.max_unknown
    for name, tokenizer in tokenizers.items():
        check_lengths(preset.eval, tokenizer, window=windows[name], max_unknown=most)
    _say_differences(tokenizers)
    templated = {name: has_template(paths[name], section) for name, section in sections.items()}
    for name, section in sections.items():
        if name != "base" and not templated[name]:
            log.warning(
                "%s: %s has no chat template, so it is asked in ours, which it may not know; set "
                "model.chat_template in a preset, or give a base model as --base",
                *(name, section.name_or_path),
            )
    parts: dict[str, bool] = {}
    if sections:
        placement = choose_placement(preset.model)
        check_backend(preset.eval, placement)
        parts = {
            name: _fits_in_parts(name, paths[name], section, preset.eval, placement=placement)
            for name, section in sections.items()
        }
    for name, tokenizer in tokenizers.items():
        _check_questions(name, paths[name], preset, tokenizer=tokenizer, window=windows[name])
    growing = ("eval.tasks", "eval.same_format", "eval.in_parts")
    with open_run(preset, growing=growing, ways_on="give --to a new folder") as folder:
        write_run_record(folder, preset)
        measured_by: dict[str, str | None] = dict.fromkeys(compared.models, preset.eval.backend)
        for name, source in compared.samples.items():
            place = folder / "eval" / name
            measured_by[name] = run_on_main(
                partial(import_measures, Path(source), place, section=preset.eval)
            )
        check_one_backend(measured_by)
        for name, tokenizer in tokenizers.items():
            context = RunContext.of(preset, folder=folder, tokenizer=tokenizer, placement=placement)
            context = replace(context, parts=parts[name])
            measure(name, paths[name], context, preset.eval, replaces=False)
        names = [*compared.models, *compared.samples]
        only = [] if compared.models else preset.eval.tasks
        results = run_on_main(lambda: write_results(folder, names, only=only))
        last = next(reversed(paths), None)
        talks = last is not None and templated[last]
        print_summary(console_table(results), folder=folder, model=paths[last] if talks else None)


def _fits_in_parts(
    name: str, path: str, model: ModelSection, section: EvalSection, *, placement: "Placement"
) -> bool:
    """Return whether the processes lend each other parts of the model while it is measured.

    Raises:
        UserError: the model does not fit the device.
    """
    from sft.distributed.sharding import loads_shards
    from sft.model.loading import read_config
    from sft.planning.device_memory import DeviceMemory
    from sft.planning.devices import this_machine
    from sft.run.adapters import is_adapter

    config = read_config(path, model)
    lends = loads_shards(config) and not is_adapter(path)
    machine = replace(this_machine(placement), sharded=lends)
    device_memory = DeviceMemory(config, LoraSection(), placement, machine)
    parts = device_memory.in_parts(section.in_parts, backend=section.backend)
    device_memory.check_full_model(f"{name} ({model.name_or_path})")
    return parts


def _check_questions(
    name: str, path: str, preset: Preset, *, tokenizer: Any, window: int | None
) -> None:
    """Ask the tasks that the folder does not hold yet as they will be asked, without the model.

    Raises:
        UserError: a question would stop the measuring, or the data of a task cannot be loaded.
    """
    from eval.measures.dry_run import check_questions
    from eval.measures.measure import uses_chat_template
    from sft.system.atomic_files import read_json

    scores = read_json(Path(preset.run.dir).expanduser() / "eval" / name / "scores.json") or {}
    done = scores.get("benchmarks", {}) | scores.get("language", {})
    section = replace(preset.eval, tasks=[task for task in preset.eval.tasks if task not in done])
    trust = preset.model.trust_remote_code
    chat = uses_chat_template(name, path, section, trust_remote_code=trust)
    check_questions(
        replace(preset, eval=section),
        tokenizer,
        window=window,
        formats={chat, *(form == "chat" for form in section.same_format)},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", help="the base model, asked with examples as plain text")
    parser.add_argument(
        "--chat",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="a chat model, asked in its template; may come more than once",
    )
    parser.add_argument(
        "--samples",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a run, eval/<model> of a run, or lm-eval's folder of samples_*.jsonl",
    )
    parser.add_argument("--preset", help="a YAML file whose section `eval` says what is measured")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the preset")
    parser.add_argument(
        "--tasks",
        help="lm-eval task names, comma-separated: of a preset these alone are measured, without "
        "its repetition and safety prompts; of --samples alone those that count",
    )
    parser.add_argument("--task-dir", help="folder of task YAML files of your own")
    parser.add_argument("--data-dir", help="folder of their data files")
    parser.add_argument(
        "--same-format",
        choices=("plain", "chat", "both"),
        help="all models asked so too",
    )
    parser.add_argument(
        "--prompts",
        help="prompts for the repetition rate, for example ours: eval/prompts/repetition.jsonl",
    )
    parser.add_argument("--safety", help="prompts for refusal: eval/prompts/safety.jsonl")
    parser.add_argument("--cap", type=int, help="tokens of an answer (400)")
    parser.add_argument("--base-shots", type=int, help="examples for the base model (5)")
    parser.add_argument("--chat-shots", type=int, help="examples for the chat models (0)")
    parser.add_argument(
        "--limit", type=int, help="documents of each task, prompts for repetition and for safety"
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        default=None,
        help="let code tasks run the programs that the models write, confined",
    )
    parser.add_argument(
        "--allow-unconfined-code",
        action="store_true",
        default=None,
        help="and run them with your rights where nothing on this machine confines them",
    )
    parser.add_argument("--vllm", metavar="PYTHON", help="measure with the vLLM of this Python")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", default="runs/base-vs-chat", help="folder for what comes out")
    return parser


def _compared(given: argparse.Namespace) -> Compared:
    """Models and samples by name.

    Raises:
        UserError: none of them, or two of one name.
    """
    named = [("base", given.base)] if given.base else []
    for text in given.chat:
        name, path = _named(text, alone="chat" if len(given.chat) == 1 else None)
        named.append((name, path))
    samples = [_named(text, alone=None) for text in given.samples]
    names = [name for name, _ in (*named, *samples)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two of what is compared are called {twice!r}; give one as NAME=PATH")
    if not names:
        raise UserError("name a model (--base, --chat) or measures (--samples); two are compared")
    return Compared(dict(named), dict(samples))


def _named(text: str, *, alone: str | None) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return alone or Path(text).resolve().name, text
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"{text!r}: {name!r} is no name for a folder; use letters and digits")
    return name, path


def _preset(given: argparse.Namespace, *, model: str) -> Preset:
    """The section `eval` of the preset, or its defaults, with what the command line says."""
    if given.preset:
        overrides = [f"model.name_or_path={model}", *_MEASURE_ALONE, *given.overrides]
        preset = load_preset(given.preset, overrides=overrides)
        section, date = preset.eval, preset.run.date
        models = replace(preset.model, revision=None)
    elif given.overrides:
        raise UserError(f"{given.overrides[0]!r} overrides a preset; name one with --preset")
    else:
        section = EvalSection(repetition=RepetitionSection(None))
        models, date = ModelSection(model), None
    wanted: dict[str, Any] = {
        "tasks": given.tasks
        and [name for task in given.tasks.split(",") if (name := task.strip())],
        "task_dir": given.task_dir,
        "data_dir": given.data_dir,
        "same_format": given.same_format
        and (["plain", "chat"] if given.same_format == "both" else [given.same_format]),
        "limit": given.limit,
        "base_shots": given.base_shots,
        "chat_shots": given.chat_shots,
        "allow_code_execution": given.allow_code_execution,
        "allow_unconfined_code": given.allow_unconfined_code,
        "backend": given.vllm and "vllm",
        "vllm_python": given.vllm,
    }
    if given.tasks:
        section = _narrowed(section, given.overrides)
    repetition = {"prompts": given.prompts, "cap": given.cap, "limit": given.limit}
    safety = {"prompts": given.safety, "limit": given.limit}
    section = replace(
        section,
        repetition=replace(section.repetition, **_present(repetition)),
        safety=replace(section.safety, **_present(safety)),
        **_present(wanted),
    )
    if problems := list(check_measuring(section)):
        raise UserError("; ".join(problems))
    asked = section.tasks or section.repetition.prompts or section.safety.prompts
    if (given.base or given.chat) and not asked:
        raise UserError(
            "nothing is asked of the models; give --tasks, --prompts or --safety, or a preset"
        )
    return Preset(
        run=RunSection(given.to, given.seed, date),
        model=models,
        sft_all=SftStage(enabled=False),
        sft_dialogue=SftStage(enabled=False),
        dpo=DpoStage(enabled=False),
        eval=section,
    )


def _narrowed(section: EvalSection, overrides: Sequence[str]) -> EvalSection:
    """The section without the prompts that the preset names, but for those of an override."""
    keys = {override.partition("=")[0] for override in overrides}
    left_out = {
        name: replace(getattr(section, name), prompts=None)
        for name in ("repetition", "safety")
        if not keys & {f"eval.{name}", f"eval.{name}.prompts"}
    }
    return replace(section, **left_out)


def _present(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _say_differences(tokenizers: dict[str, Any]) -> None:
    """What cannot be compared between models of different tokenizers or templates."""
    from sft.tokenization.fingerprints import tokenizer_fingerprint

    names = ", ".join(tokenizers)
    if len({tokenizer.backend_tokenizer.to_str() for tokenizer in tokenizers.values()}) > 1:
        log.warning(
            "%s: different tokenizers: scores compare, but acc_per_token and the cap of "
            "repetition count other tokens in each",
            names,
        )
    elif len({tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers.values()}) > 1:
        log.warning("%s: different chat templates: the chat format is not the same in each", names)


if __name__ == "__main__":
    sys.exit(main())
