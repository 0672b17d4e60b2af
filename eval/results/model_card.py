"""Model card of an export: results, training, data and licenses.

It is written from preset.yaml, results.json, data/ and run.json of the run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import yaml

from eval.report.headline import headline
from eval.report.tables import md, md_table, results_tables
from eval.schema import Results
from sft.config.preset import find_path
from sft.config.sections import Preset, Source, describe_training
from sft.data.readers import is_on_hub
from sft.run.stage_cache import intact_record, verified_results
from sft.run.stage_folders import STAGE_FOLDERS, rejected_stages, stage_facts
from sft.run.stage_summary import COMPARABLE_STEPS
from sft.system.atomic_files import read_jsonl

UNSTATED = "not stated"


def model_card(
    run: Path, preset: Preset, *, name: str, model: str, use: list[str], checked: list[str]
) -> str:
    """Return the README.md of an export, which begins with the hub's metadata.

    Args:
        run: the folder of a finished run, which may lack results.json.
        name: of the exported model.
        model: its name in the run.
        use: commands to chat with it, from its folder.
        checked: sentences about the checks that it passed.
    """
    results = cast("Results | None", verified_results(run))
    metadata = _metadata(preset, trained=stage_facts(run), last=model)
    base = preset.model.base_model or public_name(preset.model.name_or_path)
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {md(name)}", ""]
    how = describe_training(asdict(preset.lora), asdict(preset.model)) + ", merged" * bool(
        preset.lora.r
    )
    lines += [f"{md(base)}, trained ({how}) with truing; the model after {model}."]
    lines += ["", "## Use", "", "In this folder:", "", *use]
    lines += ["", "## Checked", "", *(f"- {md(line)}" for line in checked)]
    lines += ["", "## Results", ""]
    if results and model in results["models"]:
        lines += [md(headline(results).answer), "", *results_tables(results)]
    else:
        lines += [md(_uncompared(results, model))]
    lines += ["", "## How it was made", "", *_stages(run, preset, last=model)]
    lines += ["", "## Data and licenses", "", *_licences(run, preset, last=model)]
    return "\n".join(lines) + "\n"


def _uncompared(results: Results | None, model: str) -> str:
    """Return the reason why a model has no results."""
    if not results:
        return "The run had not ended when this was exported, so nothing is compared here."
    for decision in results.get("decisions", []):
        if decision["stage"] == model and decision["verdict"] == "set aside":
            return f"The run set this model aside: {decision['reason']}."
    return "This model was not measured."


def _metadata(preset: Preset, *, trained: Iterable[str], last: str) -> dict[str, Any]:
    """Return the metadata of https://huggingface.co/docs/hub/model-cards."""
    sources = [*preset.data.sft, *(preset.data.preference if last == "dpo" else [])]
    sft = any(name != "dpo" for name in trained)
    facts = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": preset.model.base_model or _hub_id(preset.model.name_or_path),
        "datasets": [s.path for s in sources if _hub_id(s.path)],
        "license": preset.model.license,
        "tags": ["truing", *["sft"] * sft, *["dpo"] * (last == "dpo")],
    }
    return {key: value for key, value in facts.items() if value}


def _hub_id(path: str) -> str | None:
    """Return a hub id; None for a path on the machine that trained."""
    return path if is_on_hub(path) else None


def _epochs(run: Path, stage: str, options: Mapping[str, Any]) -> float:
    """Return the epochs of a stage; with `max_steps` those of its last log line."""
    log = read_jsonl(run / STAGE_FOLDERS[stage] / "log.jsonl")
    epochs = [row["epoch"] for row in log if "epoch" in row]
    under_steps = options.get("max_steps", -1) > 0
    count: float = epochs[-1] if under_steps and epochs else options["num_train_epochs"]
    return count


def _stages(run: Path, preset: Preset, *, last: str) -> list[str]:
    """Return a table of the stages that led to the model, and the seed, device and versions."""
    facts = stage_facts(run)
    aside = rejected_stages(run) - {last}
    names = [name for name in facts if name not in aside]
    rows = []
    for name in names[: names.index(last) + 1] if last in names else names:
        options, done = getattr(preset, name.replace("-", "_")).trl, facts[name]
        rows.append(
            [
                name,
                f"{options['learning_rate']:g}",
                f"{_epochs(run, name, options):.3g}",
                f"{done['steps']:,}",
                f"{done['tokens']:,}",
                f"{done['loss_first']:.3f} \u2192 {done['loss_last']:.3f}"
                if done["steps"] >= COMPARABLE_STEPS
                else "too few steps",
            ]
        )
    loss = "loss, mean of the first and of the last quarter of the steps (at most 50)"
    head = ["stage", "learning rate", "epochs", "steps", "tokens", loss]
    made = intact_record(run / "run.json") or {}
    versions = ", ".join(f"{k} {v}" for k, v in made.get("versions", {}).items())
    return [
        *md_table(head, rows),
        "",
        md(f"Seed {preset.run.seed}, {made.get('device', 'device not recorded')}; {versions}."),
        "The preset that repeats it is `preset.yaml` in this folder.",
    ]


def _licences(run: Path, preset: Preset, *, last: str) -> list[str]:
    """Return a table of the sources: license, and rows trained by stage."""
    model = preset.model
    commit = f" at revision {model.revision}" if model.revision else ""
    base = (model.base_model or public_name(model.name_or_path)) + commit
    rows = [["base", base, model.license or UNSTATED, ""]]
    dpo, given = last == "dpo", preset.data.preference
    uses: tuple[tuple[str, list[Source]], ...] = (
        ("chats", preset.data.sft),
        ("preferences", given if dpo else []),
        ("prompts for its own answers", preset.pairs.prompts if dpo and not given else []),
    )
    taken = _rows_trained(run, last=last)
    for use, sources in uses:
        for source in sources:
            counts = ", ".join(
                f"{stage} {count:,}"
                for stage, origins in taken.items()
                if (stage == "dpo") == (use != "chats") and (count := _count(source, origins))
            )
            rows.append([use, public_name(source.path), source.license or UNSTATED, counts])
    lines = md_table(["", "source", "license", "rows trained by stage"], rows)
    unstated = "A license that is not stated here was not stated in the preset; ask its source."
    return lines + ["", unstated] * any(row[2] == UNSTATED for row in rows)


def public_name(path: str) -> str:
    """Return a hub id unchanged, and the last part of a local path, since a card is published."""
    return path if _hub_id(path) else Path(path).name


def _rows_trained(run: Path, *, last: str) -> Mapping[str, Counter[str]]:
    """Count the rows that each stage up to `last` trained on, by source."""
    checked = intact_record(run / "data" / "checks.json") or {}
    names = list(stage_facts(run))
    trained: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for stage in names[: names.index(last) + 1]:
        for row in checked.get(stage, []):
            trained[stage][row["source"]] += row["rows"]
    pairs = run / "data" / "preference" / "rows" / "rows.parquet"
    if last == "dpo" and pairs.is_file():
        origins = pq.read_table(pairs, columns=["origin"])["origin"].to_pylist()
        trained["dpo"] = Counter(origin.rpartition(":")[0] for origin in origins)
    return trained


def _count(source: Source, origins: Mapping[str, int]) -> int:
    """Count the rows of a source, whose origins name the file as found or the hub's split."""
    # Origins have the path as in the preset, resolved, or below a folder of the checkout.
    names = {source.path, f"{source.path}[{source.split}]", str(find_path(source.path))}
    return sum(
        count
        for origin, count in origins.items()
        if origin in names or origin.endswith(f"/{source.path}")
    )
