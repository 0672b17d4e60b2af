import json

import pytest
import yaml
from benchmark_runs import read, run
from made_up_tasks import NAMES, change
from tiny_models import make_tiny_model

from eval.tasks.task_files import TaskSource, check_tasks, load_tasks, tasks_fingerprint
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring


@pytest.fixture
def model():
    return enable_scoring(make_tiny_model())


def test_names_are_checked_before_any_model_is_there(task_dir):
    check_tasks(NAMES, source=TaskSource(str(task_dir)))
    with pytest.raises(UserError, match=r"'mine_chioce' is no task .* nearest are mine_choice"):
        check_tasks(["mine_choice", "mine_chioce"], source=TaskSource(str(task_dir)))
    with pytest.raises(UserError, match=r"'hellaswagg' is no task of lm-eval; .* hellaswag"):
        check_tasks(["hellaswagg"], source=TaskSource())
    check_tasks(["hellaswag", "mmlu", "mine_choice"], source=TaskSource(str(task_dir)))
    with pytest.raises(UserError, match=r"eval.task_dir=nowhere is no folder"):
        check_tasks(NAMES, source=TaskSource("nowhere"))


def test_fingerprint_follows_definition_and_data(task_dir):
    def now():
        return tasks_fingerprint(["mine_choice"], source=TaskSource(str(task_dir)))

    first = now()
    (task_dir / "mine_written.yaml").unlink()
    assert now() == first
    data = task_dir.parent / "data/choice.jsonl"
    data.write_text(data.read_text().replace("number 1", "number one"))
    second = now()
    change(task_dir, doc_to_text="Q: {{question}}")
    assert len({first, second, now()}) == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"dataset_kwargs": {"data_files": {"test": "../data/gone.jsonl"}}},
            r"mine_choice.yaml: data file ../data/gone.jsonl does not exist",
        ),
        ({"include": "gone.yaml"}, "include gone.yaml does not exist"),
        ({"task": "mine_written"}, "task 'mine_written' is defined twice"),
    ],
)
def test_broken_task_files_are_refused_before_any_model(task_dir, changes, sentence):
    change(task_dir, **changes)
    with pytest.raises(UserError, match=sentence):
        check_tasks(NAMES, source=TaskSource(str(task_dir)))


def test_code_in_task_files_is_refused(task_dir):
    with (task_dir / "mine_choice.yaml").open("a") as stream:
        stream.write("process_docs: !function utils.process\n")
    with pytest.raises(UserError, match=r"mine_choice.yaml:\d+: .*!function.* plain data"):
        check_tasks(NAMES, source=TaskSource(str(task_dir)))


def test_a_file_can_build_on_another(model, tiny_tokenizer, task_dir, tmp_path):
    derived = {"include": "mine_choice.yaml", "task": "mine_short", "doc_to_text": "{{question}}"}
    (task_dir / "mine_short.yaml").write_text(yaml.safe_dump(derived))
    run(model, tiny_tokenizer, task_dir, tmp_path, tasks=["mine_short"])
    assert read(tmp_path / "mine_short.jsonl")[0]["prompt"] == "what is number 0?"


def test_a_row_that_is_no_text_is_refused_by_its_place(tmp_path):
    rows = [{"query": "a", "choices": ["x", "y"], "gold": 0}] * 2
    rows[1] = rows[1] | {"choices": ["x", "\ud800"]}
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    config = {
        "task": "half",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(config), "utf-8")
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*holds half a surrogate pair"):
        load_tasks(["half"], source=TaskSource(str(tmp_path)), shots=0, seed=0)
