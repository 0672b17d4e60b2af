"""Code tasks: which program an answer stands for, who may run it, and what the rows hold."""

import gzip
import json

import pytest
import yaml
from files import ROOT
from tiny_models import make_tiny_model

from eval.graders.code_execution import program_of, score_samples
from eval.graders.sandbox_command import RunCode
from eval.graders.sandbox_probe import find_isolation
from eval.tasks.benchmark import TaskFormat, run_benchmark
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource, check_tasks, load_tasks
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring
from sft.system.atomic_files import read_jsonl

SHIPPED = ROOT / "recipes" / "paper" / "tasks"
HUMANEVAL = yaml.safe_load((SHIPPED / "humaneval.yaml").read_text()) | {
    "task": "humaneval_local",
    "unsafe_code": True,
    "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 16},
}
LEETCODE = HUMANEVAL | yaml.safe_load((SHIPPED / "leetcode.yaml").read_text())
LEETCODE["dataset_kwargs"] = {"data_files": {"test": "leetcode.jsonl"}}
LEETCODE.pop("include")
ROWS = [
    {
        "prompt": f"def plus_{i}(x):\n    '''adds {i}'''\n",
        "entry_point": f"plus_{i}",
        "test": f"def check(f):\n    assert f(1) == {1 + i}\n",
    }
    for i in range(3)
]


def write_task(folder, config, rows):
    name = config["dataset_kwargs"]["data_files"]["test"]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    return config["task"]


def verdicts(folder, config, rows, answers):
    """(passed, reason) of each answer, through the loaded task."""
    name = write_task(folder, config, rows)
    task = load_tasks([name], source=TaskSource(str(folder)), shots=0, seed=0)[name]
    samples = [
        {"doc": doc, "target": task.doc_to_target(doc), "resps": [[answer]]}
        for doc, answer in zip(task.eval_docs, answers, strict=True)
    ]
    isolation = find_isolation(RunCode.CONFINED)
    rows = score_samples(task, samples, isolation=isolation, label=None)
    assert {tuple(row["metrics"]) for row in rows} == {("pass@1",)}
    return [(row["pass@1"] == 1.0, row["outcome"]) for row in rows]


START = "import math\n\ndef f(x):\n    '''Doc.'''\n"
OPEN = "class Solution:\n    def f(self, x):\n        "
WHOLE = "class Solution:\n    def f(self, x):\n        return x\n"


@pytest.mark.parametrize(
    ("answer", "start", "entry", "program"),
    [
        ("    return x\n", START, "f", START + "    return x\n"),
        # A base model goes on with other things.
        ("    return x\n\ndef g():\n    pass", START, "f", START + "    return x\n"),
        (
            "    y = x\n\n    return y\n```\nThis is",
            START,
            "f",
            START + "    y = x\n\n    return y",
        ),
        ("return x\n\nclass B:\n  pass", OPEN, "Solution", OPEN + "return x\n"),
        # A chat model writes the whole, between sentences.
        (f"Sure:\n```python\n{WHOLE}```\nDone.", OPEN, "Solution", f"{OPEN}pass\n{WHOLE}"),
        (f"```\n{WHOLE}", OPEN, "Solution", f"{OPEN}pass\n{WHOLE}"),  # cut before the fence's end
        (WHOLE, OPEN, "Solution", f"{OPEN}pass\n{WHOLE}"),
        (
            "First:\n```\npip install x\n```\nThen:\n```python\ndef f(x): return 1\n```\n",
            START,
            "f",
            START + "pass\ndef f(x): return 1\n",
        ),
    ],
)
def test_program_of_an_answer(answer, start, entry, program):
    assert program_of(answer, start=start, entry=entry) == program
    compile(program, "program", "exec")


def test_programs_are_judged_by_the_tests_of_their_document(tmp_path):
    answers = ["    return x", "Here:\n```python\ndef plus_1(x):\n    return x + 1\n```", "    x"]
    assert verdicts(tmp_path, HUMANEVAL, ROWS, answers) == [
        (True, "passed"),
        (True, "passed"),
        (False, "AssertionError (line 2: assert f(1) == 3)"),
    ]


def test_nothing_runs_without_being_asked_for(tmp_path):
    name = write_task(tmp_path, HUMANEVAL, ROWS)
    refusal = "task humaneval_local runs programs .* --allow-code-execution .*leave the task out"
    with pytest.raises(UserError, match=refusal):
        check_tasks([name], source=TaskSource(str(tmp_path)))
    check_tasks([name], source=TaskSource(str(tmp_path)), code=RunCode.CONFINED)
    # The file need not say that it is unsafe.
    write_task(tmp_path, {k: v for k, v in HUMANEVAL.items() if k != "unsafe_code"}, ROWS)
    with pytest.raises(UserError, match=refusal):
        check_tasks([name], source=TaskSource(str(tmp_path)))


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_lm_evals_own_code_tasks_are_never_run(name):
    """They run programs in the evaluator's process, some at import."""
    with pytest.raises(UserError, match=rf"task {name} .*in this very process; give it as a file"):
        check_tasks([name], source=TaskSource(), code=RunCode.CONFINED)


def test_a_task_that_does_not_say_how_is_refused(tmp_path):
    broken = HUMANEVAL | {"metadata": {"program": {"start": "{{prompt}}"}}}
    name = write_task(tmp_path, broken, ROWS)
    with pytest.raises(UserError, match=r"metadata.program: \{start: ..., entry: ...}"):
        check_tasks([name], source=TaskSource(str(tmp_path)), code=RunCode.CONFINED)


def test_benchmarks_store_program_reason_and_isolation(tmp_path, tiny_tokenizer):
    model = enable_scoring(make_tiny_model())
    name = write_task(tmp_path, HUMANEVAL, ROWS)
    file = tmp_path / "samples" / f"{name}.jsonl"

    def run(**options):
        return run_benchmark(
            LmEvalModel(model, tiny_tokenizer, chat=False, seed=0),
            task=name,
            source=TaskSource(str(tmp_path)),
            form=TaskFormat(chat=False, shots=2),
            limit=None,
            file=file,
            **options,
        )

    with pytest.raises(UserError, match="--allow-code-execution"):
        run()
    unknown = {"program": {"start": "{{promt}}", "entry": "f"}}
    write_task(tmp_path, HUMANEVAL | {"metadata": unknown}, ROWS)
    with pytest.raises(UserError, match=r"metadata.program: 'promt' is undefined; name one of"):
        run(code=RunCode.CONFINED)
    write_task(tmp_path, HUMANEVAL, ROWS)
    entry = run(code=RunCode.CONFINED)
    assert entry["metric"] == "pass@1" and entry["n"] == 3 and entry["shots"] == 0
    assert entry["isolation"] == find_isolation(RunCode.CONFINED).name
    stored = read_jsonl(file)
    for row, doc in zip(stored, ROWS, strict=True):
        expected = program_of(row["answer"], start=doc["prompt"], entry=doc["entry_point"])
        assert row["filtered"] == expected
        assert row["score"] == (row["outcome"] == "passed")


@pytest.mark.real
def test_all_canonical_solutions_of_humaneval_pass(real_data, tmp_path):
    rows = read_jsonl(real_data / "eval/humaneval.jsonl")
    right = verdicts(tmp_path, HUMANEVAL, rows, [row["canonical_solution"] for row in rows])
    assert [reason for passed, reason in right if not passed] == []
    # As a chat model writes them, whole and fenced; and a wrong answer to each.
    some = rows[::8]
    fenced = [f"Yes.\n```python\n{row['prompt']}{row['canonical_solution']}\n```" for row in some]
    assert all(passed for passed, _ in verdicts(tmp_path, HUMANEVAL, some, fenced))
    wrong = verdicts(tmp_path, HUMANEVAL, some, ["    return 'no'"] * len(some))
    assert not any(passed for passed, _ in wrong)


SOLVED = {
    "weekly-contest-381-minimum-number-of-pushes-to-type-word-i": (
        "return sum(1 + i // 8 for i in range(len(word)))\n"
    ),
    "weekly-contest-381-minimum-number-of-pushes-to-type-word-ii": (
        "counts = sorted(Counter(word).values(), reverse=True)\n"
        "        return sum(n * (1 + i // 8) for i, n in enumerate(counts))\n"
    ),
    "biweekly-contest-122-divide-an-array-into-subarrays-with-minimum-cost-i": (
        "return nums[0] + sum(heapq.nsmallest(2, nums[1:]))\n"
    ),
    "weekly-contest-380-count-elements-with-maximum-frequency": (
        "counts = Counter(nums).values()\n"
        "        return sum(n for n in counts if n == max(counts))\n"
    ),
}


@pytest.mark.real
def test_leetcode_problems_run(real_data, tmp_path):
    path = real_data / "eval/leetcode_20240121.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    solved = [row for row in rows if row["task_id"] in SOLVED]
    assert len(solved) == len(SOLVED)
    answers = [SOLVED[row["task_id"]] for row in solved]
    whole = [f"```python\n{row['prompt']}{SOLVED[row['task_id']]}```" for row in solved]
    for given in (answers, whole):
        assert verdicts(tmp_path, LEETCODE, solved, given) == [(True, "passed")] * len(solved)
    # An answer that does nothing compiles with every problem's start and solves none of them.
    some = rows[::9]
    for passed, reason in verdicts(tmp_path, LEETCODE, some, ["pass"] * len(some)):
        assert not passed and reason.startswith("AssertionError")
