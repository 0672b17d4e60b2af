"""The report of a made-up run: its numbers, its safety, its parts that may be missing."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_run import MODELS, RATES, SCORES, delta_row, make_results, make_run, write_rows
from rich.console import Console

from eval.report import examples
from eval.report.plots import write_picture
from eval.report.report import csp_hash, read_curves, write_report
from eval.report.tables import console_table, measures, still_needed
from eval.results.results import write_results
from sft.errors import UserError

VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """The page as an element tree; fails where tags do not balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.builder, self.open = ElementTree.TreeBuilder(), []
        self.feed(text)
        self.close()
        assert self.open == []
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.builder.data(data)


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def report_page(run_dir: Path) -> ElementTree.Element:
    write_report(run_dir)
    return Page((run_dir / "report.html").read_text("utf-8")).root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "mine")
    write_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def page(finished: Path) -> ElementTree.Element:
    return Page((finished / "report.html").read_text("utf-8")).root


def table_cells(root: ElementTree.Element) -> dict[str, list[str]]:
    """The main table: name of the measure -> texts of its cells."""
    rows = root.findall(".//section[@id='table']//tbody/tr")
    return {row.find("th").text: [text_of(cell) for cell in row.findall("td")] for row in rows}


def test_table_shows_the_numbers_of_results_json(page: ElementTree.Element) -> None:
    results, table = make_results(), table_cells(page)
    for column, model in enumerate(MODELS):
        rate = results["repetition"][model]
        low, high = (f"{100 * end:.1f}" for end in rate["ci"])
        assert table["repetition"][column] == f"{100 * rate['rate']:.1f}%{low}–{high}%n = 400"
        assert table["cut at the cap"][column] == f"{100 * rate['truncated']:.1f}%"
        assert table["seq-rep-4"][column] == f"{100 * rate['seq_rep_4']:.1f}%"
        for task in SCORES:
            score = results["benchmarks"][task][model]
            low, high = (f"{100 * end:.1f}" for end in score["ci"])
            note = "5-shot" if model == "base" else "0-shot, chat"
            assert table[task][column] == f"{100 * score['score']:.1f}%{low}–{high}%{note}"


def test_changes_show_the_numbers_of_results_json(page: ElementTree.Element) -> None:
    deltas = make_results()["deltas"]
    rows = page.findall(".//section[@id='changes']//div[@data-words]")
    assert len(rows) == len(deltas)
    for row, delta in zip(rows, deltas, strict=True):
        label, chart, number, p = row.findall("div")
        assert text_of(label).startswith(f"{delta['from']} → {delta['to']}")
        value = f"{100 * delta['delta']:+.1f}".replace("-", "\u2212")
        assert text_of(number).startswith(value)
        assert row.get("data-words") == delta["task"]
        clear = delta["p_holm"] < 0.05
        assert (chart.find(".//circle").get("class") == "dot clear") == clear
        assert text_of(p).startswith("p < 0.001" if clear else "p = 1.00")


def test_bars_are_in_the_proportion_of_the_rates(page: ElementTree.Element) -> None:
    bars = page.findall(".//section[@id='repetition']//rect")
    lengths = [float(bar.get("width").rstrip("%")) for bar in bars]
    expected = [rate / RATES["base"] for rate in RATES.values()]
    assert [length / lengths[0] for length in lengths] == pytest.approx(expected, rel=1e-3)


def test_every_link_is_a_file_of_the_run_or_a_part_of_the_page(
    finished: Path, page: ElementTree.Element
) -> None:
    anchors = {element.get("id") for element in page.iter() if element.get("id")}
    hrefs = [element.get("href") for element in page.iter("a")]
    assert len(hrefs) > 40
    for href in hrefs:
        assert href[1:] in anchors if href.startswith("#") else (finished / href).is_file(), href


def is_number(text: str) -> bool:
    return re.match(r"[+\u2212-]?\d", text) is not None


def test_every_number_of_a_table_links_to_the_answers_of_its_own_model_and_task(
    finished: Path, page: ElementTree.Element
) -> None:
    for row in page.findall(".//section[@id='table']//tbody/tr"):
        task = row.find("th").text
        for model, cell in zip(MODELS, row.findall("td"), strict=True):
            name = f"samples/{task}.jsonl" if task in SCORES else "generations.jsonl"
            assert cell.find("b/a").get("href") == f"eval/{model}/{name}"
    for row in page.findall(".//section[@id='changes']//div[@data-words]"):
        label, _, number, _ = row.findall("div")
        task = row.get("data-words")
        name = f"samples/{task}.jsonl" if task in SCORES else "generations.jsonl"
        for link in label.findall("a"):
            assert link.get("href") == f"eval/{link.text}/{name}"
        assert number.find("a").get("href") == label.findall("a")[1].get("href")
    for cell in page.findall(".//section[@id='training']//td"):
        if is_number(text_of(cell)):
            stage = cell.find("a").get("href")
            assert stage.endswith("/log.jsonl") and (finished / stage).is_file()


def test_without_its_script_the_page_hides_its_controls_and_nothing_else(
    page: ElementTree.Element,
) -> None:
    hidden = [element for element in page.iter() if "hidden" in element.attrib]
    assert hidden and all(element.get("class") == "controls" for element in hidden)
    assert not [head for head in page.iter("th") if head.find("button") is not None]


def test_filters_name_what_the_cards_hold(page: ElementTree.Element) -> None:
    for name, heads in (("answers", ["language", "kind"]), ("questions", ["task"])):
        box = page.find(f".//div[@data-controls='{name}-cards']")
        offered = {
            o.get("value") for s in box.findall(".//select[@data-tag]") for o in s.iter("option")
        }
        cards = page.findall(f".//div[@id='{name}-cards']/details")
        held = {tag for card in cards for tag in card.get("data-tags").split()}
        assert offered - {""} == held
        labels = [label.text.strip() for label in box.findall("label")]
        assert labels == ["find", *heads, "outcome", "answers of", "order"]


def test_a_heavy_run_makes_no_heavy_page(tmp_path: Path) -> None:
    """Ten times the tasks and answers of 100,000 characters: the page links what it leaves out."""
    run_dir = make_run(tmp_path / "run")
    results = make_results()
    for model in MODELS:
        path = run_dir / "eval" / model / "generations.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        write_rows(path, [row | {"text": row["text"] + "and on " * 15_000} for row in rows])
        source = run_dir / "eval" / model / "samples" / "world_math.jsonl"
        rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
        rows = [
            row | {"prompt": "shot " * 20_000 + row["prompt"], "answer": "x " * 50_000}
            for row in rows
        ]
        for number in range(40):
            write_rows(source.with_name(f"more_{number}.jsonl"), rows[:6])
    for number in range(40):
        results["benchmarks"][f"more_{number}"] = results["benchmarks"]["world_math"]
    write_rows(run_dir / "results.json", [results])
    root = report_page(run_dir)
    assert (run_dir / "report.html").stat().st_size < 5_000_000
    section = text_of(root.find(".//section[@id='questions']"))
    assert f"The first {examples.TASKS} of 44 benchmarks" in section
    link = root.find(".//section[@id='questions']//details[@class='fold']/a")
    assert link is not None and "more in the file" in link.text
    assert (run_dir / link.get("href")).is_file() or link.get("href") == "#record"


def test_page_needs_nothing_from_outside(finished: Path, page: ElementTree.Element) -> None:
    outward = {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert not outward & {element.tag for element in page.iter()}
    assert not any(element.get("src") for element in page.iter())
    style = text_of(page.find(".//style"))
    assert "url(" not in style and "@import" not in style
    assert "://" not in (finished / "report.html").read_text("utf-8")
    scripts = list(page.iter("script"))
    policy = page.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert len(scripts) == 1
    assert f"script-src '{csp_hash(scripts[0].text)}'" in policy
    assert "default-src 'none'" in policy


def test_same_run_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    again = make_run(tmp_path / "mine")
    write_report(again)
    for name in ("report.html", "report.md"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()


HOSTILE = [
    "<script>alert(1)</script>",
    "</details></div></main><h1>owned</h1>",
    "<img src=x onerror=alert(1)> <a href='javascript:alert(1)'>x</a>",
    '" onmouseover="alert(1)" \'><svg/onload=alert(1)>',
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; <!-- -->",
    "abc\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "bell\x07 escape\x1b[31m null\x00 del\x7f c1\x9b lone\ud800 end",
    "</script ><script>document.title='owned'</script> `${alert(1)}` \u2028\u2029",
    "``` \n# title\n| a | b |\n[x](javascript:alert(1)) ~~~",
]


def test_everything_that_a_model_or_a_row_holds_is_only_text(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    calm = report_page(run_dir)
    for path in sorted((run_dir / "eval").rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for number, row in enumerate(rows):
            hostile = HOSTILE[number % len(HOSTILE)]
            if "text" in row:
                row["text"] = hostile + row["text"]
                row["messages"][0]["content"] = hostile
                row["category"] = row["language"] = hostile
            else:
                row |= {"prompt": hostile, "answer": hostile, "target": hostile}
                row["outcome"] = hostile
        write_rows(path, rows)
    write_rows(run_dir / "data" / "data.json", [{word: {word: word} for word in HOSTILE}])
    write_rows(run_dir / "run.json", [{"versions": HOSTILE}])
    preset = f"run: {{}}\n# {HOSTILE[0]}\nmodel:\n  name_or_path: '{HOSTILE[1]}'\n"
    (run_dir / "preset.yaml").write_text(preset, encoding="utf-8")
    root = report_page(run_dir)

    def kinds(root: ElementTree.Element) -> set[tuple[str, ...]]:
        return {(element.tag, *sorted(element.keys())) for element in root.iter()}

    # No kind of element that the page of a calm run does not have, and every word still there.
    assert kinds(root) <= kinds(calm)
    assert len(list(root.iter("script"))) == len(list(root.iter("h1"))) == 1
    everything = text_of(root)
    for word in HOSTILE[:5]:
        assert " ".join(word.split()) in everything
    assert "‹U+202E›gnp.exe" in everything and "escape␛[31m" in everything
    raw = (run_dir / "report.html").read_text("utf-8") + (run_dir / "report.md").read_text("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", raw)


def test_hostile_names_stay_text_and_lead_nowhere(tmp_path: Path) -> None:
    names, task = ["../../secret", "<b>m</b>|[red]*x*"], "../<script>"
    score = {"score": 0.5, "ci": [0.4, 0.6], "n": 10, "metric": "<i>", "shots": 0}
    results = {
        "models": names,
        "repetition": {n: {"rate": 0.5, "ci": [0.1, 0.9], "n": 4, "cap": 8} for n in names},
        "benchmarks": {task: {n: score | {"chat_template": True} for n in names}},
        "deltas": [delta_row(task, 0.1, from_=names[0], to=names[1])],
    }
    run_dir = tmp_path / "runs" / "run"
    write_rows(run_dir / "results.json", [results])
    write_rows(tmp_path / "secret" / "generations.jsonl", [{"id": "x"}])
    (run_dir / "eval").mkdir()
    root = report_page(run_dir)
    assert not [a.get("href") for a in root.iter("a") if ".." in a.get("href")]
    assert len(list(root.iter("script"))) == 1
    assert task in text_of(root) and names[1] in text_of(root)
    assert not re.search(r"(?<!\\)[<\[]", (run_dir / "report.md").read_text("utf-8")[:-80])
    assert "<b>m</b>|[red]*x*" in print_table(results, width=160)


def test_base_and_chat_alone_make_a_report(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    for path in [run_dir / "run.json", run_dir / "preset.yaml", *run_dir.glob("*/log.jsonl")]:
        path.unlink()
    results, pair = make_results(), ["base", "dpo"]
    del results["stages"]
    results["models"] = pair
    results["deltas"] = [d for d in results["deltas"] if [d["from"], d["to"]] == pair]
    for scores in (results["repetition"], *results["benchmarks"].values()):
        del scores["sft-all"], scores["sft-dialogue"]
    write_rows(run_dir / "results.json", [results])
    root = report_page(run_dir)
    ids = {element.get("id") for element in root.iter("section")}
    assert ids == {"table", "changes", "repetition", "answers", "questions", "method", "record"}
    assert "Comparison of base, dpo" in text_of(root.find(".//header"))
    assert {text_of(b) for b in root.findall(".//article/header/b")} == set(pair)


@pytest.mark.parametrize(
    "missing", ["repetition", "benchmarks", "deltas", "stages", "eval", "everything"]
)
def test_each_part_may_be_missing(tmp_path: Path, missing: str) -> None:
    run_dir = make_run(tmp_path / "run")
    results = make_results()
    if missing == "eval":
        for path in (run_dir / "eval").rglob("*.jsonl"):
            path.unlink()
    elif missing == "everything":
        results = {"models": ["base"]}
    else:
        del results[missing]
    write_rows(run_dir / "results.json", [results])
    assert text_of(report_page(run_dir).find(".//h1"))
    assert "base" in print_table(results, width=80)


def test_a_measure_that_one_model_lacks_leaves_a_dash(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    results = make_results()
    del results["benchmarks"]["world_zh"]["dpo"], results["repetition"]["dpo"]
    (run_dir / "eval" / "dpo" / "samples" / "world_zh.jsonl").unlink()
    write_rows(run_dir / "results.json", [results])
    table = table_cells(report_page(run_dir))
    assert (table["repetition"][3], table["world_zh"][3]) == ("–", "–")
    write_picture(results, logs=[], path=tmp_path / "picture.png")


def test_losses_of_a_few_steps_are_not_shown_as_a_change(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    results = make_results()
    results["stages"]["dpo"]["steps"] = 7
    results["stages"]["sft-dialogue"]["steps"] = 8
    write_rows(run_dir / "results.json", [results])
    table = report_page(run_dir).find(".//div[@aria-label='Stages']/table")
    assert table is not None
    rows = [[text_of(cell) for cell in row] for row in table.iter("tr")]
    losses = [row[1:3] for row in rows[1:]]
    assert losses == [["2.871", "0.412"], ["0.934", "0.688"], ["–", "–"]]


def print_table(results: dict[str, Any], *, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(results))
    return console.export_text()


def test_console_table_fits_80_columns_and_holds_every_number() -> None:
    results = make_results()
    lines = print_table(results, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    for measure in measures(results):
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(measure.name))
        assert re.findall(r"(?<!\S)[\d.]+%", lines[at]) == [c.value for c in measure.cells if c]
        assert all(cell.ci in lines[at + 1] for cell in measure.cells if cell)
    assert any("\u221287.2*" in line for line in lines) and any("+7.1*" in line for line in lines)


def test_the_isolation_of_programs_is_named(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    assert "confined by" not in text_of(report_page(run_dir))
    results = make_results()
    for score in results["benchmarks"]["world_code"].values():
        score["isolation"] = "no namespaces (macOS has none)"
    (run_dir / "results.json").write_text(json.dumps(results))
    method = text_of(report_page(run_dir).find(".//section[@id='method']"))
    assert "world_code were confined by" in method
    assert "confined by no namespaces (macOS has none)." in method
    assert "no namespaces (macOS has none)" in (run_dir / "report.md").read_text("utf-8")


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: there are no results yet"):
        write_report(tmp_path)
    run_dir = make_run(tmp_path / "run")
    with (run_dir / "eval" / "base" / "generations.jsonl").open("a") as rows:
        rows.write('{"id": "p0')
    with pytest.raises(UserError, match=r"generations\.jsonl:41: not JSON"):
        write_report(run_dir)
    (run_dir / "results.json").write_text("{}")
    with pytest.raises(UserError, match="must hold the list `models`"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


def test_curves_are_the_logs_in_the_order_of_the_stages(finished: Path) -> None:
    curves = read_curves(finished)
    assert [curve.stage for curve in curves] == ["1-sft-all", "2-sft-dialogue", "3-dpo"]
    lines = (finished / "3-dpo" / "log.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert curves[2].loss == tuple((row["step"], row["loss"]) for row in rows)
    assert curves[2].learning_rate == tuple((row["step"], row["learning_rate"]) for row in rows)


def test_the_questions_still_needed_are_never_fewer_than_those_measured() -> None:
    row = delta_row("maths", 0.06, p=0.2) | {"visible": 0.05, "needed": 400}
    words = "n detects changes of at least 5.0 points; this change "
    assert still_needed(row) == words + "needs 400 questions"
    # Enough for one comparison, and yet Holm took it off.
    assert still_needed(row | {"needed": 250}) == words + "is detectable as the only comparison"
    assert still_needed(row | {"needed": None}) == "n detects changes of at least 5.0 points"
    assert still_needed(row | {"p_holm": 0.01}) == ""


def test_a_change_in_bits_per_byte_is_shown_and_is_one_of_the_comparisons(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "texts"
    for model, shift in (("a", 0.0), ("b", 1.0)):
        rows = [
            {
                **{"doc_id": str(i), "doc_hash": f"h{i}", "prompt": "text", "cluster": None},
                **{"metric": "bits_per_byte", "score": 2.0},
                **{"log_prob": -50.0 - i - shift - 0.1 * (i % 3), "bytes": 40},
            }
            for i in range(12)
        ]
        write_rows(run_dir / "eval" / model / "samples" / "wiki.jsonl", rows)
        entry = {"bits_per_byte": 2.0, "ci": [1.9, 2.1], "n": 12, "shots": 0}
        scores = {"benchmarks": {}, "language": {"wiki": entry | {"metric": "bits_per_byte"}}}
        (run_dir / "eval" / model / "scores.json").write_text(json.dumps(scores), "utf-8")
    results = write_results(run_dir, ["a", "b"])
    (row,) = results["language"]["deltas"]
    root = Page((run_dir / "report.html").read_text("utf-8")).root
    sentence = f"Bits per byte, lower is better: wiki {row['delta']:+.4f} (p < 0.001)."
    assert sentence in text_of(root)
    section = root.find(".//section[@id='bits']")
    assert section is not None and f"{row['delta']:+.4f}*" in text_of(section)
    hrefs = [a.get("href") for a in section.iter("a")]
    assert hrefs == ["eval/a/samples/wiki.jsonl", "eval/b/samples/wiki.jsonl"]
    assert "Holm's method over all 1 comparisons" in text_of(root)
    record = root.find(".//ul[@class='links']")
    assert record is not None and "b: wiki" in text_of(record)
    assert f"{row['delta']:+.4f} bits per byte \\*" in (run_dir / "report.md").read_text("utf-8")


def test_holm_runs_over_benchmarks_and_texts_together(tmp_path: Path) -> None:
    for model, right in (("a", 0), ("b", 1)):
        common = [{"doc_id": str(i), "doc_hash": f"h{i}", "prompt": "t"} for i in range(8)]
        scored = {"metric": "acc", "score": right, "answer": "x", "target": "y"}
        read = {"metric": "bits_per_byte", "score": 2.0, "bytes": 9}
        folder = tmp_path / "eval" / model
        write_rows(folder / "samples" / "quiz.jsonl", [row | scored for row in common])
        texts = [row | read | {"log_prob": -9.0 - (i + right) % 3} for i, row in enumerate(common)]
        write_rows(folder / "samples" / "wiki.jsonl", texts)
        entry = {"ci": [0.0, 1.0], "n": 8, "shots": 0, "chat_template": False}
        scores = {
            "benchmarks": {"quiz": entry | {"metric": "acc", "score": right}},
            "language": {"wiki": entry | {"metric": "bits_per_byte", "bits_per_byte": 2.0}},
        }
        (folder / "scores.json").write_text(json.dumps(scores), "utf-8")
    results = write_results(tmp_path, ["a", "b"])
    (row,) = results["deltas"]
    assert row["p_holm"] == pytest.approx(2 * row["p"])


def test_questions_with_fewer_examples_are_counted_next_to_the_shots() -> None:
    results = make_results()
    entry = results["benchmarks"]["world_math"][MODELS[0]]
    entry |= {"shots": 5, "fewer_shots": 1200, "chat_template": False}
    cell = next(m for m in measures(results) if m.name == "world_math").cells[0]
    assert cell is not None and cell.note == "5-shot (fewer for 1,200)"
