"""The chain with TensorBoard: its event files contain the values of the run's files once."""

import pytest
from tiny_models import make_tiny_tokenizer
from tiny_world import build_world, foreign_files

from recipes.sft_then_dpo import main
from sft.run.stage_folders import STAGE_FOLDERS
from sft.system.atomic_files import read_json, read_jsonl
from sft.training.throughput import MEASURED

MODELS = {"base": "eval/base", **STAGE_FOLDERS}
MORE = ("eval.repetition.cap=64", "eval.each_epoch={enabled: true, prompts: 3, limit: 4}")
TOLD = "run.report_to=[tensorboard]"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two runs of one preset: `plain`, and `told` to TensorBoard."""
    pytest.importorskip("tensorboard")
    folder = build_world(tmp_path_factory.mktemp("world"), make_tiny_tokenizer())
    assert run(folder, "plain") == 0
    assert run(folder, "told", TOLD) == 0
    assert foreign_files(folder / "told") == []
    return folder


def run(world, name, *more):
    return main([str(world / "preset.yaml"), *MORE, f"run.dir={world / name}", *more])


def events(folder):
    """Return every scalar of a folder's event files with its steps and values, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    points = {name: read.Scalars(name) for name in read.Tags()["scalars"]}
    return {name: ([e.step for e in of], [e.value for e in of]) for name, of in points.items()}


def holds(found, points):
    """Return whether the events, in single precision, hold these values."""
    steps, values = zip(*points, strict=True)
    return found == (list(steps), pytest.approx(list(values), rel=1e-6))


def test_weights_and_scores_are_those_of_a_run_without_it(world):
    for place in STAGE_FOLDERS.values():
        name = f"{place}/model/model.safetensors"
        assert (world / "plain" / name).read_bytes() == (world / "told" / name).read_bytes()
    for model in MODELS:
        files = [world / run / "eval" / model / "scores.json" for run in ("plain", "told")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_every_figure_of_every_step_is_there_once(world):
    for place in STAGE_FOLDERS.values():
        lines = read_jsonl(world / "told" / place / "log.jsonl")
        found = events(world / "told" / place)
        names = {name for line in lines for name in line} - {"step"}
        assert {"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= names
        assert {n for n in found if n.startswith("train/")} == {f"train/{n}" for n in names}
        for name in names:
            written = [(line["step"], line[name]) for line in lines if name in line]
            assert holds(found[f"train/{name}"], written), name


def test_what_was_measured_and_what_changed_is_there_once(world):
    results = read_json(world / "told" / "results.json")
    for model, place in MODELS.items():
        found = events(world / "told" / place)
        last = results["stages"].get(model, {"steps": 0})["steps"]
        score = results["benchmarks"]["sums"][model]["score"]
        assert holds(found["eval/benchmarks/sums"], [(last, score)])
        assert holds(found["eval/repetition"], [(last, results["repetition"][model]["rate"])])
        changes = [d for d in results["deltas"] if d["to"] == model]
        assert len([n for n in found if n.startswith("delta/")]) == len(changes)
        for change in changes:
            name = f"delta/{change['task']}/from {change['from']}"
            assert holds(found[name], [(last, change["delta"])])
        for row in results["epochs"].get(model, []):
            assert holds(found["epoch/repetition"], [(row["step"], row["repetition"]["rate"])])


def test_a_tracker_named_after_the_run_gets_the_same_values_and_nothing_runs_again(world):
    done = [world / "plain" / place / "done.json" for place in STAGE_FOLDERS.values()]
    before = [path.stat().st_mtime_ns for path in done]
    assert run(world, "plain", TOLD) == 0
    assert run(world, "plain", TOLD) == run(world, "told", TOLD) == 0  # and nothing twice
    assert [path.stat().st_mtime_ns for path in done] == before
    timed = {f"train/{n}" for n in (*MEASURED, "train_runtime", "train_tokens_per_second")}
    for place in MODELS.values():
        live, later = events(world / "told" / place), events(world / "plain" / place)
        assert live.keys() == later.keys()
        for name in live:
            same = live[name] == later[name]
            assert same or (name in timed and live[name][0] == later[name][0]), name
