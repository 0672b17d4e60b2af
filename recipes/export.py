"""Export the model of a finished run: merged weights, template, stop tokens, card, Modelfile.

    python recipes/export.py RUN --to DIR                       # the last model that was kept
    python recipes/export.py RUN --to DIR --model sft-all --dtype float32
    python recipes/export.py RUN --to DIR --push-to ORG/NAME --dry-run    # list, upload nothing

An adapter is merged into its base. Before the export is marked as finished, its logits are compared
with those of the trained model on rows of the run, and its token ids with those of training. The
same command on a finished folder continues with the upload.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.preset import load_preset
from sft.config.sections import ModelSection, Preset
from sft.errors import UserError
from sft.run.command import command_parser, run_command
from sft.run.directory_checks import refuse_inside_run, refuse_links
from sft.run.fingerprint import fingerprint
from sft.run.output_folder import RECORD, finished_folder, new_folder
from sft.run.stage_cache import Stage, verified_record, verified_results
from sft.run.stage_folders import STAGE_FOLDERS, rejected_stages, stage_facts
from sft.system.atomic_files import read_jsonl, write_text

ROWS = 16  # rows that logits are compared on
LENGTH = 512  # tokens of each at most
RECORDED = 64  # stored answers whose prompts are encoded again

log = logging.getLogger("truing")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and export; the exit codes are those of `run_command`."""
    parser = command_parser(__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--to", type=Path, required=True, help="a new folder for the model")
    parser.add_argument("--model", help="sft-all, sft-dialogue or dpo; absent: the last one kept")
    dtypes = ("bfloat16", "float16", "float32")
    parser.add_argument("--dtype", choices=dtypes, help="absent: the base's, or float32 if needed")
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
        export(given)
        if given.push_to:
            push(given.to, name=given.push_to, dry_run=given.dry_run)

    return run_command(work, resumable=False)


@dataclass(frozen=True)
class Export:
    """The model of a stage and the options of its export."""

    run: Path
    preset: Preset
    stage: str
    name: str  # of the exported model
    dtype: str | None
    trust_remote_code: bool

    def inputs(self) -> dict[str, str]:
        """Return the options, and a hash of the run's records, which hold those of its weights."""
        folders = (".", *STAGE_FOLDERS.values(), f"{STAGE_FOLDERS[self.stage]}/start")
        records = [f"{f}/done.json" for f in (*folders, "base", f"eval/{self.stage}", "data")]
        files = [f for f in ("preset.yaml", "run.json", *records) if (self.run / f).is_file()]
        hashes = fingerprint({file: fingerprint(self.run / file) for file in files})
        options = {"stage": self.stage, "called": self.name, "dtype": str(self.dtype)}
        return options | {"run": hashes}


def export(given: argparse.Namespace) -> None:
    """Write a run's model to a new folder, check it, and print how to use it; a finished export is
    left as it is."""
    run, to, trust = given.run, given.to, given.trust_remote_code
    refuse_inside_run(to, option="--to")
    preset, stage = find_model(run, given.model)
    # The run's record may come from a stranger, so that its own consent does not count.
    if preset.model.trust_remote_code and not trust:
        raise UserError(
            f"{run} was trained with model.trust_remote_code: its model brings Python files that "
            "would run here; pass --trust-remote-code if you trust them"
        )
    exported = Export(run, preset, stage, to.resolve().name, given.dtype, trust)
    inputs = exported.inputs()
    facts = finished_folder(to, inputs, option="--to")
    if facts is not None:
        print(f"{to} holds this export already, complete; nothing is written again")
    else:
        with new_folder(to, option="--to") as folder:
            ollama = write_export(exported, folder)
            written = sorted(entry.name for entry in folder.iterdir())
            facts = Stage(folder, inputs).finish(outputs=written, facts={"ollama": ollama})
    print(f"model   {to}", *ways_to_use(str(to), name=to.name, ollama=facts["ollama"]), sep="\n")


def write_export(exported: Export, folder: Path) -> bool:
    """Write and check model, tokenizer and card; return whether there is a Modelfile, too."""
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

    start_logging()
    run, preset, stage = exported.run, exported.preset, exported.stage
    trained = str((run / STAGE_FOLDERS[stage] / "model").resolve())
    section = ModelSection(trained, trust_remote_code=exported.trust_remote_code)
    tokenizer = load_tokenizer(trained, section, date=preset.run.date)
    rows, dtype = sample_rows(run, stage), exported.dtype
    checked = write_weights(
        run, preset, section, tokenizer=tokenizer, rows=rows, folder=folder, dtype=dtype
    )
    if not (run / "results.json").is_file():
        log.warning("%s is not finished: its model after %s is not compared", run, stage)
    complete_tokenizer_config(folder, tokenizer)
    turns = None
    # Ollama's template language cannot express every chat template.
    try:
        turns = write_modelfile(folder, tokenizer, window=context_window(trained, section))
    except UserError as reason:
        checked.append(f"Modelfile: none, {reason}")
    checked += template_notes(tokenizer, date=preset.run.date, modelfile=bool(turns))
    parity = check_token_parity(
        tokenizer,
        folder=folder,
        recorded=stored_answers(run, stage)[:RECORDED],
        turns=turns,
        trust_remote_code=exported.trust_remote_code,
    )
    checked.append(f"token ids: the same in {', '.join(parity.ways)} ({parity.chats} chats)")
    for line in checked:
        log.info("%s", line)
    write_text(folder / "preset.yaml", (run / "preset.yaml").read_text(encoding="utf-8"))
    use = [f"    {line}" for line in ways_to_use(".", name=exported.name, ollama=turns is not None)]
    card = model_card(run, preset, name=exported.name, model=stage, use=use, checked=checked)
    write_text(folder / "README.md", card)
    return turns is not None


def ways_to_use(folder: str, *, name: str, ollama: bool) -> list[str]:
    """Return commands that chat with the model in `folder` or convert it for another program."""
    from sft.run.console import chat_commands

    at, called = shlex.quote(folder), shlex.quote(name)
    lines = chat_commands(folder)
    if ollama:
        file = shlex.quote(f"{folder}/Modelfile")
        lines.append(f"ollama  ollama create {called} -f {file} && ollama run {called}")
    mlx = shlex.quote(f"{name}-mlx")
    return [*lines, f"mac     mlx_lm.convert --hf-path {at} --mlx-path {mlx} -q"]


def find_model(run: Path, model: str | None) -> tuple[Preset, str]:
    """Return the preset of a run and the name of the stage to export, after checking both."""
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
    stage = model or kept[-1]
    check_intact(run, stage)
    return load_preset(run / "preset.yaml", recorded=True), stage


def check_intact(run: Path, stage: str) -> None:
    """Check that the files that the export reads are as the run wrote them."""
    from sft.run.directory import verify_preset

    folder = run / STAGE_FOLDERS[stage]
    verified_record(folder)
    verified_results(run)
    # Only some runs have these: added tokens, an adapter merged earlier, measurements.
    for other in (run / "base", folder / "start", run / "eval" / stage, run / "data"):
        if (other / "done.json").exists():
            verified_record(other)
    for name in STAGE_FOLDERS.values():  # the model card has a row for each stage
        if (run / name / "done.json").exists():
            verified_record(run / name, "log.jsonl")
    verify_preset(run)


def stored_answers(run: Path, model: str) -> list[dict[str, Any]]:
    """Return the answers of a model that the evaluation stored; none if it asked nothing."""
    file = run / "eval" / model / "generations.jsonl"
    return read_jsonl(file) if file.is_file() else []


def sample_rows(run: Path, model: str) -> list[list[int]]:
    """Return token ids of conversations: the model's own answers, otherwise training rows."""
    import pyarrow.parquet as pq

    rows = [[*row["prompt_ids"], *row["token_ids"]] for row in stored_answers(run, model)]
    trained = run / "data" / "sft.parquet"
    if not rows and trained.is_file():
        rows = pq.read_table(trained, columns=["input_ids"])["input_ids"].to_pylist()
    if not rows:
        raise UserError(f"{run} stores no answers and no token rows to compare logits on")
    step = max(1, len(rows) // ROWS)  # evenly spaced, since kinds come in blocks
    return [row[:LENGTH] for row in rows[::step][:ROWS]]


def check_name(name: str) -> None:
    """Check that a name is valid on the Hub, before any work."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push-to {name}: {' '.join(str(error).split())}") from None
    if "/" not in name:
        raise UserError(f"--push-to {name} names no owner; give ORG/NAME")


def push(folder: Path, *, name: str, dry_run: bool) -> None:
    """Upload an export to the Hub as a private model; in a dry run, list its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / RECORD)
    size = sum(path.stat().st_size for path in files)
    about = f"{len(files)} files, {size / 1e6:,.1f} MB"
    print(f"hub     https://huggingface.co/{name}, private: {about}")
    for path in files:
        print(f"        {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    preset = load_preset(folder / "preset.yaml", recorded=True)
    sources = [*preset.data.sft, *preset.data.preference, *preset.pairs.prompts]
    named = [preset.model.name_or_path, *(source.path for source in sources)]
    # A preset that is published with the model must not reveal a user's folders unnoticed.
    if local := [path for path in named if Path(path).expanduser().is_absolute()]:
        print(f"        preset.yaml names {len(local)} paths of this machine, {local[0]} first")
    if dry_run:
        print("        dry run: nothing was uploaded")
        return
    try:
        api = HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        # The record lists hashes of this folder and is of no use elsewhere.
        api.upload_folder(folder_path=folder, repo_id=name, ignore_patterns=[RECORD])
    except (HTTPError, OSError) as error:
        raise UserError(
            f"--push-to {name}: the hub could not be reached or refused "
            f"({str(error).splitlines()[0]}); check the network and `hf auth login`; the model is "
            f"in {folder}"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
