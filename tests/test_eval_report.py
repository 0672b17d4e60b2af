"""The report of a run directory made up here: four models, four tasks, English and Chinese."""

import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from eval import showcase, wording
from eval.plots import CURVE_POINTS, Curve, scale, thinned, write_picture
from eval.report import console_table, csp_hash, read_curves, write_report
from eval.tables import measures
from sft.config import UserError

MODELS = ["base", "sft-all", "sft-dialogue", "dpo"]
RATES = {"base": 0.8825, "sft-all": 0.2150, "sft-dialogue": 0.0275, "dpo": 0.0100}
SCORES = {
    "world_facts": (0.412, 0.584, 0.571, 0.576),
    "world_math": (0.143, 0.627, 0.634, 0.619),
    "world_code": (0.188, 0.846, 0.852, 0.858),
    "world_zh": (0.360, 0.442, 0.428, 0.431),
}
STEPS = [("base", "sft-all"), ("sft-all", "sft-dialogue"), ("sft-dialogue", "dpo"), ("base", "dpo")]
ANSWERS = {
    "en": (
        "Mira left the harbour of Tolven before sunrise, with a lamp and half a loaf of bread. "
        "\u201cYou will be late,\u201d said her brother, who was mending a net by the door. "
        "The road to Karsh climbs for two hours, and then there is the bridge. "
    ),
    "zh": (
        "清晨，米拉提着一盏灯离开了托尔文的港口。哥哥正在门口补网，对她说：“你要迟到了。”"
        "去卡什的路要走两个小时，然后有一座桥。"
    ),
}
LOOPS = {
    "en": "She walked to the bridge and she looked at the water. ",
    "zh": "她走到桥边，看着河水。",
}
PROMPTS = {
    "en": [
        ("story", "Write a long story about Mira and the bridge of Karsh."),
        ("explain", "Explain step by step how the ferry at Tolven works."),
        ("list", "List everything that a traveller to Karsh should carry, with reasons."),
        ("chat", "I had a bad day. Can you cheer me up a little?"),
    ],
    "zh": [
        ("story", "写一个关于米拉和卡什桥的长故事。"),
        ("explain", "请一步一步解释托尔文的渡船是怎么工作的。"),
        ("chat", "今天心情不好，能安慰我一下吗？"),
    ],
}


def make_results() -> dict[str, Any]:
    """results.json with plausible numbers; its intervals and p-values are invented too."""
    results: dict[str, Any] = {"models": MODELS, "repetition": {}, "benchmarks": {}, "deltas": []}
    for model, rate in RATES.items():
        half = 0.5 * rate * (1 - rate) + 0.008
        results["repetition"][model] = {
            "rate": rate,
            "ci": [max(rate - half, 0.001), rate + half],
            "n": 400,
            "truncated": min(rate + 0.015, 1.0),
            "cap": 400,
            "seq_rep_4": 0.06 + 0.7 * rate,
        }
    for task, scores in SCORES.items():
        results["benchmarks"][task] = {
            model: {
                "score": score,
                "ci": [score - 0.037, score + 0.036],
                "n": 500,
                "metric": "acc" if task in ("world_facts", "world_zh") else "exact_match",
                "shots": 5 if model == "base" else 0,
                "chat_template": model != "base",
            }
            for model, score in zip(MODELS, scores, strict=True)
        }
    columns = {"repetition": tuple(RATES.values())} | SCORES
    for task, values in columns.items():
        for first, second in STEPS:
            delta = values[MODELS.index(second)] - values[MODELS.index(first)]
            clear = abs(delta) > 0.025
            half = 0.022 if task == "repetition" else 0.031
            results["deltas"].append(
                {
                    "task": task,
                    "from": first,
                    "to": second,
                    "delta": delta,
                    "ci": [delta - half, delta + half],
                    "p": 1e-9 if clear else 0.34,
                    "p_holm": 2e-8 if clear else 1.0,
                    "n": 400 if task == "repetition" else 500,
                    "test": "exact McNemar",
                }
            )
    results["stages"] = {
        name: {"tokens": tokens, "steps": steps, "seconds": s, "loss_first": a, "loss_last": b}
        for name, tokens, steps, s, a, b in (
            ("sft-all", 1_284_113, 376, 96.4, 2.871, 0.412),
            ("sft-dialogue", 391_020, 118, 31.7, 0.934, 0.688),
            ("dpo", 207_331, 60, 41.2, 0.6931, 0.402),
        )
    }
    return results


def generation(model: str, number: int, rng: random.Random) -> dict[str, Any]:
    """A row of generations.jsonl; tokens are four characters (English) or two (Chinese)."""
    language = "en" if number % 5 < 3 else "zh"
    category, prompt = PROMPTS[language][number % len(PROMPTS[language])]
    # One prompt still loops with the last model, and loops in none of them are the rule.
    rate = RATES[model] if number != 7 else 1.0
    repeats = rng.random() < rate
    size = 4 if language == "en" else 2
    lead = ANSWERS[language] * (1 if number % 3 else 5)
    loop = LOOPS[language]
    text = (lead + loop * (1600 // len(loop)))[:1600] if repeats else lead.strip()
    start = len(lead) // size
    num_tokens = len(text) // size
    period = len(loop) // size
    return {
        "id": f"p{number:03d}",
        "messages": [{"role": "user", "content": prompt}],
        "category": category,
        "language": language,
        "prompt_ids": [1, 2, 3],
        "token_ids": list(range(num_tokens)),
        "text": text,
        "finish_reason": "loop" if repeats else "stop_id",
        "loop": {"period": period, "copies": (num_tokens - start) // period, "start": start}
        if repeats
        else None,
        "cap": 400,
        "repeats": repeats,
    }


def make_run(run_dir: Path) -> Path:
    """A finished run directory as the main job leaves it, without weights."""
    rng = random.Random(0)
    write_rows(run_dir / "results.json", [make_results()])
    for model in MODELS:
        rows = [generation(model, number, rng) for number in range(40)]
        write_rows(run_dir / "eval" / model / "generations.jsonl", rows)
        for task in SCORES:
            score = SCORES[task][MODELS.index(model)]
            # The base alone knows question 0, whatever the scores: a verdict that is lost.
            rights = [model == "base"] + [rng.random() < score for _ in range(29)]
            samples = [benchmark_row(task, model, i, right) for i, right in enumerate(rights)]
            write_rows(run_dir / "eval" / model / "samples" / f"{task}.jsonl", samples)
    for stage, first, last, steps, peak in (
        ("1-sft-all", 2.87, 0.41, 376, 1e-3),
        ("2-sft-dialogue", 0.93, 0.69, 118, 5e-4),
        ("3-dpo", 0.693, 0.40, 60, 2e-5),
    ):
        rows = []
        for step in range(1, steps + 1):
            level = last + (first - last) * 0.985 ** (step * 376 / steps)
            rate = peak * min(1, step / 20) * (1 if step < 0.8 * steps else 0.316)
            loss = level * rng.gauss(1, 0.05)
            rows.append({"step": step, "epoch": step / 94, "loss": loss, "learning_rate": rate})
        write_rows(run_dir / stage / "log.jsonl", rows)
    counts = {"in": 3012, "kept": 3000, "dropped": {"empty answer": 7, "no assistant turn": 5}}
    write_rows(run_dir / "data" / "data.json", [{"sft": {"world.jsonl": counts}, "pairs": 640}])
    run = {"python": "3.11.7", "versions": {"torch": "2.13.0", "trl": "1.16.0"}, "seed": 0}
    write_rows(run_dir / "run.json", [run | {"device": "cpu", "cpu_threads": 2, "git": "f1ffa25"}])
    preset = "run:\n  seed: 0\nmodel:\n  name_or_path: quickstart/base\nlora:\n  r: 0\n"
    (run_dir / "preset.yaml").write_text(preset, encoding="utf-8")
    return run_dir


def benchmark_row(task: str, model: str, number: int, right: bool) -> dict[str, Any]:
    question = f"Question: A crate holds {number + 3} lamps. How many lamps are in {number} crates?"
    shots = "Question: What is 2 + 2?\nAnswer: 4\n\n" * 5 if model == "base" else ""
    target = str((number + 3) * number)
    return {
        "doc_id": str(number),
        "doc_hash": f"{task}-{number}",
        "score": float(right),
        "metric": "exact_match",
        "prompt": f"{shots}{question}\nAnswer:",
        "answer": f"Each crate holds {number + 3}. The answer is {target if right else number}.",
        "target": target,
        "cluster": None,
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


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
    rows = page.findall(".//section[@id='changes']//div[@data-step]")
    assert len(rows) == len(deltas)
    for row, delta in zip(rows, deltas, strict=True):
        label, chart, number, p = row.findall("div")
        assert text_of(label).startswith(f"{delta['from']} → {delta['to']}")
        value = f"{100 * delta['delta']:+.1f}".replace("-", "\u2212")
        assert text_of(number).startswith(value)
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
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in pictures:
        write_picture(make_results(), logs=read_curves(finished), path=path)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


HOSTILE = [
    "<script>alert(1)</script>",
    "</details></div></main><h1>owned</h1>",
    "<img src=x onerror=alert(1)> <a href='javascript:alert(1)'>x</a>",
    '" onmouseover="alert(1)" \'><svg/onload=alert(1)>',
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; <!-- -->",
    "abc\u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "bell\x07 escape\x1b[31m null\x00 del\x7f c1\x9b lone\ud800 end",
    "``` \n# title\n| a | b |\n[x](javascript:alert(1)) ~~~",
]


def test_whatever_a_model_or_a_row_says_is_only_text(tmp_path: Path) -> None:
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
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", raw)


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


def delta_row(
    task: str, delta: float, *, p: float = 0.001, from_: str = "a", to: str = "b"
) -> dict[str, Any]:
    ci = [delta - 0.03, delta + 0.03]
    row = {"task": task, "from": from_, "to": to, "delta": delta, "ci": ci, "n": 300}
    return row | {"p": p / 2, "p_holm": p, "test": "exact McNemar"}


def two_models(*rows: dict[str, Any], rates: tuple[float, float] = (0.2, 0.1)) -> dict[str, Any]:
    repetition = {
        model: {"rate": rate, "ci": [max(rate - 0.03, 0), rate + 0.03], "n": 300, "cap": 400}
        for model, rate in zip("ab", rates, strict=True)
    }
    return {"models": ["a", "b"], "repetition": repetition, "deltas": list(rows)}


HEADLINES = {
    "improved": (
        two_models(delta_row("repetition", -0.1), delta_row("math", 0.05)),
        "Repetition fell; the one benchmark rose.",
        "From a to b, repetition fell from 20.0% to 10.0% (-10.0 points, -13.0 to -7.0, "
        "p = 0.001). The one benchmark rose: math +5.0 (+2.0 to +8.0), p = 0.001.",
    ),
    "worse": (
        two_models(
            delta_row("repetition", 0.1),
            delta_row("math", -0.05, p=0.01),
            delta_row("code", -0.08, p=0.02),
            delta_row("zh", 0.01, p=0.8),
            rates=(0.1, 0.2),
        ),
        "Repetition rose; 2 of 3 benchmarks fell.",
        "From a to b, repetition rose from 10.0% to 20.0% (+10.0 points, +7.0 to +13.0, "
        "p = 0.001). 2 of 3 benchmarks fell: code -8.0 (-11.0 to -5.0), math -5.0 (-8.0 to -2.0), "
        "each p at most 0.020; 1 did not change significantly (its interval still allows a loss "
        "of up to 2.0 points).",
    ),
    "nothing significant": (
        two_models(
            delta_row("repetition", -0.01, p=0.6),
            delta_row("math", -0.02, p=0.051),
            delta_row("code", 0.0, p=1.0),
            rates=(0.11, 0.10),
        ),
        "Repetition did not change significantly; no benchmark changed significantly.",
        "From a to b, repetition did not change significantly (11.0% to 10.0%: -1.0 points, "
        "-4.0 to +2.0, p = 0.60). No benchmark changed significantly (their intervals still allow "
        "a loss of up to 5.0 points, on math).",
    ),
    "no repetition anywhere": (
        two_models(delta_row("repetition", 0.0, p=1.0), rates=(0.0, 0.0)),
        "No model repeated itself; no benchmark was compared.",
        "From a to b, neither model repeated itself on any of 300 prompts (at most 3.0%). "
        "No benchmark was compared.",
    ),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_headline_says_what_the_numbers_say(case: str) -> None:
    results, title, answer = HEADLINES[case]
    head = wording.headline(results)
    assert (head.title, head.answer.replace("\u2212", "-"), head.steps) == (title, answer, ())


def test_headline_is_about_first_to_last_whatever_the_order_or_the_effect() -> None:
    results = make_results()
    results["deltas"].reverse()
    head = wording.headline(results)
    assert head.answer.startswith("From base to dpo, repetition fell from 88.2% to 1.0%")
    assert {step.label for step in head.steps} == {f"{a} → {b}" for a, b in STEPS[:3]}


def test_an_interval_clear_of_zero_is_not_enough_after_holm() -> None:
    results = two_models(delta_row("repetition", -0.1, p=0.06), delta_row("math", 0.05, p=0.06))
    assert "not change significantly; no benchmark changed" in wording.headline(results).title


def test_prompts_shown_follow_the_rule(finished: Path) -> None:
    files = {model: finished / "eval" / model / "generations.jsonl" for model in MODELS}
    prompts = showcase.choose_prompts(files)
    assert len(prompts) == len({prompt.id for prompt in prompts}) == showcase.PROMPTS
    assert {prompt.language for prompt in prompts} == {"en", "zh"}
    looping = [[m for m in MODELS if prompt.answers[m]["repeats"]] for prompt in prompts]
    cured = [loops for loops in looping if loops and loops[-1] != "dpo"]
    assert len(cured) >= showcase.CURED and any("sft-all" in loops for loops in cured)
    assert any(loops and loops[-1] == "dpo" for loops in looping)


def test_questions_shown_differ_in_verdict_where_any_do(finished: Path) -> None:
    files = {
        task: {m: finished / "eval" / m / "samples" / f"{task}.jsonl" for m in MODELS}
        for task in SCORES
    }
    questions = showcase.choose_questions(files)
    for task in SCORES:
        answers = [question.answers for question in questions if question.task == task]
        scores = [(row["base"]["score"], row["dpo"]["score"]) for row in answers]
        assert (0.0, 1.0) in scores and (1.0, 0.0) in scores and len(scores) == 3
    assert all("What is 2 + 2" not in question.prompt for question in questions)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("lead_copies", [0, 1, 9])
def test_loop_is_shown_twice_and_no_character_is_lost(language: str, lead_copies: int) -> None:
    lead, loop = ANSWERS[language] * lead_copies, LOOPS[language]
    # The answer ends in the middle of a copy and, as byte tokens may, in that of a character.
    text = lead + loop * 40 + loop[:5] + "\ufffd"
    row = {
        "text": text,
        "token_ids": list(range(len(text))),
        "loop": {"period": len(loop), "copies": 40, "start": len(lead)},
    }
    parts = showcase.shown(row)
    assert "".join(part.text for part in parts) == text
    copies = [part.text for part in parts if part.kind == "copy"]
    assert len(copies) == 2 and copies[0] == copies[1]
    assert copies[0] in loop * 3 and len(copies[0]) % len(loop) == 0
    seen = sum(len(part.text) for part in parts if part.kind in ("text", "copy"))
    assert seen <= showcase.FOLD_AT + 2 * showcase.FOLD_TAIL + showcase.FOLD_MIN + 2 * len(loop)


def test_long_answer_folds_and_short_one_does_not() -> None:
    short, long = "word " * 40, "word " * 400
    assert [part.kind for part in showcase.folded(short)] == ["text"]
    parts = showcase.folded(long)
    assert "".join(part.text for part in parts) == long
    assert [part.kind for part in parts if part.text] == ["text", "fold"]


def test_a_log_of_any_length_draws_a_bounded_curve(tmp_path: Path) -> None:
    series = [(float(i), 5.0 + (i % 7)) for i in range(100_000)] + [(1e5, math.nan)]
    points = thinned(series)
    assert 100 < len(points) <= CURVE_POINTS
    assert sum(loss for _, loss in points) / len(points) == pytest.approx(8.0, abs=0.01)
    picture = tmp_path / "long.png"
    write_picture({"models": ["a"]}, logs=[Curve("1-a", tuple(series), ())], path=picture)
    assert picture.stat().st_size > 5_000


def test_axis_holds_its_values_and_ticks() -> None:
    for values in ([0.0], [0.3, 0.31], [-0.9, 0.02], [5e-6, 2e-5], [2.87, 0.41], []):
        axis = scale(values, zero=True)
        assert all(axis.low <= value <= axis.high for value in (*values, 0.0, *axis.ticks))
        assert 0.0 in axis.ticks and 2 <= len(axis.ticks) <= 8
        assert all(0 <= axis.at(value) <= 100 for value in (*values, -9.0, math.inf))


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
