"""The chain measured after each epoch: the same weights, figures that the stored rows give."""

import re

import pytest
from tiny_models import make_tiny_tokenizer
from tiny_world import build_world, foreign_files

from eval.measures import repetition
from eval.measures.in_training import check_epoch_eval
from eval.tasks import benchmark
from recipes.sft_then_dpo import main
from sft.config.preset import load_preset
from sft.data.prompts import evenly_spaced
from sft.errors import UserError
from sft.run.stage_folders import STAGE_FOLDERS
from sft.system.atomic_files import read_json, read_jsonl
from sft.training.eval_callbacks import read_rows

ON = "eval.each_epoch={enabled: true, prompts: 4, limit: 5}"
LORA = ("lora.r=4", "lora.lora_dropout=0.1", "eval.repetition.cap=64")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two runs of one preset: `plain`, and `measured` by epoch."""
    folder = build_world(
        tmp_path_factory.mktemp("world"), make_tiny_tokenizer(), num_train_epochs=2
    )
    for name, more in (("plain", []), ("measured", [ON])):
        assert run(folder, name, *more) == 0
        assert foreign_files(folder / name) == []
    return folder


def run(world, name, *more):
    return main([str(world / "preset.yaml"), *LORA, f"run.dir={world / name}", *more])


def test_the_chain_ends_with_the_same_weights_and_results(world):
    for place in STAGE_FOLDERS.values():
        name = f"{place}/model/adapter_model.safetensors"
        assert (world / "plain" / name).read_bytes() == (world / "measured" / name).read_bytes()
        inputs = [read_json(world / run / place / "done.json") for run in ("plain", "measured")]
        assert inputs[0]["inputs"] == inputs[1]["inputs"]
    plain, measured = (read_json(world / name / "results.json") for name in ("plain", "measured"))
    assert list(measured.pop("epochs")) == list(STAGE_FOLDERS)
    for results in (plain, measured):
        for facts in results["stages"].values():
            facts.pop("seconds")
    assert plain == measured


def test_every_figure_by_epoch_can_be_computed_again_from_its_files(world):
    found = read_json(world / "measured" / "results.json")["epochs"]
    for stage, rows in found.items():
        folder = world / "measured" / STAGE_FOLDERS[stage]
        assert rows == read_rows(folder / "epochs.jsonl")
        assert [row["epoch"] for row in rows] == [1, 2]
        for row in rows:
            place = folder / "epochs" / f"{row['epoch']:g}"
            answers = read_jsonl(place / "generations.jsonl")
            assert row["repetition"] == repetition.summarize(answers) and len(answers) == 4
            samples = read_jsonl(place / "samples" / "sums.jsonl")
            entry = row["benchmarks"]["sums"]
            assert benchmark.summarize(samples).items() <= entry.items()
            assert (entry["n"], entry["shots"], entry["chat_template"]) == (5, 0, True)


def test_a_stage_s_last_row_is_of_the_model_that_it_publishes(world):
    for stage, place in STAGE_FOLDERS.items():
        last = world / "measured" / place / "epochs" / "2"
        whole = {row["id"]: row for row in read_jsonl(
            world / "measured" / "eval" / stage / "generations.jsonl")}  # fmt: skip
        for row in read_jsonl(last / "generations.jsonl"):
            assert row["token_ids"] == whole[row["id"]]["token_ids"]
        samples = read_jsonl(world / "measured" / "eval" / stage / "samples" / "sums.jsonl")
        for mine, full in zip(read_jsonl(last / "samples" / "sums.jsonl"), samples, strict=False):
            assert mine["doc_id"] == full["doc_id"]
            assert mine["log_probs"] == pytest.approx(full["log_probs"], abs=1e-3)


def test_the_report_draws_a_dot_for_every_row(world):
    page, text = ((world / "measured" / f"report.{k}").read_text("utf-8") for k in ("html", "md"))
    found = read_json(world / "measured" / "results.json")["epochs"]
    for stage, rows in found.items():
        for row in rows:
            rate, score = row["repetition"]["rate"], row["benchmarks"]["sums"]["score"]
            for value in (rate, score):
                words = f"{stage}, epoch {row['epoch']:g}: {100 * value:.1f}%"
                assert f"<title>{words}" in page
            line = next(s for s in text.splitlines() if s.startswith(
                f"| {stage} | {row['epoch']:g} |"))  # fmt: skip
            assert f"{100 * rate:.1f}%" in line and f"{100 * score:.1f}%" in line
    drawn = page.partition('id="epochs"')[2].partition("</section>")[0]
    assert len(re.findall("<circle", drawn)) == 12 and len(re.findall("border", drawn)) == 4
    assert 'id="epochs"' not in (world / "plain" / "report.html").read_text("utf-8")


def test_looks_at_loops_in_training_are_in_the_results_and_the_report(world):
    run = world / "plain"
    page, text = ((run / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    found = read_json(run / "results.json")["loops"]
    assert list(found) == list(STAGE_FOLDERS)
    for stage, rows in found.items():
        assert rows == read_rows(run / STAGE_FOLDERS[stage] / "loops.jsonl")
        assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
        for row in rows:
            answers = run / STAGE_FOLDERS[stage] / "loops" / str(row["step"]) / "generations.jsonl"
            assert row["repetition"] == repetition.summarize(read_jsonl(answers))
            assert f"| {stage} | {row['epoch']:.3g} | {row['step']} |" in text
    drawn = page.partition('id="loops"')[2].partition("</details>")[0]
    assert len(re.findall("<circle", drawn)) == sum(map(len, found.values()))


def test_switched_on_later_finished_stages_stay_as_they_are(world):
    before = {p: p.stat().st_mtime_ns for p in (world / "plain").glob("[123]-*/*")}
    assert run(world, "plain", ON) == 0
    assert {p: p.stat().st_mtime_ns for p in (world / "plain").glob("[123]-*/*")} == before
    assert "epochs" not in read_json(world / "plain" / "results.json")


def test_prompts_are_taken_from_all_parts_of_the_file():
    rows = [{"id": i} for i in range(10)]
    assert [row["id"] for row in evenly_spaced(rows, 4)] == [0, 2, 5, 7]
    assert evenly_spaced(rows, 99) == evenly_spaced(rows, None) == rows


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("eval.each_epoch.tasks=[other]", "eval.each_epoch.tasks lists 'other', which eval.tasks"),
        ("eval.each_epoch.limit=0", "limit=0 at least one document"),
        ("eval.each_epoch={enabled: true, prompts: 0, tasks: []}", "measures nothing"),
        ("eval.each_epoch.prompt=3", "did you mean eval.each_epoch.prompts?"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_preset(world, override, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load_preset(world / "preset.yaml", overrides=[override])


def test_epochs_are_not_measured_under_deepspeed(world, monkeypatch):
    preset = load_preset(world / "preset.yaml", overrides=[ON])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_epoch_eval(preset)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="under DeepSpeed no process holds all weights"):
        check_epoch_eval(preset)
    check_epoch_eval(load_preset(world / "preset.yaml"))
