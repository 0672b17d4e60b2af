"""A finished run's model, ready for others: merged weights, template, stops, card, Modelfile.

    python recipes/export.py RUN --to DIR                       # the last model that was kept
    python recipes/export.py RUN --to DIR --model sft-all --dtype float32
    python recipes/export.py RUN --to DIR --push-to ORG/NAME --dry-run    # list, upload nothing

The same command on a folder that is finished goes on to the upload. An adapter is merged into its
base. Before anything is called done, the published model's logits are compared with the trained
one's on real rows of the run, and its token ids with those of training.
"""

if __name__ == "__main__":  # while libraries are imported, too
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.config.preset import load_preset
from sft.config.sections import ModelSection, Preset
from sft.errors import UserError
from sft.run.command import run_command
from sft.run.output_folder import RECORD, finished_folder, new_folder
from sft.run.stage_cache import Stage
from sft.system.atomic_files import write_text

ROWS = 16  # real rows that logits are compared on, of at most LENGTH tokens
LENGTH = 512
RECORDED = 64  # answers of the evaluation whose prompts are encoded again

log = logging.getLogger("truing")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and export; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--to", type=Path, required=True, help="a new folder for the model")
    parser.add_argument("--model", help="sft-all, sft-dialogue or dpo; absent: the last one kept")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="the base's, or float32 where its rounding loses too much",
    )
    parser.add_argument("--push-to", metavar="ORG/NAME", help="upload to the hub, as private")
    parser.add_argument("--dry-run", action="store_true", help="with --push-to: upload nothing")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files that came with the model; the run's own word is not enough",
    )
    given = parser.parse_args(argv)

    def work() -> None:
        if given.dry_run and not given.push_to:
            raise UserError("--dry-run lists what --push-to would upload; give both, or neither")
        if given.push_to:
            check_name(given.push_to)
        export(
            given.run,
            to=given.to,
            model=given.model,
            dtype=given.dtype,
            trust_remote_code=given.trust_remote_code,
        )
        if given.push_to:
            push(given.to, name=given.push_to, dry_run=given.dry_run)

    return run_command(work, resumable=False)


def export(
    run: Path,
    *,
    to: Path,
    model: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write a run's model to a new folder, prove it, and say how to use it; a folder that holds
    this export already is left as it is."""
    from sft.run.directory_checks import refuse_inside_run

    refuse_inside_run(to, option="--to")
    preset, name = find_model(run, model)
    if preset.model.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"{run} was trained with model.trust_remote_code: its model brings Python files that "
            "would run here; pass --trust-remote-code if you trust them"
        )
    inputs = export_inputs(run, name, called=to.resolve().name, dtype=dtype)
    facts = finished_folder(to, inputs, option="--to")
    if facts is not None:
        print(f"{to} holds this export already, whole; nothing is written again")
    else:
        with new_folder(to, option="--to") as folder:
            ollama = write_export(
                run,
                preset,
                name,
                folder=folder,
                called=inputs["called"],
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
            written = sorted(entry.name for entry in folder.iterdir())
            facts = Stage(folder, inputs).finish(outputs=written, facts={"ollama": ollama})
    print(f"model   {to}", *ways_to_use(str(to), name=to.name, ollama=facts["ollama"]), sep="\n")


def export_inputs(run: Path, name: str, *, called: str, dtype: str | None) -> dict[str, str]:
    """What an export of the stage `name` is made of: its options, and a hash of the run's records,
    which hold the hashes of its weights and answers."""
    from sft.run.fingerprint import fingerprint
    from sft.run.stage_folders import STAGE_FOLDERS

    folders = (".", *STAGE_FOLDERS.values(), f"{STAGE_FOLDERS[name]}/start")
    records = [f"{each}/done.json" for each in (*folders, "base", f"eval/{name}", "data")]
    read = [place for place in ("preset.yaml", "run.json", *records) if (run / place).is_file()]
    hashes = fingerprint({place: fingerprint(run / place) for place in read})
    return {"stage": name, "called": called, "dtype": str(dtype), "run": hashes}


def write_export(
    run: Path,
    preset: Preset,
    name: str,
    *,
    folder: Path,
    called: str,
    dtype: str | None,
    trust_remote_code: bool,
) -> bool:
    """Write a stage's model into `folder` with all that it needs; return whether Ollama's file is
    among it.

    Args:
        name: of the stage.
        called: the name of the exported model.

    Raises:
        UserError: what was written is not the trained model, or gets other token ids.
    """
    # Imported here, since they take seconds, so that a mistyped path is answered at once.
    from eval.results.model_card import model_card
    from sft.export.stage_weights import template_notes, write_weights
    from sft.export.token_parity import (
        check_token_parity,
        complete_tokenizer_config,
        write_modelfile,
    )
    from sft.model.loading import context_window, load_tokenizer
    from sft.run.console import start_logging
    from sft.run.stage_folders import STAGE_FOLDERS

    start_logging()
    trained = str((run / STAGE_FOLDERS[name] / "model").resolve())
    section = ModelSection(trained, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(trained, section, date=preset.run.date)
    rows = real_rows(run, name)
    checked = write_weights(
        run, preset, section, tokenizer=tokenizer, rows=rows, folder=folder, dtype=dtype
    )
    if not (run / "results.json").is_file():
        log.warning("%s had not ended: this is its model after %s, and is not compared", run, name)
    complete_tokenizer_config(folder, tokenizer)
    turns = None
    try:
        turns = write_modelfile(folder, tokenizer, window=context_window(trained, section))
    except UserError as reason:
        checked.append(f"Modelfile: none, {reason}")
    checked += template_notes(tokenizer, date=preset.run.date, modelfile=bool(turns))
    recorded = answers(run, name)[:RECORDED]
    proof = check_token_parity(
        tokenizer,
        folder=folder,
        recorded=recorded,
        turns=turns,
        trust_remote_code=trust_remote_code,
    )
    checked.append(f"token ids: the same in {', '.join(proof.ways)} ({proof.chats} chats)")
    for line in checked:
        log.info("%s", line)
    write_text(folder / "preset.yaml", (run / "preset.yaml").read_text(encoding="utf-8"))
    ways = ways_to_use(".", name=called, ollama=turns is not None)
    use = [f"    {line}" for line in ways]
    card = model_card(run, preset, name=called, model=name, use=use, checked=checked)
    write_text(folder / "README.md", card)
    return turns is not None


def ways_to_use(folder: str, *, name: str, ollama: bool) -> list[str]:
    """Commands that talk to the model in `folder`, or make it ready for another program."""
    from sft.run.console import chat_commands

    at, called = shlex.quote(folder), shlex.quote(name)
    lines = chat_commands(folder)
    if ollama:
        file = shlex.quote(f"{folder}/Modelfile")
        lines.append(f"ollama  ollama create {called} -f {file} && ollama run {called}")
    mlx = shlex.quote(f"{name}-mlx")
    return [*lines, f"mac     mlx_lm.convert --hf-path {at} --mlx-path {mlx} -q"]


def find_model(run: Path, model: str | None) -> tuple[Preset, str]:
    """The preset of a run and the name of the model to export.

    Raises:
        UserError: the folder is no run or holds links that lead out of it, or that stage is not
            finished, or none was kept.
    """
    from sft.run.directory_checks import refuse_links
    from sft.run.stage_folders import rejected_stages, stage_facts

    if not (run / "preset.yaml").is_file():
        raise UserError(f"{run} is no run's folder (it holds no preset.yaml); give a run.dir")
    refuse_links(run, given=str(run))
    finished = list(stage_facts(run))
    if not finished:
        raise UserError(f"{run}: no stage is finished; start its command again")
    if model is not None and model not in finished:
        raise UserError(f"--model {model}: finished are {', '.join(finished)}; name one of these")
    kept = [name for name in finished if name not in rejected_stages(run)]
    if model is None and not kept:
        raise UserError(
            f"{run}: {finished[-1]} was set aside by its gate, and no other stage is finished; "
            f"give --model {finished[-1]} to export it all the same"
        )
    name = model or kept[-1]
    check_whole(run, name)
    return load_preset(run / "preset.yaml", recorded=True), name


def check_whole(run: Path, name: str) -> None:
    """Hold what an export of the stage `name` reads of a run against the run's records.

    Raises:
        UserError: a file is missing or was changed after the run wrote it.
    """
    from sft.run.directory import verify_preset
    from sft.run.stage_cache import verified_record, verified_results
    from sft.run.stage_folders import STAGE_FOLDERS

    stage = run / STAGE_FOLDERS[name]
    verified_record(stage)
    verified_results(run)
    # Stages that only some runs have: added tokens, an adapter merged before, measures.
    for more in (run / "base", stage / "start", run / "eval" / name, run / "data"):
        if (more / "done.json").exists():
            verified_record(more)
    for place in STAGE_FOLDERS.values():  # the model card has a row for each stage
        if (run / place / "done.json").exists():
            verified_record(run / place, "log.jsonl")
    verify_preset(run)


def answers(run: Path, model: str) -> list[dict[str, Any]]:
    """What the evaluation stored of a model's answers, none where nothing was asked."""
    from sft.system.atomic_files import read_jsonl

    file = run / "eval" / model / "generations.jsonl"
    return read_jsonl(file) if file.is_file() else []


def real_rows(run: Path, model: str) -> list[list[int]]:
    """Token ids of real conversations: the model's own answers, else rows that it was trained on.

    Raises:
        UserError: the run keeps neither.
    """
    import pyarrow.parquet as pq

    rows = [[*row["prompt_ids"], *row["token_ids"]] for row in answers(run, model)]
    trained = run / "data" / "sft.parquet"
    if not rows and trained.is_file():
        rows = pq.read_table(trained, columns=["input_ids"])["input_ids"].to_pylist()
    if not rows:
        raise UserError(f"{run} keeps no answers and no token rows to compare logits on")
    step = max(1, len(rows) // ROWS)
    return [row[:LENGTH] for row in rows[::step][:ROWS]]


def check_name(name: str) -> None:
    """Refuse what the hub does not take as a name, before any work."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to {name}: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise UserError(f"--push-to {name} names no owner; give ORG/NAME")


def push(folder: Path, *, name: str, dry_run: bool) -> None:
    """Upload an export to the hub as a private model, or list what would go there.

    Raises:
        UserError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / RECORD)
    size = sum(path.stat().st_size for path in files)
    print(
        f"hub     https://huggingface.co/{name}, private: {len(files)} files, {size / 1e6:,.1f} MB"
    )
    for path in files:
        print(f"        {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    preset = load_preset(folder / "preset.yaml", recorded=True)
    sources = [*preset.data.sft, *preset.data.preference, *preset.pairs.prompts]
    named = [preset.model.name_or_path, *(source.path for source in sources)]
    if local := [path for path in named if Path(path).expanduser().is_absolute()]:
        print(f"        preset.yaml names {len(local)} paths of this machine, {local[0]} first")
    if dry_run:
        print("        dry run: nothing was uploaded")
        return
    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, ignore_patterns=[RECORD])
    except (HTTPError, OSError) as error:
        raise UserError(
            f"--push-to {name}: the hub could not be reached or refused "
            f"({str(error).splitlines()[0]}); check the network and `hf auth login`; the model is "
            f"in {folder}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
