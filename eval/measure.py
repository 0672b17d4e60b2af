"""A model measured, with its samples on disk; and the table of all models of a run."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from eval import repetition
from eval.benchmarks import run_benchmarks
from eval.delta import REPETITION, delta_table
from eval.report import write_report
from eval.tasks import check_tasks, tasks_fingerprint
from sft.config import EvalSection, Source, UserError
from sft.model import load_model
from sft.prompts import read_prompts
from sft.run import (
    Stage,
    fingerprint,
    model_fingerprint,
    read_json,
    read_jsonl,
    stage_facts,
    write_json,
    write_jsonl,
)
from sft.setting import Setting, tokenizer_fingerprint

log = logging.getLogger(__name__)

BASE = "base"


def check_measures(section: EvalSection) -> None:
    """Refuse unknown tasks and unreadable prompts before any model is loaded.

    Raises:
        UserError: a task is unknown or runs programs that are not allowed, or the repetition
            prompts cannot be read.
    """
    check_tasks(
        section.tasks,
        task_dir=section.task_dir,
        allow_code_execution=section.allow_code_execution,
    )
    if section.repetition.prompts:
        read_prompts([Source(section.repetition.prompts)])
    if not section.tasks and not section.repetition.prompts:
        raise UserError(
            "eval names neither tasks nor repetition.prompts; name at least one, or nothing shows "
            "what training did"
        )


def measure(name: str, path: str, setting: Setting, section: EvalSection) -> None:
    """Measure one model into eval/<name>/, unless that is there for these weights and settings.

    The base model is asked with `base_shots` examples as plain text, the others with `chat_shots`
    in the chat template; repetition prompts go through the template for all. One process works.
    """
    state = PartialState()
    prompts = (
        read_prompts([Source(section.repetition.prompts)]) if section.repetition.prompts else []
    )
    stage = Stage(
        setting.folder / "eval" / name,
        {
            "weights": model_fingerprint(path),
            "tokenizer": tokenizer_fingerprint(setting.tokenizer),
            "options": fingerprint([asdict(section), setting.seed]),
            "prompts": fingerprint(prompts),
            "tasks": tasks_fingerprint(section.tasks, task_dir=section.task_dir),
        },
    )
    if state.is_main_process:
        if stage.finished() is not None:
            log.info("%s: measured already, skipped", name)
        else:
            stage.begin()
            _measure(name, path, setting, section, prompts=prompts, stage=stage)
    state.wait_for_everyone()


def _measure(
    name: str,
    path: str,
    setting: Setting,
    section: EvalSection,
    *,
    prompts: list[dict[str, Any]],
    stage: Stage,
) -> None:
    model = load_model(
        path,
        setting.placement,
        dtype=setting.placement.inference,
        trust_remote_code=setting.trust_remote_code,
    )
    scores: dict[str, Any] = {"benchmarks": {}}
    outputs = ["scores.json"]
    if section.tasks:  # first: a task without data stops the run before any answer is generated
        chat = name != BASE
        scores["benchmarks"] = run_benchmarks(
            model,
            setting.tokenizer,
            tasks=section.tasks,
            task_dir=section.task_dir,
            shots=section.chat_shots if chat else section.base_shots,
            chat_template=chat,
            limit=section.limit,
            seed=setting.seed,
            folder=stage.folder / "samples",
            allow_code_execution=section.allow_code_execution,
            label=name,
        )
        outputs.append("samples")
    if prompts:
        with tqdm(total=len(prompts), desc=f"{name}: repetition", unit="answer") as bar:
            rows = repetition.measure(
                model,
                setting.tokenizer,
                prompts,
                cap=section.repetition.cap,
                progress=bar.update,
            )
        write_jsonl(stage.folder / "generations.jsonl", rows)
        scores["repetition"] = repetition.summarise(rows)
        outputs.append("generations.jsonl")
    write_json(stage.folder / "scores.json", scores)
    stage.finish(outputs=outputs, facts={})


def write_results(folder: Path, models: list[str]) -> dict[str, Any]:
    """Join what was measured into results.json, report.html and report.md; returns the results.

    Args:
        models: names under eval/, in the order of the chain.
    """
    scores = {name: read_json(folder / "eval" / name / "scores.json") for name in models}
    samples: dict[str, dict[str, Any]] = {}
    benchmarks: dict[str, dict[str, Any]] = {}
    for name in models:
        if "repetition" in scores[name]:
            rows = read_jsonl(folder / "eval" / name / "generations.jsonl")
            samples.setdefault(REPETITION, {})[name] = rows
        for task, entry in scores[name]["benchmarks"].items():
            benchmarks.setdefault(task, {})[name] = entry
            rows = read_jsonl(folder / "eval" / name / "samples" / f"{task}.jsonl")
            samples.setdefault(task, {})[name] = rows
    results = {
        "models": models,
        "repetition": {n: s["repetition"] for n, s in scores.items() if "repetition" in s},
        "benchmarks": benchmarks,
        "deltas": delta_table(samples, models=models) if len(models) > 1 else [],
        "stages": stage_facts(folder),
    }
    if PartialState().is_main_process:
        write_json(folder / "results.json", results)
        write_report(folder)
    return results
