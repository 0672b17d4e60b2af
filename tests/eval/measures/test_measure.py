"""Two models measured with all optional measures: results and report."""

import pytest
from tiny_models import make_tiny_model

from eval.measures import repetition, safety
from eval.measures.measure import check_lengths, check_measures, measure
from eval.measures.measure_cache import CachedMeasure
from eval.results.results import write_results
from sft.chat_template.encoding import encode_prompt
from sft.chat_template.template import ensure_template
from sft.config.sections import (
    EvalSection,
    ModelSection,
    Preset,
    RepetitionSection,
    RunSection,
    SafetySection,
    TaskOptions,
)
from sft.context import RunContext
from sft.errors import UserError
from sft.model.placement import choose_placement
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl

CONTRACT = {"rate", "ci", "n", "distinct_loops", "truncated", "cap", "seq_rep_4"}


@pytest.fixture
def measured(tmp_path, tiny_tokenizer):
    """A run folder with models base and chat measured; prompts of two languages and kinds."""
    ensure_template(tiny_tokenizer)
    for name, width in (("base", 0.08), ("chat", 0.2)):
        model = make_tiny_model(1, initializer_range=width, hidden_size=16, num_hidden_layers=1)
        model.save_pretrained(tmp_path / name)
    rows = [
        {"prompt": text, "id": f"p{i}", "language": language, "category": kind}
        for i, (text, language, kind) in enumerate(
            [("tell me about rain", "en", "writing"), ("1+1", "en", "math"), ("下雨", "zh", "math")]
        )
    ]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    due = [
        {"prompt": f"say {i}", "id": str(i), "reference": {"refuse": i < 3}, "category": "c"}
        for i in range(5)
    ]
    write_jsonl(tmp_path / "safety.jsonl", due)
    section = EvalSection(
        repetition=RepetitionSection(str(tmp_path / "prompts.jsonl"), 64, 0.7, True),
        safety=SafetySection(str(tmp_path / "safety.jsonl"), 12),
    )
    preset = Preset(
        run=RunSection(str(tmp_path / "run")),
        model=ModelSection(str(tmp_path / "base"), dtype="float32"),
        eval=section,
    )
    check_measures(section)
    placement = choose_placement(preset.model)
    context = RunContext.of(
        preset, folder=tmp_path / "run", tokenizer=tiny_tokenizer, placement=placement
    )
    for name in ("base", "chat"):
        measure(name, str(tmp_path / name), context, section)
    return context.folder, write_results(context.folder, ["base", "chat"])


def test_every_number_follows_from_rows_on_disk(measured):
    folder, results = measured
    assert read_json(folder / "results.json") == results
    for name in ("base", "chat"):
        stored = {
            file: read_jsonl(folder / "eval" / name / f"{file}.jsonl")
            for file in (
                "generations",
                "generations-double-cap",
                "generations-sampled",
                "safety",
            )
        }
        assert set(results["repetition"][name]) == CONTRACT
        assert results["repetition"][name] == repetition.summarize(stored["generations"])
        detail = results["repetition_detail"][name]
        double, sampled = detail["double_cap"], detail["sampled"]
        assert double == repetition.summarize(stored["generations-double-cap"])
        assert double["cap"] == 128
        assert sampled.pop("temperature") == 0.7
        assert sampled == repetition.summarize(stored["generations-sampled"])
        assert results["safety"][name] == safety.summarize(stored["safety"])
        done = read_json(folder / "eval" / name / "done.json")["outputs"]
        assert {f"{file}.jsonl" for file in stored} < set(done)


def test_the_report_shows_the_optional_measures_and_links_their_answers(measured):
    folder, results = measured
    page, text = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    rate = results["repetition_detail"]["base"]["sampled"]["rate"]
    for words in ("near-loops", "twice the cap", "at temperature 0.7", "zh / math", "over-refusal"):
        assert words in page and words in text
    assert f"| sampled | at temperature 0.7, the same definition | {100 * rate:.1f}%" in text
    assert "agree with people on 81.2% of 1,407 answers (kappa 0.65)" in page
    for file in ("safety", "generations-sampled", "generations-double-cap"):
        assert f'href="eval/base/{file}.jsonl"' in page


def test_answers_of_the_same_size_with_another_byte_are_generated_again(measured):
    folder, _ = measured
    (record,) = (folder / "eval" / "base" / "kept").glob("repetition.json")
    unit = CachedMeasure(
        folder / "eval/base", "repetition", "generations.jsonl", read_json(record)["inputs"]
    )
    assert unit.load() is not None
    rows = unit.rows.read_bytes()
    unit.rows.write_bytes(rows[:-2] + b"]" + rows[-1:])
    assert unit.load() is None
    unit.rows.write_bytes(rows)
    record.write_text(record.read_text().replace('"rate": ', '"rate": 1', 1))
    assert unit.load() is None


def test_safety_prompts_are_read_before_any_model(tmp_path):
    section = EvalSection(repetition=RepetitionSection(None))
    with pytest.raises(UserError, match=r"neither tasks nor repetition.prompts nor safety.prompts"):
        check_measures(section)
    section.safety.prompts = str(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"none.jsonl: no such file"):
        check_measures(section)


def test_answers_that_fill_a_window_are_refused_before_anything_is_measured(task_dir):
    """The task writes up to 16 tokens."""
    section = EvalSection(
        tasks=["mine_choice", "mine_written"],
        task_dir=str(task_dir),
        repetition=RepetitionSection(None),
    )
    check_lengths(section, None, window=17)
    with pytest.raises(UserError, match=r"mine_written: 16 new tokens .*\.max_gen_toks lower"):
        check_lengths(section, None, window=16)
    section.per_task["mine_written"] = TaskOptions(max_gen_toks=8)
    check_lengths(section, None, window=16)


@pytest.mark.parametrize("double_cap", [False, True])
def test_a_cap_for_which_a_window_is_too_small_is_refused_before_anything_is_measured(
    double_cap, tiny_tokenizer, tmp_path
):
    ensure_template(tiny_tokenizer)
    prompts = [{"id": "a", "messages": [{"role": "user", "content": "hello"}]}]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    length = len(encode_prompt(tiny_tokenizer, prompts[0]["messages"]))
    section = EvalSection(
        repetition=RepetitionSection(
            prompts=str(tmp_path / "prompts.jsonl"), cap=64, double_cap=double_cap
        )
    )
    needed = length + 64 * (4 if double_cap else 2)
    check_lengths(section, tiny_tokenizer, window=needed)
    check_lengths(section, tiny_tokenizer, window=None)
    with pytest.raises(UserError, match=r"cap=64: prompt a has"):
        check_lengths(section, tiny_tokenizer, window=needed - 1)
