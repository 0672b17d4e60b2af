"""Trackers receive each value once, also after kills and failures."""

import json
import logging
import os

import pytest
from accelerate.tracking import GeneralTracker

from sft.config.preset import load_preset
from sft.config.sections import Preset, RunSection
from sft.errors import UserError
from sft.run import trackers as module
from sft.run.trackers import Trackers, check_trackers, open_trackers


class Noted(GeneralTracker):
    """Stands in for one of accelerate's trackers, by the folder or the name that it is given."""

    name, requires_logging_directory, tracker = "noted", False, None
    heard: dict[str, list] = {}  # noqa: RUF012 - over all that are opened
    fails_at: int | None = None

    def __init__(self, project, *place, **options):
        super().__init__()
        self.run = str(place[0]) if place else options["name"]
        self.options = options

    def start(self):
        self.heard.setdefault(self.run, [])

    def log(self, values, step=None, **_):
        if step == self.fails_at:
            raise OSError("the tracker's own trouble")
        self.heard[self.run].append((step, values))

    def finish(self):
        self.heard[self.run].append("finished")


@pytest.fixture
def heard(monkeypatch):
    """What TensorBoard and trackio are told, by run."""
    monkeypatch.setattr(Noted, "heard", {})
    monkeypatch.setattr(Noted, "fails_at", None)
    monkeypatch.setattr(module, "TensorBoardTracker", Noted)
    monkeypatch.setattr(module, "TrackioTracker", type("Other", (Noted,), {"fails_at": None}))
    return Noted.heard


def lines(first, last):
    return [{"step": step, "loss": 1 / step, "note": "no figure"} for step in range(first, last)]


def train(folder, first, last, *, names=("tensorboard",), torn=""):
    """A start that goes on from the checkpoint before step `first` and is killed behind `last` - 1:
    log.jsonl as `StageLog` has it."""
    stage = folder / "1-sft-all"
    stage.mkdir(exist_ok=True)
    trackers = Trackers(list(names), folder)
    trackers.begin("sft-all")
    (stage / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines(1, first)))
    for entry in lines(first, last):
        with (stage / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        trackers.log_line(entry)
    with (stage / "log.jsonl").open("a") as stream:
        stream.write(torn)
    return trackers


def steps(told):
    return [entry[0] for entry in told if entry != "finished"]


def test_a_run_killed_repeatedly_logs_every_step_once(tmp_path, heard):
    train(tmp_path, 1, 9)  # its checkpoint is behind step 4
    train(tmp_path, 5, 7)  # killed before it is where the first one was
    train(tmp_path, 5, 11, torn='{"step": 1')
    train(tmp_path, 9, 13).close()
    (told,) = heard.values()
    assert steps(told) == list(range(1, 13))
    assert told[0] == (1, {"train/loss": 1.0}) and told[-1] == "finished"


def test_a_tracker_that_is_added_later_receives_the_earlier_lines(tmp_path, heard):
    train(tmp_path, 1, 6)
    train(tmp_path, 4, 9, names=("tensorboard", "trackio"))
    assert [steps(told) for told in heard.values()] == [list(range(1, 9))] * 2


def test_lines_and_measures_of_a_finished_stage_are_logged_once(tmp_path, heard):
    train(tmp_path, 1, 4, names=())
    for _ in range(3):
        trackers = Trackers(["tensorboard"], tmp_path)
        trackers.log_values("sft-all", {"eval/sums": 0.5}, step=3)
        trackers.close()
    (told,) = heard.values()
    assert told == [
        *((e["step"], {"train/loss": e["loss"]}) for e in lines(1, 4)),
        (3, {"eval/sums": 0.5}),
        "finished",  # once: later starts had nothing to say
    ]


def test_a_stage_begun_anew_is_another_run(tmp_path, heard):
    train(tmp_path, 1, 4, names=["trackio"])
    (tmp_path / "1-sft-all" / "tracker.json").unlink()
    (tmp_path / "1-sft-all" / "log.jsonl").unlink()
    train(tmp_path, 1, 3, names=["trackio"])
    assert [steps(told) for told in heard.values()] == [[1, 2, 3], [1, 2]]
    assert all(name.startswith("sft-all-") for name in heard)


def test_a_tracker_that_fails_is_disabled_and_the_others_continue(
    tmp_path, heard, monkeypatch, caplog
):
    monkeypatch.setattr(Noted, "fails_at", 3)
    with caplog.at_level(logging.WARNING):
        trackers = train(tmp_path, 1, 6, names=("tensorboard", "trackio"))
        trackers.log_values("sft-all", {"eval/sums": 0.5}, step=5)
        trackers.close()
    assert [steps(told) for told in heard.values()] == [[1, 2], [1, 2, 3, 4, 5, 5]]
    (said,) = caplog.messages
    assert said.startswith("tensorboard failed") and "the tracker's own trouble" in said
    monkeypatch.setattr(Noted, "start", lambda self: self.nothing)  # nor one that cannot begin
    train(tmp_path, 6, 8, names=["tensorboard"]).close()
    assert caplog.messages[-1].startswith("tensorboard failed")


def test_without_trackers_nothing_is_written(tmp_path, heard):
    train(tmp_path, 1, 3, names=()).log_values("sft-all", {"eval/sums": 0.5}, step=2)
    assert [path.name for path in (tmp_path / "1-sft-all").iterdir()] == ["log.jsonl"]
    assert not heard


def test_only_the_main_process_logs_to_trackers(tmp_path, monkeypatch):
    preset = Preset(run=RunSection(report_to=["tensorboard", "none"]))
    with open_trackers(preset, tmp_path) as trackers:
        assert trackers.names == ["tensorboard"]
    monkeypatch.setattr("sft.run.trackers.PartialState.is_main_process", False)
    with open_trackers(preset, tmp_path) as trackers:
        assert trackers.names == []


@pytest.mark.parametrize(("asked", "mode"), [(None, "offline"), ("online", "online")])
def test_wandb_sends_nothing_unless_the_environment_asks_for_it(
    tmp_path, heard, monkeypatch, asked, mode
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if asked:
        monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.setattr(module, "WandBTracker", Noted)
    trackers = train(tmp_path, 1, 2, names=["wandb"])
    options = trackers.opened["wandb"].options
    assert options["mode"] == mode and options["group"] == tmp_path.name
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"  # usage, sent from its offline mode too


def test_one_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    def missing(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    with pytest.raises(UserError, match=r"names trackio, which .* pip install trackio, or take it"):
        check_trackers(RunSection(report_to=["trackio"]))
    check_trackers(RunSection(report_to=["none"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "run.report_to=mlflow",
            "run.report_to[0]='mlflow' is not one of tensorboard, trackio, wandb",
        ),
        ("run.report_to=[tensorbord]", "run.report_to[0]='tensorbord' is not one of tensorboard"),
        ("sft_all.report_to=tensorboard", "sft_all.report_to is decided by run.report_to"),
        ("dpo.run_name=mine", "dpo.run_name is decided by run.dir"),
    ],
)
def test_other_names_and_places_are_refused_with_the_preset(override, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        load_preset("recipes/presets/quickstart.yaml", overrides=[override])
    assert load_preset("recipes/presets/quickstart.yaml").run.report_to == []
