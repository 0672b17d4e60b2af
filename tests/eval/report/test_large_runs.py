"""Runs of any length make a page of bounded size, in memory that does not grow with them."""

import json
import tracemalloc

import pytest
from made_up_run import make_run, write_rows

from eval.report import plots, report
from eval.report.report import read_curves, write_report


def write_log(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        for i in range(lines):
            entry = {"step": i + 1, "loss": 4 - 3 * i / lines, "learning_rate": 1e-5}
            stream.write(json.dumps(entry) + "\n")


def peak(run):
    """Bytes that `run` holds at once, at most."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_log_is_thinned_while_it_is_read(tmp_path):
    held = []
    for lines in (2_000, 40_000):
        write_log(tmp_path / str(lines) / "1-sft-all" / "log.jsonl", lines)
        (curve,) = read_curves(tmp_path / str(lines))
        assert plots.CURVE_POINTS <= len(curve.loss) <= 2 * plots.CURVE_POINTS
        held.append(peak(lambda: read_curves(tmp_path / str(lines))))  # noqa: B023
    assert held[1] < 1.2 * held[0]
    # Means of equal runs: the line is still the line.
    for step, loss in curve.loss:
        assert loss == pytest.approx(4 - 3 * (step - 1) / lines, abs=1e-9)
    steps = [step for step, _ in curve.loss]
    assert steps == sorted(steps) and steps[0] < 50 and steps[-1] > lines - 50


def test_ten_thousand_stages_worth_of_lines_make_a_page_of_the_same_size(tmp_path):
    run_dir = make_run(tmp_path / "run")
    for path in run_dir.glob("*/log.jsonl"):
        write_log(path, 1_000)
    write_report(run_dir)
    usual = (run_dir / "report.html").stat().st_size
    write_log(run_dir / "1-sft-all" / "log.jsonl", 100_000)
    write_report(run_dir)
    assert (run_dir / "report.html").stat().st_size < 1.1 * usual
    for number in range(4, 504):  # folders of stages, too
        write_log(run_dir / f"{number}-x" / "log.jsonl", 2)
    write_report(run_dir)
    page = (run_dir / "report.html").read_text("utf-8")
    assert page.count('<figure class="panel') == report.PANELS
    assert len(page) < 2 * usual


def test_endless_answers_and_conversations_leave_the_page_small(tmp_path):
    run_dir = make_run(tmp_path / "run")
    write_report(run_dir)
    usual = (run_dir / "report.html").stat().st_size
    turns = [{"role": role, "content": f"turn {i}"} for i in range(250) for role in "ab"]
    for path in sorted((run_dir / "eval").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for row in rows:
            key = "text" if "text" in row else "answer"
            row[key] = "begin " + "word " * 200_000 + "end"
            if key == "text":
                row["messages"] = [*turns, {"role": "user", "content": "asked " * 50_000}]
        write_rows(path, rows[:4])
    write_report(run_dir)
    page = (run_dir / "report.html").read_text("utf-8")
    assert len(page) < usual + 100 * 30_000  # answers shown, and what is left of each
    assert "more in the file" in page and "481 messages that are not shown" in page
    assert "begin word" in page
