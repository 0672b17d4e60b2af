import pytest

from eval.metrics.mcnemar import mcnemar
from eval.metrics.paired_comparison import compare, delta_table, stage_pairs
from eval.metrics.stats import paired_proportion_interval
from sft.errors import UserError


def rows(scores, *, metric="acc", first_id=0):
    return [
        {"doc_id": str(i), "doc_hash": f"h{i}", "score": s, "metric": metric, "cluster": None}
        for i, s in enumerate(scores, start=first_id)
    ]


def generations(repeats, *, cap=400):
    return [
        {"id": f"p{i}", "messages": [{"role": "user", "content": f"{i}"}], "repeats": r, "cap": cap}
        for i, r in enumerate(repeats)
    ]


def test_pairs_are_the_steps_and_then_the_whole():
    assert stage_pairs(["base", "sft-all", "dpo"]) == [
        ("base", "sft-all"),
        ("sft-all", "dpo"),
        ("base", "dpo"),
    ]
    assert stage_pairs(["base", "dpo"]) == [("base", "dpo")]
    assert stage_pairs(["base"]) == []


def test_join_is_on_the_document_whatever_the_order_of_the_rows():
    first, second = rows([1, 0, 0, 1, 0]), rows([1, 1, 1, 0, 1])
    delta = compare("t", first, list(reversed(second)), names=("a", "b")).comparison
    assert delta.delta == pytest.approx(0.4)
    assert delta.p == mcnemar(3, 1)
    assert delta.ci == paired_proportion_interval(3, 1, 5)
    assert (delta.n, delta.test) == (5, "exact McNemar")


def test_a_document_that_occurs_twice_is_paired_with_its_own_occurrence():
    first, second = rows([1, 0]) + rows([0]), rows([1, 0]) + rows([1])
    assert compare("t", first, second, names=("a", "b")).comparison.delta == pytest.approx(1 / 3)


def test_contract_of_the_table_and_holm_over_all_of_it():
    samples = {
        "math": {"base": rows([0] * 20), "sft-all": rows([1] * 20), "dpo": rows([1] * 20)},
        "repetition": {
            "base": generations([True] * 10),
            "sft-all": generations([True] * 9 + [False]),
            "dpo": generations([False] * 10),
        },
    }
    table = delta_table(samples, models=["base", "sft-all", "dpo"])
    assert [(d["task"], d["from"], d["to"]) for d in table] == [
        ("math", "base", "sft-all"),
        ("math", "sft-all", "dpo"),
        ("math", "base", "dpo"),
        ("repetition", "base", "sft-all"),
        ("repetition", "sft-all", "dpo"),
        ("repetition", "base", "dpo"),
    ]
    contract = {"task", "from", "to", "delta", "ci", "p", "p_holm", "n", "test"}
    power = {"visible", "needed", "smallest_p"}
    assert set(table[0]) == contract | power | {"gained", "lost", "left_out"}
    assert (table[0]["gained"], table[0]["lost"]) == (20, 0)
    assert (table[3]["gained"], table[3]["lost"]) == (0, 1)
    # Of the six, those with no changed answer or one could not be significant.
    assert [d["smallest_p"] < 0.05 for d in table] == [True, False, True, False, True, True]
    assert table[0]["p_holm"] == pytest.approx(4 * table[0]["p"])
    assert table[5]["delta"] == -1.0 and table[3]["delta"] == pytest.approx(-0.1)
    assert isinstance(table[0]["ci"], list) and table[0]["n"] == 20


def test_shared_passages_are_clustered_whichever_model_s_rows_name_them():
    first, second = rows([0, 0, 1, 0, 1, 0]), rows([1, 1, 1, 0, 0, 0])
    for sample in (first, second):
        for i, row in enumerate(sample):
            row["cluster"] = f"passage {i // 2}"
    assert compare("t", first, second, names=("a", "b")).comparison.test == "McNemar, clustered"
    apart = [{**row, "cluster": None} for row in first]
    assert compare("t", apart, second, names=("a", "b")).comparison.test == "McNemar, clustered"
    assert compare("t", second, apart, names=("a", "b")).comparison.test == "McNemar, clustered"


def test_different_documents_are_refused_by_name():
    with pytest.raises(UserError, match="t: a and b were measured on different documents") as error:
        compare("t", rows([1] * 9), rows([1] * 2 + [0], first_id=1), names=("a", "b"))
    assert "only a has 0, 4, 5, 6, 7 and 1 more" in str(error.value)
    assert "only b" not in str(error.value)
    changed = generations([True, False])
    changed[1]["messages"] = [{"role": "user", "content": "another question, same id"}]
    with pytest.raises(UserError, match="only a has p1; only b has p1"):
        compare("repetition", generations([True, True]), changed, names=("a", "b"))


def test_documents_that_one_model_left_out_are_left_out_of_both_and_counted():
    first, second = rows([1, 0, 0, 1, 0, 1]), rows([1, 1, 1, 0, 1, 0])
    named = {"names": ("a", "b")}
    delta = compare("t", first[1:], second[:-1], left_out=(1, 1), **named)
    alike = compare("t", first[1:-1], second[1:-1], **named)
    assert (delta.left_out, alike.left_out) == (2, 0)
    assert delta.comparison.n == 4 and delta.comparison == alike.comparison
    for unsaid in ((0, 0), (1, 0), (0, 1)):
        with pytest.raises(UserError, match="measured on different documents"):
            compare("t", first[1:], second[:-1], left_out=unsaid, **named)
    entries = {"t": {"a": {"left_out": 1}, "b": {}}}
    (row,) = delta_table({"t": {"a": first[1:], "b": second}}, models=["a", "b"], entries=entries)
    assert (row["n"], row["left_out"]) == (5, 1)


def test_different_measures_are_refused():
    with pytest.raises(UserError, match="metric is acc for a but exact_match for b"):
        compare("t", rows([1]), rows([1], metric="exact_match"), names=("a", "b"))
    with pytest.raises(UserError, match="cap is 400 for a but 800 for b"):
        compare("repetition", generations([True]), generations([True], cap=800), names=("a", "b"))
    with pytest.raises(UserError, match="no samples of model dpo"):
        delta_table({"t": {"base": rows([1])}}, models=["base", "dpo"])
