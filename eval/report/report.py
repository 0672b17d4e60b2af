"""Write report.html and report.md from results.json and stored samples.

Every number comes from results.json; samples are only displayed.
"""

import argparse
import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.measures import repetition
from eval.metrics import number_format
from eval.metrics.number_format import REPETITION
from eval.report import examples, headline, plots, sample_files
from eval.report.answer_cards import Filter, prompt_deck, question_deck
from eval.report.caveats import caveats
from eval.report.detail_tables import repetition_details, safety_details
from eval.report.epoch_plots import epoch_panels, epoch_table
from eval.report.tables import (
    console_table,
    isolations,
    judge_note,
    markdown,
    measures,
    one_format,
    pairs_counted,
    still_needed,
)
from eval.schema import DeltaRow, LogRow, Results
from eval.schema_checks import first_mismatch, unknown_name
from sft.config.safe_yaml import check_expanded_size, constructor_errors
from sft.config.sections import describe_training
from sft.data.json_values import is_too_deep
from sft.errors import UserError
from sft.run.command import run_command
from sft.run.directory import verify_preset
from sft.run.directory_checks import refuse_links
from sft.run.stage_cache import verified_record, verified_results
from sft.run.stage_summary import COMPARABLE_STEPS
from sft.run.terminal import SafeConsole, visible
from sft.system.atomic_files import is_inside, read_file, write_text

TEMPLATE = "report_template.html.j2"
SHOWN = (
    "scores.json",
    "generations.jsonl",
    "samples",
    *(f"{n}.jsonl" for n in sample_files.MORE_SAMPLES),
)
PANELS = 12  # stages whose curves are drawn; a chain has three
MANY_ROWS = 8  # tables with more rows get a search field
FACTS = 200  # rows shown of data.json and run.json, which are linked


def write_report(run_dir: Path) -> None:
    """Write report.html and report.md of a run directory; parts may be missing.

    Raises:
        UserError: results.json is missing, a file is damaged, or a link leads out of the folder.
    """
    refuse_links(run_dir, given=str(run_dir))
    view = _view(run_dir, _read_results(run_dir))
    write_text(run_dir / "report.html", _environment().get_template(TEMPLATE).render(view))
    text = markdown(
        view["results"],
        trained=view["trained"],
        headline=view["headline"],
        closer=view["repetition_details"],
        safety=view["safety_details"],
        epochs=epoch_table(view["results"]),
        loops=epoch_table(view["results"], key="loops"),
    )
    write_text(run_dir / "report.md", text)


def read_curves(run_dir: Path) -> list[plots.Curve]:
    """Read the logs of all stages, thinned so that memory and page do not grow with the run."""
    curves = []
    for path in _logs(run_dir):
        loss, rates = plots.Thinned(), plots.Thinned()
        for row in sample_files.read_lines(path, schema=LogRow):
            if (value := row.get("loss")) is not None:
                loss.add(float(row["step"]), float(value))
                if (rate := row.get("learning_rate")) is not None:
                    rates.add(float(row["step"]), float(rate))
        if loss.points():
            curves.append(plots.Curve(path.parent.name, loss.points(), rates.points()))
    return curves


def _logs(run_dir: Path) -> list[Path]:
    found = sorted(run_dir.glob("*/log.jsonl"), key=lambda path: _order(path.parent.name))
    return found[:PANELS]


def _view(run_dir: Path, results: Results) -> dict[str, Any]:
    """Return the variables of the template."""
    models, tasks, rates = results["models"], results["benchmarks"], results["repetition"]
    compared = [*results["deltas"], *headline.in_bits(results)]

    def stored(name: str) -> dict[str, Path]:
        paths = {m: sample_files.sample_file(run_dir, model=m, name=name) for m in models}
        return {model: path for model, path in paths.items() if path is not None}

    preset_file = run_dir / "preset.yaml"
    preset = visible(preset_file.read_text("utf-8")) if preset_file.is_file() else ""
    generations = stored("generations.jsonl")
    samples = {task: stored(f"samples/{task}.jsonl") for task in tasks}
    texts = results["language"]["benchmarks"] if "language" in results else {}
    others = {task: stored(f"samples/{task}.jsonl") for task in texts}
    others |= {name: stored(f"{name}.jsonl") for name in sample_files.MORE_SAMPLES}
    curves = read_curves(run_dir)
    return {
        "run_name": visible(run_dir.resolve().name),
        "trained": _trained(preset, results),
        "headline": headline.headline(results),
        "results": results,
        "models": models,
        "measures": measures(results, run_dir=run_dir),
        "repetition_details": repetition_details(results, run_dir=run_dir),
        "safety_details": safety_details(results, run_dir=run_dir),
        "caveats": caveats(results),
        "subject": headline.overall(results),
        "isolations": isolations(results),
        "pairs": headline.transitions(results),
        "delta_groups": _delta_groups(results),
        "in_bits": headline.in_bits(results),
        "comparisons": len(compared),
        "counted": headline.counted(compared),
        "change_filters": _change_filters(results),
        "one_format": one_format(results),
        "bars": plots.scale([end for rate in rates.values() for end in rate["ci"]], zero=True),
        "curves": [_curve_view(curve) for curve in curves],
        "epochs": epoch_panels(results),
        "loops": epoch_panels(results, key="loops"),
        "prompts": prompt_deck(examples.choose_prompts(generations), models=models),
        "questions": question_deck(
            examples.choose_questions({t: files for t, files in samples.items() if files}),
            models=models,
        ),
        "tests": list(dict.fromkeys(row["test"] for row in compared)),
        "facts": {
            name: _facts(_read_json(run_dir / file))[:FACTS]
            for name, file in (("Data", "data/data.json"), ("Run", "run.json"))
            if (run_dir / file).is_file()
        },
        "preset": preset,
        "address": partial(_address, run_dir),
        "logs": {_stage(curve): f"{quote(curve.stage)}/log.jsonl" for curve in curves},
        "MANY_ROWS": MANY_ROWS,
        "showcase": examples,
        "links": _links(run_dir, {"generations": generations} | samples | others),
        "plots": plots,
        "detector": repetition,
        "accent": lambda name: plots.accent(name, models),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: tuple[Callable[..., Any], ...] = (
        *(
            number_format.percent,
            number_format.percent_range,
            number_format.points,
            number_format.points_range,
        ),
        *(number_format.p_value, number_format.significant, examples.shown, examples.folded),
        *(number_format.bits_change, number_format.bits_range),
        *(number_format.duration, csp_hash, judge_note, pairs_counted, still_needed),
    )
    environment.globals["comparable_steps"] = COMPARABLE_STEPS
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def csp_hash(script: str) -> str:
    """Return the Content-Security-Policy source that allows exactly this script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _address(run_dir: Path, model: str, task: str, form: str = "") -> str:
    """Return the address of a number's answers, or of the page's list of files."""
    return sample_files.task_href(run_dir, model=model, task=task, form=form) or "#record"


@dataclass(frozen=True)
class _DeltaGroup:
    """Changes on one axis, by task; `orders` holds the sorting keys of each task."""

    title: str
    axis: plots.Scale
    tasks: dict[str, list[DeltaRow]]
    orders: dict[str, str]


def _delta_groups(results: Results) -> list[_DeltaGroup]:
    """Group the changes: repetition, then benchmarks."""
    groups = []
    for title, is_repetition in (("Repetition", True), ("Benchmarks", False)):
        tasks: dict[str, list[DeltaRow]] = {}
        ends, orders = [], {}
        for row in results["deltas"]:
            if (row["task"] == REPETITION) == is_repetition:
                tasks.setdefault(row["task"], []).append(row)
                ends += [*(row.get("ci") or ()), row["delta"]]
        for task, rows in tasks.items():
            largest = max(abs(row["delta"]) for row in rows)
            surest = min(1.0 if row["p_holm"] is None else row["p_holm"] for row in rows)
            orders[task] = f"{largest} {1 - surest}"
        if tasks:
            groups.append(_DeltaGroup(title, plots.scale(ends, zero=True), tasks, orders))
    return groups


def _change_filters(results: Results) -> list[Filter]:
    steps = [f"{a} \u2192 {b}" for a, b in headline.transitions(results)]
    by_step = [(f"step-{i}", words) for i, words in enumerate(steps)]
    clear = {number_format.significant(row) for row in results["deltas"]}
    by_test = [("clear", "significant"), ("flat", "not significant")]
    filters = [Filter("step", {"": by_step})] if len(steps) > 1 else []
    return filters + ([Filter("change", {"": by_test})] if len(clear) > 1 else [])


def _curve_view(curve: plots.Curve) -> dict[str, Any]:
    rates = [rate for _, rate in curve.learning_rate]
    return {
        "stage": curve.stage,
        "loss": curve.loss,
        "learning_rate": curve.learning_rate,
        "x": plots.scale([step for step, _ in curve.loss], zero=True, num_ticks=4),
        "y": plots.scale([loss for _, loss in plots.thinned(curve.loss)], zero=False),
        "rate_axis": plots.scale(rates, zero=True),
        "peak": max(rates, default=None),
    }


def _trained(preset: str, results: Results) -> str:
    """Describe the training from the preset; for a comparison, name the models."""
    stages = " \u2192 ".join(results["stages"])
    section = _parsed(preset) if preset else None
    if not isinstance(section, dict) or not stages:
        return f"Comparison of {', '.join(results['models'])}"
    base = section.get("model") or {}
    how = describe_training(section.get("lora") or {}, base)
    return f"{base.get('name_or_path', 'a model')}, {how}: {stages}"


def _parsed(preset: str) -> Any:
    """Parse the preset; None if it is damaged."""
    try:
        check_expanded_size(preset)
        with constructor_errors():
            return yaml.safe_load(preset)
    except yaml.YAMLError:
        return None


def _facts(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested JSON to (dotted name, value) rows."""
    if isinstance(data, dict) and data:
        nested = [_facts(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in data.items()]
        return [row for rows in nested for row in rows]
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        nested = [_facts(item, f"{prefix}[{i}]") for i, item in enumerate(data)]
        return [row for rows in nested for row in rows]
    if isinstance(data, list) and data:
        return [(prefix, ", ".join(map(str, data)))]
    if isinstance(data, int) and abs(data) >= 10_000:
        return [(prefix, f"{data:,}")]
    return [(prefix, number_format.DASH if data in (None, "", {}, []) else str(data))]


def _links(run_dir: Path, samples: dict[str, dict[str, Path]]) -> list[tuple[str, str]]:
    """Return (label, relative address) of every file that a number comes from."""
    files = [run_dir / name for name in ("results.json", "run.json", "preset.yaml")]
    files += [run_dir / "data" / "data.json", *_logs(run_dir)]
    for name in ("epochs", "loops"):
        files += sorted(run_dir.glob(f"*/{name}.jsonl"))
        files += sorted(run_dir.glob(f"*/{name}/**/*.jsonl"))
    found = [(path.relative_to(run_dir).as_posix(), path) for path in files if path.is_file()]
    found += [(f"{m}: {name}", p) for name, paths in samples.items() for m, p in paths.items()]
    return [(label, quote(path.relative_to(run_dir).as_posix())) for label, path in found]


def _stage(curve: plots.Curve) -> str:
    """1-sft-all -> sft-all"""
    return re.sub(r"^\d+-", "", curve.stage)


def _order(folder: str) -> tuple[int, str]:
    number = re.match(r"\d+", folder)
    return (int(number[0]) if number else sys.maxsize, folder)


def _read_results(run_dir: Path) -> Results:
    path = run_dir / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: there are no results yet; measure the run's models first")
    verified_results(run_dir)
    stored = _read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("models"), list):
        raise UserError(f"{path}: results must hold the list `models`; measure the run again")
    if found := first_mismatch(stored, Results) or unknown_name(cast(Results, stored)):
        raise UserError(f"{path}: {found} is not as this version writes it; measure the run again")
    absent: dict[str, Any] = {"repetition": {}, "benchmarks": {}, "deltas": [], "stages": {}}
    return cast(Results, absent | stored)


def _read_json(path: Path) -> Any:
    try:
        value = json.loads(read_file(path))
    except RecursionError:
        raise UserError(f"{path}: too many levels of lists; measure the run again") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); measure the run again") from None
    if is_too_deep(value):
        raise UserError(f"{path}: too many levels of lists; measure the run again")
    return sample_files.cleaned(value)


def main() -> int:
    """Run the command line; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description="Write the report of a finished run again."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "picture", type=Path, nargs="?", metavar="PICTURE.png", help="a file for the main picture"
    )
    given = parser.parse_args()
    run_dir, picture = given.run, [given.picture] if given.picture else []

    def work() -> None:
        for path in picture:
            if path.is_dir() or not path.parent.is_dir():
                raise UserError(f"{path} is a folder, or lies in none; give a path for the picture")
            if is_inside(path, run_dir):
                raise UserError(
                    f"{path} lies in {run_dir}, where only the run writes; give the picture a "
                    "place outside of it"
                )
        verify_preset(run_dir)
        for record in sorted([*run_dir.glob("*/done.json"), *run_dir.glob("eval/*/done.json")]):
            # The files that the page shows of a stage or a model; the weights are not read.
            verified_record(record.parent, "log.jsonl", "data.json", *SHOWN)
        write_report(run_dir)
        results = _read_results(run_dir)
        for path in picture:
            plots.write_picture(results, logs=read_curves(run_dir), path=path)
        SafeConsole().show(console_table(results))
        lines = (f"report  {run_dir / 'report.html'}", *(f"picture {path}" for path in picture))
        print(*lines, sep="\n")

    return run_command(work, resumable=False)
