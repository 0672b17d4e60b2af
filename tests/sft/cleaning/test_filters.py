"""Filters drop rows with evidence, and the counts still sum up."""

from dataclasses import replace

import pytest

from sft.cleaning.decontamination import BenchmarkQuestion, Benchmarks, read_questions
from sft.cleaning.filters import (
    check_contamination,
    drop_contaminated,
    drop_near_duplicates,
    find_contaminated,
    known_questions,
)
from sft.config.sections import DataSection, Source
from sft.data.readers import read_records
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.system.atomic_files import read_jsonl, write_jsonl

STORY = "In the evening the old fisher mends her nets by the harbour wall and tells of the sea. "
QUESTION = (
    "A farmer has 17 crates of pears and sells 9 of them at the harbour market; each crate holds "
    "24 pears. How many pears are left with her in the evening?"
)
KNOWN = {"pears": [BenchmarkQuestion("pears", "7", QUESTION)]}


def chat(question, answer):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def read(folder, *files):
    """Read files with these chats."""
    sources = []
    for i, chats in enumerate(files):
        write_jsonl(folder / f"{i}.jsonl", chats)
        sources.append(Source(str(folder / f"{i}.jsonl")))
    return read_sft(sources)


def adds_up(rows):
    assert sum(count.kept for count in rows.counts) == len(rows.rows)
    assert all(count.rows_in == count.kept + sum(count.dropped.values()) for count in rows.counts)
    return [count.dropped for count in rows.counts]


def test_near_duplicates_within_and_across_sources_are_dropped_with_evidence(tmp_path):
    first = [chat("Tell me of the sea.", STORY * 2), chat("And now?", "Something else is said.")]
    near = chat("Tell me of the sea!", STORY + STORY.replace("old", "young"))
    rows = read(tmp_path, [*first, near, first[1]], [chat("Tell me of the sea,", STORY * 2)])
    kept = drop_near_duplicates(rows, threshold=0.8, evidence=tmp_path / "d.jsonl")
    assert [row["messages"] for row in kept.rows] == [c["messages"] for c in first]
    assert adds_up(kept) == [{"exact duplicate": 1, "near duplicate": 1}, {"near duplicate": 1}]
    lines = read_jsonl(tmp_path / "d.jsonl")
    zero, one = tmp_path / "0.jsonl", tmp_path / "1.jsonl"
    assert [(d["origin"], d["of"], d["rule"]) for d in lines] == [
        (f"{zero}:4", f"{zero}:2", "exact duplicate"),
        (f"{zero}:3", f"{zero}:1", "near duplicate"),
        (f"{one}:1", f"{zero}:1", "near duplicate"),
    ]
    assert lines[0]["overlap"] == lines[2]["overlap"] == 1 > lines[1]["overlap"] >= 0.8


def test_plain_texts_are_deduplicated_and_decontaminated_like_chats(tmp_path):
    texts = [{"text": STORY * 4}, {"text": STORY * 4 + "Again!"}, {"text": f"Exam. {QUESTION}"}]
    rows = read(tmp_path, texts)
    near = drop_near_duplicates(rows, threshold=0.8, evidence=tmp_path / "d.jsonl")
    assert [row["text"] for row in near.rows] == [texts[0]["text"], texts[2]["text"]]
    clean = drop_contaminated(near, KNOWN, on_error="drop", evidence=tmp_path / "c.jsonl")
    assert [row["text"] for row in clean.rows] == [texts[0]["text"]]


def test_without_a_threshold_only_exact_copies_are_dropped(tmp_path):
    rows = read(tmp_path, [chat("Hi", STORY), chat("Hi!", STORY), chat("Hi", STORY)])
    kept = drop_near_duplicates(rows, threshold=0.0, evidence=tmp_path / "d.jsonl")
    assert len(kept.rows) == 2
    assert [d["rule"] for d in read_jsonl(tmp_path / "d.jsonl")] == ["exact duplicate"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            chat(STORY * 4 + "Who tells of the sea?", "An old fisher."),
            chat(STORY * 4 + "What does she mend?", "Her nets, every evening."),
        ),
        (
            chat(QUESTION, "She sold 9 crates, so 8 crates of 24 pears are left: 192."),
            chat(QUESTION.replace("9", "8"), "She sold 8, so 9 crates of 24 pears are left: 216."),
        ),
    ],
    ids=["two questions on one passage", "two exercises of one pattern"],
)
def test_rows_with_different_answers_are_kept(tmp_path, one, other):
    rows = read(tmp_path, [one, other])
    kept = drop_near_duplicates(rows, threshold=0.8, evidence=tmp_path / "d.jsonl")
    assert len(kept.rows) == 2 and read_jsonl(tmp_path / "d.jsonl") == []


def test_contaminated_rows_are_dropped_with_evidence_under_drop(tmp_path):
    copy = chat(f"Please solve: {QUESTION.upper()}", "192")
    rows = read(tmp_path, [chat("Hi", "yo"), copy], [chat("So?", "yes")])
    kept = drop_contaminated(rows, KNOWN, on_error="drop", evidence=tmp_path / "c.jsonl")
    assert adds_up(kept) == [{"contaminated": 1}, {}]
    assert [row["messages"][0]["content"] for row in kept.rows] == ["Hi", "So?"]
    (line,) = read_jsonl(tmp_path / "c.jsonl")
    passage = line.pop("passage")
    assert line == {
        "origin": f"{tmp_path / '0.jsonl'}:2",
        "task": "pears",
        "question": "7",
        "share": 1.0,
    }
    assert passage.startswith("afarmerhas17crates") and passage.endswith("intheevening")


def test_contaminated_rows_stop_the_run_under_stop(tmp_path):
    rows = read(tmp_path, [chat("Hi", "yo"), chat(QUESTION, "192"), chat("Q: " + QUESTION, "192")])
    with pytest.raises(UserError, match=r"0\.jsonl:2: holds 100% of question 7 of pears.* 2 of 3 "):
        drop_contaminated(rows, KNOWN, on_error="stop", evidence=tmp_path / "c.jsonl")
    assert len(read_jsonl(tmp_path / "c.jsonl")) == 2, "the evidence is there for the user to read"


def test_the_remedies_of_the_error_keep_the_rows(tmp_path):
    """For questions of benchmarks, of a file of data.decontaminate, and of both."""
    file = str(tmp_path / "q.jsonl")
    other = "A train leaves the station at noon and arrives in the next town at three o'clock sharp"
    write_jsonl(tmp_path / "q.jsonl", [{"id": "a", "question": other}])
    benchmarks = Benchmarks(key="k", load=lambda: KNOWN)
    without_file, without_tasks = {"decontaminate": []}, {"decontaminate_tasks": False}
    for asked, remedy, words in (
        ([other], without_file, f"to keep them take {file} out of data.decontaminate"),
        ([QUESTION], without_tasks, "to keep them set data.decontaminate_tasks=false"),
        (
            [other, QUESTION],
            without_file | without_tasks,
            f"take {file} out of data.decontaminate and set data.decontaminate_tasks=false",
        ),
    ):
        rows = read(tmp_path, [chat("Hi", "yo"), *(chat(text, "3") for text in asked)])

        def left(section, rows=rows):
            known = known_questions(section, benchmarks)
            options = {"on_error": "stop", "evidence": tmp_path / "c.jsonl"}
            return drop_contaminated(rows, known, files=section.decontaminate, **options).rows

        with pytest.raises(UserError) as no:
            left(DataSection(decontaminate=[file]))
        assert str(no.value).endswith(words)
        assert left(replace(DataSection(decontaminate=[file]), **remedy)) == rows.rows


def test_a_source_that_loses_all_its_rows_is_counted_and_all_sources_are_an_error(tmp_path):
    options = {"on_error": "drop", "evidence": tmp_path / "c.jsonl"}
    rows = read(tmp_path, [chat(QUESTION, "192")], [chat("Hi", "yo")])
    assert [c.kept for c in drop_contaminated(rows, KNOWN, **options).counts] == [0, 1]
    with pytest.raises(UserError, match="every row is left out"):
        drop_contaminated(read(tmp_path, [chat(QUESTION, "1")]), KNOWN, **options)


def test_prompts_and_pairs_are_searched(tmp_path):
    prompt = {"id": "x", "messages": [{"role": "user", "content": QUESTION}]}
    pair = {
        "origin": "p.jsonl:1",
        "prompt": prompt["messages"],
        "chosen": [{"role": "assistant", "content": "192"}],
        "rejected": [{"role": "assistant", "content": "9"}],
    }
    other = {"id": "y", "messages": [{"role": "user", "content": "Hi"}]}
    evidence = tmp_path / "c.jsonl"
    found = find_contaminated([other, prompt, pair], KNOWN, on_error="drop", evidence=evidence)
    assert found == {1, 2}
    assert [line["origin"] for line in read_jsonl(evidence)] == ["prompt x", "p.jsonl:1"]


def test_rows_are_searched_once_and_again_after_a_row_or_question_changed(tmp_path):
    rows = [{"id": "x", "messages": [{"role": "user", "content": QUESTION}]}]
    section, loads = DataSection(on_error="drop"), []

    def look(rows, key, questions):
        benchmarks = Benchmarks(key=key, load=lambda: loads.append(key) or questions)
        return check_contamination(
            rows, section, benchmarks=benchmarks, folder=tmp_path / "prompts"
        )

    assert look(rows, "a", KNOWN) == look(rows, "a", KNOWN) == {0}
    assert loads == ["a"]
    other = {"pears": [BenchmarkQuestion("pears", "8", STORY)]}
    assert look(rows, "b", other) == set() and loads == ["a", "b"]
    assert look([*rows, rows[0]], "b", KNOWN) == {0, 1}
    assert look(rows, "c", {"pears": []}) == set(), "the benchmark could not be loaded"
    assert look(rows, "c", KNOWN) == {0}


def test_questions_come_from_the_benchmarks_and_files_of_the_section(tmp_path):
    file = tmp_path / "q.jsonl"
    write_jsonl(file, [{"id": "a", "question": "Where is the sea?"}, {"id": "b", "prompt": "So?"}])
    benchmarks = Benchmarks(key="k", load=lambda: KNOWN)
    both = known_questions(DataSection(decontaminate=[str(file)]), benchmarks)
    assert both.keys() == {"pears", str(file)}
    assert [(q.id, q.text) for q in both[str(file)]] == [("a", "Where is the sea?"), ("b", "So?")]
    off = DataSection(decontaminate_tasks=False)
    assert known_questions(off, benchmarks) == {}
    write_jsonl(file, [{"colour": "red"}])
    with pytest.raises(UserError, match=r"q\.jsonl: no row .* fields colour, rename one"):
        known_questions(DataSection(decontaminate=[str(file)]), benchmarks)


# Real rows.


def questions_of(path):
    fields = (record.fields for record in read_records(Source(str(path))))
    return {path.name: read_questions(fields, source=path.name)}


@pytest.mark.real
def test_rows_shared_by_alpaca_files_are_dropped_from_the_second(real_data, tmp_path):
    names = ("alpaca_en_first10k.jsonl.gz", "alpaca_5000_subset.jsonl.gz")
    rows = read_sft([Source(str(real_data / "sft" / name)) for name in names], on_error="drop")
    kept = drop_near_duplicates(rows, threshold=0.8, evidence=tmp_path / "d.jsonl")
    dropped = adds_up(kept)
    assert dropped[1]["exact duplicate"] > 900
    assert all(d["of"].startswith(str(real_data)) for d in read_jsonl(tmp_path / "d.jsonl"))


@pytest.mark.real
@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ("gsm8k_test.jsonl", "eval/gsm8k_example_model_solutions.jsonl"),
        ("mt_bench_question.jsonl", "eval/mt_bench_question.jsonl"),
        ("mgsm_zh.jsonl", "eval/mgsm_zh.jsonl"),
    ],
)
def test_a_benchmark_is_found_in_rows_made_of_it(real_data, tmp_path, benchmark, file):
    known = questions_of(real_data / "eval" / benchmark)
    rows = [
        chat(q.text, "An answer.") | {"origin": str(i)}
        for i, q in enumerate(questions_of(real_data / file)[file.split("/")[1]])
    ]
    found = find_contaminated(rows, known, on_error="drop", evidence=tmp_path / "c.jsonl")
    assert len(found) >= 0.95 * len(rows) > 70


@pytest.mark.real
def test_unrelated_sets_lose_less_than_one_row_in_a_thousand(real_data, tmp_path):
    """Benchmarks in two languages against instructions, role play, medicine, code and chat."""
    known = {}
    for name in ("gsm8k_test.jsonl", "mmlu_test.jsonl.gz", "arc_challenge.jsonl"):
        known |= questions_of(real_data / "eval" / name)
    for name in ("ceval_val.jsonl", "humaneval.jsonl", "hellaswag_val_1000.jsonl"):
        known |= questions_of(real_data / "eval" / name)
    names = ("alpaca_zh_translated_9k", "gpteacher_roleplay", "codealpaca_new")
    sources = [Source(str(real_data / "sft" / f"{name}.jsonl.gz")) for name in names]
    sources += [Source(str(real_data / "sft" / "medicalgpt_medical_1k.jsonl"))]
    rows = read_sft(sources, on_error="drop").rows
    found = find_contaminated(rows, known, on_error="drop", evidence=tmp_path / "c.jsonl")
    assert len(found) < 0.001 * len(rows)
