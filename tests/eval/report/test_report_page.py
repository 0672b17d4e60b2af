"""The report in a browser: filters, orders, sorting and printing, under the page's own policy.

The test adds its own script, which the policy allows by its hash, and reads its findings from the
page that Chromium prints. Without a browser these tests are skipped.
"""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from made_up_run import make_results, make_run, write_rows

from eval.report.report import csp_hash, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "</script><script>document.title = 'owned'</script>\"'`${alert(1)}`\u2028\u200f"

# Runs in the page. `at` finds a control by its label, `set` chooses in it as a reader would.
DRIVER = """
const seen = {};
const all = (where) => [...document.querySelectorAll(where)];
const up = (items) => items.filter((item) => !item.closest("[hidden]"));
const at = (list, label) => all(`[data-controls=${list}] label`)
  .find((one) => one.firstChild.data.trim() === label).querySelector("input, select");
const set = (control, value) => {
  control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
};
const named = (control, words) => [...control.options].find((one) => one.text === words).value;
const cards = (list) => up(all(`#${list} > details`));
const outcomes = (card) => [...card.querySelectorAll(".ends > span")].map((one) => one.innerText);

const language = at("answers-cards", "language"), outcome = at("answers-cards", "outcome");
seen.total = cards("answers-cards").length;
set(language, named(language, "zh"));
seen.zh = cards("answers-cards").map((card) => card.querySelector(".ask").lang);
set(outcome, named(outcome, "base: loops"));
seen.zhLoops = cards("answers-cards")
  .map((card) => [card.querySelector(".ask").lang, outcomes(card)]);
seen.count = document.querySelector("[data-controls=answers-cards] output").textContent;
set(language, ""); set(outcome, "");
const find = at("answers-cards", "find");
set(find, "  TOLVEN\\n works ");
seen.found = cards("answers-cards").map((card) => card.textContent.includes("Tolven works"));
set(find, "nowhere to be found");
seen.none = cards("answers-cards").length;
set(find, "document.title = 'owned'");
seen.hostile = cards("answers-cards").length;
set(find, "");
const whose = at("answers-cards", "answers of");
set(whose, named(whose, "dpo"));
seen.columns = up(all("#answers-cards article")).map((one) => one.querySelector("b").textContent);
set(whose, "");
set(at("answers-cards", "order"), "1");
seen.longest = cards("answers-cards").map((card) => Number(card.dataset.keys.split(" ")[1]));
set(at("answers-cards", "order"), "");
seen.back = cards("answers-cards").length;

const task = at("questions-cards", "task"), verdict = at("questions-cards", "outcome");
set(task, named(task, "world_math")); set(verdict, named(verdict, "dpo: right"));
seen.maths = cards("questions-cards").map(outcomes);

const step = at("changes-rows", "step"), change = at("changes-rows", "change");
set(step, named(step, "base \\u2192 dpo")); set(change, named(change, "significant"));
seen.steps = up(all("#changes-rows [data-words]"))
  .map((row) => [row.dataset.words, row.querySelector(".label").innerText.split("\\n")[0]]);
set(step, ""); set(change, ""); set(at("changes-rows", "find"), "world_zh");
seen.heads = up(all("#changes-rows .task, #changes-rows h3")).map((one) => one.textContent);
set(at("changes-rows", "find"), ""); set(at("changes-rows", "order"), "0");
seen.largest = up(all("#changes-rows .task")).map((one) => one.textContent);
seen.axis = all("#changes-rows .rows").map((rows) => rows.lastElementChild.ariaHidden);

const head = (i) => document.querySelectorAll("#table th[scope=col]")[i];
const column = (i) => all("#table-rows tr").map((row) => row.cells[i].dataset.value ?? null);
const names = () => all("#table-rows tr").map((row) => row.cells[0].firstChild.data);
seen.asWritten = names();
seen.sorted = [];
for (let turn = 0; turn < 3; turn++) {
  head(4).querySelector("button").click();
  seen.sorted.push([head(4).ariaSort, column(4)]);
}
seen.restored = names();
head(0).querySelector("button").click();
seen.byName = names();

seen.closed = all("details.case:not([open])").length;
dispatchEvent(new Event("beforeprint"));
seen.printed = all("details.case:not([open])").length;
dispatchEvent(new Event("afterprint"));
seen.closedAgain = all("details.case:not([open])").length;
seen.title = document.title;
seen.scripts = document.scripts.length;
document.documentElement.dataset.seen = JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "mine")
    results = make_results()
    # As text, 9.5% would sort after 10.2%; and one score is missing.
    results["benchmarks"]["world_facts"]["dpo"]["score"] = 0.095
    results["benchmarks"]["world_math"]["dpo"]["score"] = 0.102
    del results["benchmarks"]["world_code"]["dpo"]
    write_rows(run_dir / "results.json", [results])
    answers = run_dir / "eval" / "dpo" / "generations.jsonl"
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    write_rows(answers, [row | {"text": f"{HOSTILE} {row['text']}"} for row in rows])
    write_report(run_dir)
    page = (run_dir / "report.html").read_text("utf-8")
    own = re.search(r"script-src '[^']+'", page)
    assert own is not None
    page = page.replace(own[0], f"{own[0]} '{csp_hash(DRIVER)}'")
    page = page.replace("</body>", f"<script>{DRIVER}</script></body>")
    driven = run_dir / "driven.html"
    driven.write_text(page, encoding="utf-8")
    return _drive(browser, driven)


def _drive(browser: str, page: Path) -> dict[str, Any]:
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command = [browser, *quiet, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=False
    )
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


def test_filters_show_what_they_name_and_nothing_else(seen):
    assert 0 < len(seen["zh"]) < seen["total"] and set(seen["zh"]) == {"zh"}
    assert 0 < len(seen["zhLoops"]) < len(seen["zh"])
    for language, outcomes in seen["zhLoops"]:
        assert language == "zh" and "base loops" in outcomes
    assert seen["count"] == f"{len(seen['zhLoops'])} of {seen['total']}"
    assert seen["maths"] and all("dpo right" in outcomes for outcomes in seen["maths"])
    assert all(outcomes[0] == "world_math" for outcomes in seen["maths"])
    assert set(seen["columns"]) == {"dpo"} and len(seen["columns"]) == seen["total"]
    assert seen["back"] == seen["total"]


def test_words_are_found_in_any_case_and_with_any_spaces(seen):
    assert seen["found"] and all(seen["found"]) and len(seen["found"]) < seen["total"]
    assert seen["none"] == 0


def test_changes_are_filtered_with_their_headings_and_ordered(seen):
    assert {label for _, label in seen["steps"]} == {"base → dpo"}
    tasks = [task for task, _ in seen["steps"]]
    assert tasks == ["repetition", "world_facts", "world_math", "world_code", "world_zh"]
    assert seen["heads"] == ["Benchmarks", "world_zh"]
    assert seen["largest"] == ["world_code", "world_math", "world_facts", "world_zh"]
    assert seen["axis"] == ["true", "true"]  # the axis stays below its rows


def test_columns_sort_as_numbers_with_missing_values_last(seen):
    (down, falling), (up, rising), (none, again) = seen["sorted"]
    assert (down, up, none) == ("descending", "ascending", None)
    assert falling[-1] is None and rising[-1] is None
    numbers = [float(value) for value in falling[:-1]]
    assert numbers == sorted(numbers, reverse=True) and 0.095 in numbers and 0.102 in numbers
    assert [float(value) for value in rising[:-1]] == numbers[::-1]
    assert again != falling and seen["restored"] == seen["asWritten"]
    assert seen["byName"] == sorted(seen["asWritten"])
    assert seen["longest"] == sorted(seen["longest"], reverse=True)


def test_printing_opens_every_card_and_restores_them_afterwards(seen):
    assert seen["printed"] == 0 < seen["closed"] == seen["closedAgain"]


def test_the_text_of_a_model_never_runs_and_can_be_searched_for(seen):
    assert seen["title"] != "owned" and seen["scripts"] == 2
    assert seen["hostile"] == seen["total"]
