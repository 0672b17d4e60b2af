"""Small run directories and exported folders, and their contents."""

from sft.config.sections import ModelSection, Preset, RunSection
from sft.run.directory import open_run
from sft.run.output_folder import new_folder
from sft.run.run_record import write_run_record
from sft.run.stage_cache import Stage
from sft.system.atomic_files import write_text, writing


def preset(folder, seed=0):
    return Preset(run=RunSection(str(folder), seed), model=ModelSection(name_or_path="m"))


def contents(folder):
    """Return every file of a folder with its bytes, except the lock."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def run_of(folder):
    """Write a run with a finished stage, whose model folder a library wrote."""
    with open_run(preset(folder)):
        write_run_record(folder, preset(folder))
        stage = Stage(folder / "1-sft-all", {"rows": "x"})
        stage.begin()
        with writing(stage.folder / "model"):
            (stage.folder / "model").mkdir()
            (stage.folder / "model" / "model.safetensors").write_bytes(b"weights")
        write_text(stage.folder / "log.jsonl", "{}\n")
        stage.finish(outputs=["model", "log.jsonl"], facts={})
    return folder


def fill(to, text="weights"):
    with new_folder(to, option="--to") as folder:
        write_text(folder / "model.safetensors", text)
