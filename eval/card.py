"""The model card of an export: results, how it was made, from what, under which licences.

Everything in it is read from the run: preset.yaml, results.json, data/, run.json.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from eval.tables import md, md_table, results_tables
from eval.wording import headline
from sft.config import DpoStage, Preset, SftStage, Source, find_path
from sft.run import read_json, set_aside, stage_facts
from sft.sections import how_trained

UNSTATED = "not stated"


def model_card(
    run: Path, preset: Preset, *, name: str, model: str, use: list[str], checked: list[str]
) -> str:
    """README.md of an export, with the hub's metadata in front.

    Args:
        run: a finished run's folder; without results.json the card says that nothing was measured.
        name: what the model is called.
        model: which of the run's models it is.
        use: commands that talk to it, from inside its folder.
        checked: what was proved about it.
    """
    results = read_json(run / "results.json")
    metadata = _metadata(preset, trained=stage_facts(run), last=model)
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).rstrip(), "---", ""]
    lines += [f"# {md(name)}", ""]
    how = how_trained(asdict(preset.lora), asdict(preset.model)) + ", merged" * bool(preset.lora.r)
    lines += [
        f"{md(preset.model.name_or_path)}, trained ({how}) with truing; the model after {model}."
    ]
    lines += ["", "## Use", "", "In this folder:", "", *use]
    lines += ["", "## Checked", "", *(f"- {md(line)}" for line in checked)]
    lines += ["", "## Results", ""]
    if results and model in results["models"]:
        lines += [md(headline(results).answer), "", *results_tables(results)]
    else:
        lines += [md(_uncompared(results, model))]
    lines += ["", "## How it was made", "", *_stages(run, preset, last=model)]
    lines += ["", "## Data and licences", "", *_licences(run, preset, dpo=model == "dpo")]
    return "\n".join(lines) + "\n"


def _uncompared(results: dict[str, Any] | None, model: str) -> str:
    """Why a model has no results."""
    if not results:
        return "The run had not ended when this was exported, so nothing is compared here."
    for decision in results.get("decisions", []):
        if decision["stage"] == model and decision["verdict"] == "set aside":
            return f"The run set this model aside: {decision['reason']}."
    return "This model was not measured."


def _metadata(preset: Preset, *, trained: Iterable[str], last: str) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    sources = [*preset.data.sft, *(preset.data.preference if last == "dpo" else [])]
    sft = any(name != "dpo" for name in trained)
    facts = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": _hub_id(preset.model.name_or_path),
        "datasets": [s.path for s in sources if _hub_id(s.path)],
        "license": preset.model.license,
        "tags": ["truing", *["sft"] * sft, *["dpo"] * (last == "dpo")],
    }
    return {key: value for key, value in facts.items() if value}


def _hub_id(path: str) -> str | None:
    return None if find_path(path) or path.count("/") != 1 else path


def _stages(run: Path, preset: Preset, *, last: str) -> list[str]:
    """A row for each stage that led to the model that is exported, then what it ran on."""
    facts = stage_facts(run)
    aside = set_aside(run) - {last}
    names = [name for name in facts if name not in aside]
    sections: dict[str, SftStage | DpoStage] = {
        "sft-all": preset.sft_all,
        "sft-dialogue": preset.sft_dialogue,
        "dpo": preset.dpo,
    }
    rows = []
    for name in names[: names.index(last) + 1] if last in names else names:
        options, done = sections[name].trl, facts[name]
        rows.append(
            [
                name,
                f"{options['learning_rate']:g}",
                f"{options['num_train_epochs']:g}" if options.get("max_steps", -1) <= 0 else "",
                f"{done['steps']:,}",
                f"{done['tokens']:,}",
                f"{done['loss_first']:.3f} \u2192 {done['loss_last']:.3f}",
            ]
        )
    loss = "loss, mean of the first and of the last quarter of the steps (at most 50)"
    head = ["stage", "learning rate", "epochs", "steps", "tokens", loss]
    made = read_json(run / "run.json") or {}
    versions = ", ".join(f"{k} {v}" for k, v in made.get("versions", {}).items())
    return [
        *md_table(head, rows),
        "",
        md(f"Seed {preset.run.seed}, {made.get('device', 'device not recorded')}; {versions}."),
        "The preset that repeats it is `preset.yaml`, beside this card.",
    ]


def _licences(run: Path, preset: Preset, *, dpo: bool) -> list[str]:
    kept: dict[tuple[str, str], int] = {}
    for use, file in (("chats", "data"), ("preferences", "preference")):
        counted = read_json(run / "data" / f"{file}.json") or {}
        kept |= {(use, entry["source"]): entry["kept"] for entry in counted.get("sources", [])}
    commit = f" at revision {preset.model.revision}" if preset.model.revision else ""
    rows = [["base", preset.model.name_or_path + commit, preset.model.license or UNSTATED, ""]]
    given = preset.data.preference
    uses: tuple[tuple[str, list[Source]], ...] = (
        ("chats", preset.data.sft),
        ("preferences", preset.data.preference if dpo else []),
        ("prompts for its own answers", preset.pairs.prompts if dpo and not given else []),
    )
    for use, sources in uses:
        for source in sources:
            read = kept.get((use, source.path))
            shown = f"{read:,}" if read is not None else ""
            if read is not None and source.count is not None and source.count < read:
                shown = f"{source.count:,} of {read:,}"
            rows.append([use, source.path, source.license or UNSTATED, shown])
    lines = md_table(["", "source", "licence", "rows taken"], rows)
    if any(row[2] == UNSTATED for row in rows):
        lines += [
            "",
            "A licence that is not stated here was not stated in the preset; ask its source.",
        ]
    return lines
