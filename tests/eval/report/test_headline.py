"""The sentences at the head of the report say what the numbers say."""

from typing import Any

import pytest
from made_up_run import STEPS, delta_row, make_results

from eval.report import headline


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
        "-4.0 to +2.0, p = 0.60 Holm-adjusted). No benchmark changed significantly (their "
        "intervals still allow a loss of up to 5.0 points, on math).",
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
    head = headline.headline(results)
    assert (head.title, head.answer.replace("\u2212", "-"), head.steps) == (title, answer, ())


def test_that_answers_do_not_end_is_the_news() -> None:
    results = two_models(delta_row("repetition", 0.0, p=1.0), delta_row("math", 0.0, p=1.0))
    for model, rate in results["repetition"].items():
        rate |= {"rate": 0.1, "truncated": 0.88 if model == "b" else 0.85}
    head = headline.headline(results)
    assert head.title == (
        "98.0% of b's answers do not end; repetition did not change significantly; no benchmark "
        "was compared."
    ).replace("no benchmark was compared", "no benchmark changed significantly")
    assert head.answer.startswith(
        "95.0% of a's and 98.0% of b's answers had not ended at the cap of 400 tokens. From a to b"
    )
    results["repetition"]["b"]["truncated"] = 0.2  # a base that never ends is no news
    assert "do not end" not in headline.headline(results).title


def test_headline_is_about_first_to_last_whatever_the_order_or_the_effect() -> None:
    results = make_results()
    results["deltas"].reverse()
    head = headline.headline(results)
    assert head.answer.startswith("From base to dpo, repetition fell from 88.2% to 1.0%")
    assert {step.label for step in head.steps} == {f"{a} → {b}" for a, b in STEPS[:3]}


def test_an_interval_clear_of_zero_is_not_enough_after_holm() -> None:
    results = two_models(delta_row("repetition", -0.1, p=0.06), delta_row("math", 0.05, p=0.06))
    assert "not change significantly; no benchmark changed" in headline.headline(results).title
