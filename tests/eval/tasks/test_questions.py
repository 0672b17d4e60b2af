"""The questions of the tasks, as training rows could hold them."""

import logging

import pytest
import yaml

from eval.tasks.questions import benchmark_questions
from sft.cleaning.decontamination import QuestionIndex
from sft.config.sections import EvalSection
from sft.system.atomic_files import write_jsonl

SEA = "Which bird follows the fishing boats of the northern islands out to sea every morning?"
HILL = "Which flower opens on the southern hills of the island before the snow has melted away?"


def write_task(folder, name, docs, **more):
    write_jsonl(folder / f"{name}.jsonl", docs)
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config | more))


def section(folder, *names, **more):
    return EvalSection(tasks=list(names), task_dir=str(folder), **more)


def test_every_document_is_a_question_whatever_the_limit(tmp_path):
    docs = [
        {"id": f"d{i}", "question": q, "choices": ["a", "b"]} for i, q in enumerate((SEA, HILL))
    ]
    write_task(tmp_path, "birds", docs)
    (questions,) = benchmark_questions(section(tmp_path, "birds", limit=1)).load().values()
    assert [(q.source, q.id, q.text) for q in questions] == [
        ("birds", "d0", SEA),
        ("birds", "d1", HILL),
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"doc_to_text": "Consider this question with care: {{riddle}}\nYour answer, please:"},
        {
            "doc_to_text": "{{gold}}",
            "doc_to_choice": "{{[riddle + ' A', riddle + ' B']}}",
            "doc_to_target": "it is",
        },
    ],
    ids=["a field of another name", "the question in the choices"],
)
def test_fields_of_other_names_are_read_as_the_task_asks_them(tmp_path, more):
    docs = [{"riddle": q, "choices": ["a", "b"], "gold": 1} for q in (SEA, HILL)]
    write_task(tmp_path, "riddles", docs, **more)
    (questions,) = benchmark_questions(section(tmp_path, "riddles")).load().values()
    found = QuestionIndex(questions).find(["no", f"Well: {HILL}"])
    assert [(c.row, c.source, c.id) for c in found] == [(1, "riddles", "1")]
    assert found[0].share > 0.9, "what the template puts around the question is no part of it"


def test_another_question_gives_another_key_and_the_limit_does_not(tmp_path):
    write_task(tmp_path, "birds", [{"question": SEA, "choices": ["a", "b"]}])
    key = benchmark_questions(section(tmp_path, "birds")).key
    assert benchmark_questions(section(tmp_path, "birds", limit=3)).key == key
    write_task(tmp_path, "birds", [{"question": HILL, "choices": ["a", "b"]}])
    assert benchmark_questions(section(tmp_path, "birds")).key != key


def test_a_task_whose_data_cannot_be_had_is_said_and_left_out(tmp_path, caplog):
    write_task(tmp_path, "birds", [{"question": SEA, "choices": ["a", "b"]}])
    write_task(tmp_path, "gone", [{"question": HILL}], test_split="validation")
    with caplog.at_level(logging.WARNING):
        known = benchmark_questions(section(tmp_path, "birds", "gone")).load()
    assert len(known["birds"]) == 1 and known["gone"] == []
    assert "the rows are not checked against the questions of gone" in caplog.text
