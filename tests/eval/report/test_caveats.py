"""Caveats are shown on the page, in Markdown, on the model card and in the terminal."""

import io
import json
from dataclasses import asdict

import pytest
from made_up_run import make_results
from rich.console import Console

from eval.metrics.stats import compare_paired
from eval.report.caveats import caveats
from eval.report.report import write_report
from eval.report.tables import console_table, results_tables
from eval.results.results import write_results

FORMATS = "base and dpo were prompted in different formats"


@pytest.fixture
def results():
    found = make_results() | {"stages": {}, "same_weights": [["base", "dpo"]]}
    found["benchmarks"]["world_math"]["dpo"]["cut_answers"] = 490
    return found


def test_formats_weights_and_cut_answers_are_said_wherever_the_changes_are(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path)
    console = Console(file=io.StringIO(), width=400)
    console.print(console_table(results))
    card = "\n".join(results_tables(results))
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    for shown in (page, text, card, " ".join(console.file.getvalue().split())):
        assert FORMATS in shown and "base and dpo have the same weights" in shown
        assert "cut at the task's token limit" in shown.replace("&#39;", "'")


def test_nothing_is_said_where_nothing_differs():
    results = make_results()
    for entries in results["benchmarks"].values():
        entries["base"] |= {"shots": 0, "chat_template": True}
    assert caveats(results) == []
    (same,) = caveats(results | {"same_weights": [["base", "dpo"]]})  # asked alike: no difference
    assert "same weights: if their scores differ, the cause is the prompt format" in same
    del results["benchmarks"]["world_math"]["base"]
    results["benchmarks"]["world_code"]["base"]["shots"] = 5
    (sentence,) = caveats(results)
    assert sentence.startswith(FORMATS) and "base \u2192 sft-all" in sentence


def test_the_wide_interval_of_clusters_in_which_nothing_changed_is_explained():
    """Perfectly alike within clusters, 24 such clusters may hide what 24 questions may hide."""
    scores, clusters = [1.0] * 240, [i // 10 for i in range(240)]
    unchanged = compare_paired(scores, scores, clusters=clusters)
    few = compare_paired(scores, [0.0] * 2 + scores[2:], clusters=[i % 24 for i in range(240)])
    (low, high), (few_low, few_high) = unchanged.ci, few.ci
    assert high - low > few_high - few_low
    # A change in one of 24 independent clusters with this probability is missed in 2.5 % of cases.
    assert high >= 1 - 0.025 ** (1 / 24)
    results = make_results() | {"benchmarks": {}}
    row = asdict(unchanged) | {"task": "t", "from": "a", "to": "b"}
    (sentence,) = caveats(results | {"deltas": [row]})
    assert "No answer changed in t (a \u2192 b)." in sentence and "each cluster counts" in sentence
    assert caveats(results | {"deltas": [row | {"test": "exact McNemar"}]}) == []
    assert caveats(results | {"deltas": [row | {"gained": 1}]}) == []


def test_models_of_one_hash_are_named_in_the_results(tmp_path):
    for name, weights in (("base", "w1"), ("chat", "w1"), ("other", "w2")):
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({"benchmarks": {}}))
        (folder / "done.json").write_text(json.dumps({"inputs": {"weights": weights}}))
    assert write_results(tmp_path, ["base", "chat", "other"])["same_weights"] == [["base", "chat"]]
    assert "same_weights" not in write_results(tmp_path, ["base", "other"])
    alone = write_results(tmp_path, ["base"])
    assert alone["models"] == ["base"] and alone["deltas"] == []
