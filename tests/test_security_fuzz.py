"""Hostile rows, presets, prompts, samples and judge replies end in a result or in one sentence.

No traceback, no hang, nothing written outside the folder, and a refusal is text that a terminal and
a file take. TRUING_LONG=1 runs 2,000 cases more.
"""

import json
import os
import random
import signal
import zlib

import hostile
import pytest
from launching import long
from tiny_models import make_tiny_tokenizer

from dpo.data import read_preferences
from eval.graders.rule_judge import reference_error
from eval.open_ended.judge_endpoint import _read as read_reply
from eval.open_ended.judge_endpoint import _Transient as Transient
from eval.open_ended.judge_prompts import grading
from eval.open_ended.judgments import grade_table, judge_all, usage
from eval.open_ended.questions import read_questions
from eval.report.report import write_report
from eval.results.external_results import import_measures
from eval.results.results import write_results
from sft.chat_template.encoding import encode_prompt
from sft.chat_template.template import ensure_template
from sft.config.preset import load_preset, resolved
from sft.config.sections import EvalSection, Source
from sft.data.prompts import read_prompts
from sft.data.sources import read_sft
from sft.errors import UserError
from sft.system.atomic_files import read_jsonl, write_json, write_jsonl
from sft.tokenization.tokenize import encode_chunk

CASES = 40
SECONDS = 60


def read_rows(draw, folder, tokenizer):
    path = hostile.write_rows(draw, folder, hostile.CHATS)
    on_error = draw.choice(("stop", "drop"))
    rows = read_sft([Source(str(path))], on_error=on_error)
    write_jsonl(folder / "rows-out.jsonl", rows.rows)
    write_json(folder / "counts.json", [vars(count) for count in rows.counts])
    part = encode_chunk(tokenizer, rows.rows, turns=draw.choice(("last", "each")), split_at=None)
    write_json(folder / "part.json", [part.problems, part.rows.to_pylist()])


def read_pairs(draw, folder, tokenizer):
    path = hostile.write_rows(draw, folder, hostile.PAIRS)
    rows = read_preferences([Source(str(path))], on_error=draw.choice(("stop", "drop")))
    write_jsonl(folder / "pairs-out.jsonl", rows.rows)
    for row in rows.rows:
        encode_prompt(tokenizer, row["prompt"], tools=row.get("tools"))


def read_asked(draw, folder, tokenizer):
    path = hostile.write_rows(draw, folder, hostile.PROMPTS)
    prompts = read_prompts([Source(str(path))])
    write_jsonl(folder / "prompts-out.jsonl", prompts)
    flaws = [reference_error(prompt.get("reference") or {}) for prompt in prompts]
    write_json(folder / "flaws.json", flaws)
    for prompt in prompts:
        encode_prompt(tokenizer, prompt["messages"])


def read_open_questions(draw, folder, tokenizer):
    path = hostile.write_rows(draw, folder, hostile.QUESTIONS)
    questions = read_questions(str(path))
    answers = [
        {"id": question.id, "turns": [{"text": "a"} for _ in question.turns]}
        for question in questions
    ]
    write_json(
        folder / "items.json", [i.facts for i in grading(questions, {"m": answers}, judge="j")]
    )


def read_preset(draw, folder, tokenizer):
    path, overrides = hostile.write_preset(draw, folder)
    write_json(folder / "resolved.json", resolved(load_preset(path, overrides=overrides)))


def read_samples(draw, folder, tokenizer):
    path = hostile.write_samples(draw, folder)
    import_measures(path, folder / "eval" / "m", section=EvalSection())
    for file in (folder / "eval" / "m" / "samples").glob("*.jsonl"):
        read_jsonl(file)


def read_measures(draw, folder, tokenizer):
    """A run of ours, one file of which is hostile: reported again, and compared with others."""
    hostile.write_run(draw, folder / "run")
    refused = []
    for source in ("run", "run/eval/dpo"):
        try:
            import_measures(folder / source, folder / f"copy-{len(refused)}", section=EvalSection())
        except UserError as error:
            refused.append(str(error))
    write_report(folder / "run")
    if refused:
        raise UserError(refused[0])
    write_results(folder / "run", ["base", "dpo"])


def read_replies(draw, folder, tokenizer):
    source = folder / "questions.jsonl"
    source.write_text(json.dumps(hostile.QUESTIONS[0]) + "\n", encoding="utf-8")
    questions = read_questions(str(source))
    answers = [{"id": q.id, "turns": [{"text": "a"} for _ in q.turns]} for q in questions]
    items = grading(questions, {"m": answers}, judge="j")

    def ask(messages):
        try:
            return read_reply(hostile.reply(draw, items[0].code))
        except Transient as failure:
            raise UserError(str(failure)) from None

    path = folder / "judgments.jsonl"
    if draw.random() < 0.3:  # judgments of an earlier start, or of somebody else
        kept = [hostile.mutated(draw, {"key": items[0].key, "verdict": 3.0, "reply": "x"})]
        path.write_bytes(hostile.as_bytes(draw, "".join(json.dumps(k) + "\n" for k in kept)))
    rows = judge_all(items, ask, path=path, workers=1)
    write_json(folder / "tables.json", [grade_table(rows), usage(rows, prices=(1.0, 2.0))])


READERS = {
    "rows": read_rows,
    "pairs": read_pairs,
    "prompts": read_asked,
    "questions": read_open_questions,
    "presets": read_preset,
    "samples": read_samples,
    "measures": read_measures,
    "judge replies": read_replies,
}


def refusal_of(kind, seed, folder, tokenizer):
    """The sentence in which a case ends; None where it is read."""
    folder.mkdir()
    draw = random.Random(zlib.crc32(f"{kind} {seed}".encode()))
    try:
        READERS[kind](draw, folder, tokenizer)
    except UserError as error:
        return str(error)
    return None


def run_cases(kind, seeds, tmp_path, monkeypatch):
    tokenizer = make_tiny_tokenizer()
    ensure_template(tokenizer)
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "x").write_text("x")
    monkeypatch.chdir(place)

    def hangs(*_):
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    failed, refused = [], 0
    try:
        for seed in seeds:
            signal.alarm(SECONDS)
            try:
                sentence = refusal_of(kind, seed, place / str(seed), tokenizer)
            except Exception as error:
                failed.append(f"{kind} {seed}: {type(error).__name__}: {str(error)[:200]}")
                continue
            finally:
                signal.alarm(0)
            refused += sentence is not None
            if sentence is not None and not (sentence.strip() and len(sentence) < 20_000):
                failed.append(f"{kind} {seed}: a refusal of {len(sentence)} characters")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert failed == [], "\n".join(failed)
    assert sorted(os.listdir(tmp_path)) == ["place", "x"]
    assert set(os.listdir(place)) == {str(seed) for seed in seeds}
    return refused


@pytest.mark.parametrize("kind", READERS)
def test_hostile_input_is_read_or_refused_in_a_sentence(kind, tmp_path, monkeypatch):
    refused = run_cases(kind, range(CASES), tmp_path, monkeypatch)
    assert CASES / 4 < refused < CASES  # most of it is nonsense, and some can be read


@long
@pytest.mark.parametrize("kind", READERS)
def test_two_thousand_more(kind, tmp_path, monkeypatch):
    run_cases(kind, range(CASES, CASES + 300), tmp_path, monkeypatch)
