"""The paper's tasks as files: on the real rows, the right answers score 1 and others 0."""

import json
import re
from itertools import islice

import pytest
import yaml
from files import ROOT
from launching import long
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag.utils import preprocess

from eval.graders.sandbox_command import RunCode
from eval.tasks.benchmark import quiet
from eval.tasks.sample_rows import cluster_key, cluster_of
from eval.tasks.task_files import TaskSource, check_tasks, load_tasks
from recipes import base_vs_chat
from sft.config.preset import load_preset
from sft.config.sections import Source
from sft.data.readers import read_records
from sft.errors import UserError
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl

FOLDER = ROOT / "recipes" / "paper"
LETTERS = "ABCD"

# What a model that knows the answer would write, from the raw row; every form of it is accepted.
WRITTEN = {
    "gsm8k": lambda row: [
        row["answer"],
        f"So 3 of 7 make it.\n\nThe answer is ${row['answer'].split('#### ')[1]}.00.",
    ],
    "mgsm_zh": lambda row: [
        f"答案是{row['answer']}。",
        f"先算 2 + 2 = 4。\n\n所以一共 {row['answer']} 个。",
    ],
    "svamp": lambda row: [f"The answer is {row['answer']}.", f" 9 - 2 = {row['answer']}\n"],
    "triviaqa": lambda row: [row["aliases"][-1], f" {row['aliases'][0].lower()}\nQuestion"],
    "bbh_cot_fewshot": lambda row: [
        f"We think. So the answer is {row['target']}.",
        f"**Thought**\n\nThe answer is: {row['target']}",
    ],
    "agieval_gaokao": lambda row: [
        f"{''.join(row['label'])}。因为A不对",
        f"A项错误，B项也要看。因此答案是({'、'.join(row['label'])})。",
        f" ({', '.join(row['label'])}).",
    ],
    "agieval_gaokao_mathcloze": lambda row: [
        f"{row['answer']}\n问题",
        f"由题意得 $x$。\n所以答案是：{row['answer']}。",
        f"由题意得 $x = 2$。\n\\[\\boxed{{{row['answer'].replace('$', '')}}}\\]",
    ],
}
CHOICES = {
    "mmlu": lambda row: ("ABCD".index(row["answer"]), list(LETTERS)),
    "ceval-valid": lambda row: ("ABCD".index(row["answer"]), list(LETTERS)),
    "arc_easy": lambda row: (row["gold"], row["choices"]),
    "arc_challenge": lambda row: (row["gold"], row["choices"]),
    "openbookqa": lambda row: (row["gold"], row["choices"]),
    "hellaswag": lambda row: (row["label"], None),
    "boolq": lambda row: (row["gold"], row["choices"]),
    "copa": lambda row: (row["gold"], row["choices"]),
}
TEXTS = ("lambada_openai", "lambada_text")
# Judged by programs of ours: tests/eval/graders/test_code_execution.py,
# tests/eval/graders/test_ifeval.py.
OWN = ["humaneval", "leetcode", "ifeval"]
# Of data that is not among the real files: rows of their form, ours.
MATH = {
    "hendrycks_math": [
        {
            "problem": "What is half of a third?",
            "solution": "We have $\\frac{1}{2}\\cdot\\frac{1}{3}=\\boxed{\\frac{1}{6}}$.",
            "level": "Level 1",
            "type": "Prealgebra",
        },
        {
            "problem": "For which $x$ is $\\sqrt{x-2}$ below $1$?",
            "solution": "From $2$ on, up to $3$: $x \\in \\boxed{[2,3)}$ is it.",
            "level": "Level 2",
            "type": "Algebra",
        },
    ],
    "cmath": [
        {"grade": 3, "question": "一块地的四分之三种菜，其余的占几分之几？", "golden": "1/4"},
        {"grade": 4, "question": "一盒有12支笔，6盒有多少支？", "golden": "72"},
    ],
}
FILES = {"hendrycks_math": "math_test.jsonl", "cmath": "cmath.jsonl"}
MATH_ANSWERS = {
    "hendrycks_math": (
        lambda row: row["solution"],
        lambda row: {"1": "The answer is 0.5/3.", "2": "The answer is $[2, 3)$."}[row["level"][-1]],
    ),
    "cmath": (
        lambda row: f"先想一想，有3步。\n所以是{row['golden']}。",
        lambda row: {3: "剩下的占百分之25。", 4: "6×12=72（支）\n答：6盒有72支。"}[row["grade"]],
    ),
}
NAMES = [*WRITTEN, *CHOICES, *TEXTS, *OWN, *MATH]


class Oracle(LM):
    """Writes the n-th form of the right answer, or of the next question's answer."""

    def __init__(self, forms, *, form, wrong=False):
        super().__init__()
        self.forms, self.form, self.wrong = forms, form, wrong

    def generate_until(self, requests):
        docs = [request.doc for request in requests]
        given = docs[1:] + docs[:1] if self.wrong else docs
        answers = []
        for doc, request in zip(given, requests, strict=True):
            forms = self.forms(doc)
            text = forms[self.form % len(forms)]
            for stop in request.args[1]["until"]:
                text = text.split(stop)[0]
            answers.append(text)
        return answers

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


@pytest.fixture
def source(real_data):
    return TaskSource(str(FOLDER / "tasks"), str(real_data))


def load(name, source, *, shots=0):
    with quiet():
        (task,) = load_tasks([name], source=source, shots=shots, seed=0).values()
    return task


def score(task, oracle, *, limit):
    with quiet():
        result = evaluate(oracle, {"tasks": {"t": task}}, limit=limit, bootstrap_iters=0)
    metric = task.get_config("metric_list")[0]["metric"]
    return [sample[metric] for sample in result["samples"]["t"]]


SHARED = {  # what questions share, and how many different values it has
    "mmlu": 57,
    "ceval-valid": 52,
    "bbh_cot_fewshot": 27,
    "boolq": 2938,
    "hellaswag": 704,
    "agieval_gaokao": 177,  # 176 passages; most questions have none
}


@pytest.mark.real
@pytest.mark.parametrize("name", SHARED)
def test_questions_of_one_passage_or_subject_share_a_cluster(source, name):
    task = load(name, source)
    found = {cluster_of(cluster_key(task), doc) for doc in task.test_docs()}
    assert len(found) == pytest.approx(SHARED[name], abs=2)


def test_every_file_is_tried_here():
    files = [p for p in (FOLDER / "tasks").glob("*.yaml") if not p.name.startswith("_")]
    assert {path.stem for path in files} == set(NAMES)
    assert {yaml.safe_load(p.read_text())["task"] for p in files} == set(NAMES)


def test_the_protocol_names_tasks_of_lm_eval_and_the_papers_shots():
    preset = load_preset(
        FOLDER / "protocol.yaml", overrides=["model.name_or_path=m", *base_vs_chat._MEASURE_ALONE]
    )
    section = preset.eval
    assert set(section.tasks) <= set(TaskManager().all_tasks)
    assert set(section.per_task) <= set(section.tasks)
    shots = {name: (o.base_shots, o.chat_shots) for name, o in section.per_task.items()}
    zero = {"mmlu": 5, "gsm8k": 8, "hendrycks_math": 4, "ceval-valid": 5, "cmmlu": 5}
    assert {name: shots[name] for name in zero} == {name: (k, 0) for name, k in zero.items()}
    assert shots["triviaqa"] == (5, 5) and shots["drop"] == (1, 1)
    metrics = {name: o.metric for name, o in section.per_task.items()}
    assert metrics["hendrycks_math"] == "math_equal"
    for name in ("arc_easy", "arc_challenge", "openbookqa"):
        assert metrics[name] == "acc_mutual_info"
    assert metrics["hellaswag"] == "acc_per_token"


@pytest.mark.real
@pytest.mark.parametrize("name", WRITTEN)
def test_right_answers_score_one_however_they_are_written(source, name):
    task = load(name, source)
    for form in range(len(WRITTEN[name](task.eval_docs[0]))):
        scores = score(load(name, source), Oracle(WRITTEN[name], form=form), limit=300)
        # A few TriviaQA aliases are nothing but punctuation, which the comparison drops.
        assert sum(scores) >= 0.99 * len(scores), form


@pytest.mark.real
@pytest.mark.parametrize("name", WRITTEN)
def test_answers_to_the_next_question_score_as_seldom_as_they_agree(source, name):
    task = load(name, source)
    docs = list(islice(iter(task.eval_docs), 100))
    targets = [str(task.doc_to_target(doc)) for doc in docs]
    same = sum(a == b for a, b in zip(targets, targets[1:] + targets[:1], strict=True))
    assert sum(score(task, Oracle(WRITTEN[name], form=0, wrong=True), limit=100)) <= same + 3


@pytest.mark.parametrize("name", MATH)
def test_worked_answers_score_one_and_those_to_another_question_zero(tmp_path, name):
    """In lm-eval's own evaluation; the examples are worked, and none is the question itself."""
    write_jsonl(tmp_path / FILES[name], MATH[name])
    source = TaskSource(str(FOLDER / "tasks"), str(tmp_path))

    def scores(form, *, wrong=False):
        oracle = Oracle(lambda row: [MATH_ANSWERS[name][form](row)], form=0, wrong=wrong)
        with quiet():
            (task,) = load_tasks([name], source=source, shots=1, seed=0).values()
            result = evaluate(oracle, {"tasks": {"t": task}}, bootstrap_iters=0)
        for sample, other in zip(result["samples"]["t"], MATH[name][::-1], strict=True):
            prompt = sample["arguments"][0][0]
            question = other.get("problem") or other["question"]
            assert prompt.index(question) < prompt.index(other.get("solution") or other["golden"])
        return [sample["math_equal"] for sample in result["samples"]["t"]]

    for form in (0, 1):
        assert scores(form) == [1, 1] and scores(form, wrong=True) == [0, 0]


@pytest.mark.real
@pytest.mark.parametrize("name", CHOICES)
def test_choices_and_the_right_one_are_the_rows_own(source, name):
    task = load(name, source, shots=2 if name in ("mmlu", "ceval-valid") else 0)
    for doc in list(task.eval_docs)[::37]:
        gold, choices = CHOICES[name](doc)
        offered = task.doc_to_choice(doc)
        target = task.doc_to_target(doc)
        assert (offered.index(target) if isinstance(target, str) else target) == gold
        assert choices is None or offered == choices
        assert len(set(offered)) == len(offered) and all(offered)
        assert len(task.doc_to_text(doc)) > 10


@pytest.mark.real
def test_hellaswag_is_read_as_lm_eval_reads_it(source):
    task = load("hellaswag", source)
    for doc in task.eval_docs:
        asked = preprocess(f"{doc['activity_label']}: {doc['ctx_a']} {doc['ctx_b'].capitalize()}")
        assert task.doc_to_text(doc) == asked
        assert task.doc_to_choice(doc) == [preprocess(ending) for ending in doc["endings"]]


@pytest.mark.real
@pytest.mark.parametrize("name", ["mmlu", "ceval-valid"])
def test_examples_are_of_the_questions_own_subject(source, real_data, name):
    task = load(name, source, shots=5)
    file = f"{name.split('-')[0]}_dev.jsonl"
    dev = [record.fields for record in read_records(Source(str(real_data / "eval" / file)))]
    for doc in list(task.eval_docs)[::501]:
        prompt = task.fewshot_context(doc, num_fewshot=5)
        own = [row["question"].strip() for row in dev if row["subject"] == doc["subject"]]
        assert len(own) == 5
        places = [prompt.index(question) for question in own]
        assert places == sorted(places)
        assert prompt.index(doc["question"].strip(), places[-1]) > places[-1]


@pytest.mark.real
def test_reading_numbers_agrees_with_the_graders_of_gsm8k(real_data, source):
    """OpenAI's 6B and 175B fine-tunes and their verdicts, 600 questions, written to end in A: n."""
    task = load("gsm8k", source)
    docs = {doc["question"]: doc for doc in task.eval_docs}
    right = total = 0
    for row in read_jsonl(real_data / "eval" / "gsm8k_example_model_solutions.jsonl"):
        for model in ("6b_finetuning", "175b_finetuning"):
            doc = docs.get(row["question"])
            if doc is None:
                continue
            answer = row[model]["solution"].replace("\nA: ", "\n#### ")
            (given,) = task._filters[0].filters[0]().apply([[answer]], [doc])[0:1]
            found = task.process_results(doc, [given[0]])["exact_match"]
            right += found == row[model]["is_correct"]
            total += 1
    assert total > 1000 and right >= 0.995 * total


# By letter, by perplexity, unconditional, generated, with examples of their own, a text, a program.
KINDS = ["mmlu", "ceval-valid", "hellaswag", "arc_easy", "gsm8k", "triviaqa", "bbh_cot_fewshot"]
KINDS += ["lambada_text", "humaneval", "ifeval"]


@long
@pytest.mark.real
@pytest.mark.slow
def test_tasks_of_each_kind_run_in_both_formats_on_a_real_model(real_data, tmp_path, capsys):
    """stories260K with a longer window, each answer cut to a few tokens in copies of the files."""
    model = tmp_path / "model"
    model.mkdir()
    for file in (real_data / "models" / "stories260K").glob("*.*"):
        if file.suffix in (".json", ".safetensors"):
            (model / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for file in (FOLDER / "tasks").glob("*.yaml"):
        text = re.sub(r"max_gen_toks: \d+", "max_gen_toks: 4", file.read_text())
        (tasks / file.name).write_text(text)
    given = ["--base", str(model), "--chat", str(model), "--to", str(tmp_path / "run")]
    given += ["--preset", str(FOLDER / "protocol.yaml"), "--task-dir", str(tasks)]
    given += ["--data-dir", str(real_data), "--tasks", ",".join(KINDS), "--limit", "1"]
    given.append("--allow-code-execution")
    assert base_vs_chat.main(given) == 0
    results = read_json(tmp_path / "run" / "results.json")
    asked = results["benchmarks"]
    assert {*asked, *results["language"]["benchmarks"]} == set(KINDS)
    formats = {
        name: [(e["shots"], e["chat_template"]) for e in asked[name].values()] for name in asked
    }
    assert formats["mmlu"] == [(5, False), (0, True)] == formats["ceval-valid"]
    assert formats["gsm8k"] == [(8, False), (0, True)]
    assert formats["triviaqa"] == [(5, False), (5, True)]
    assert formats["bbh_cot_fewshot"] == [(3, False), (3, True)]
    assert asked["arc_easy"]["base"]["metric"] == "acc_mutual_info"
    assert asked["hellaswag"]["chat"]["metric"] == "acc_per_token"
    text = results["language"]["benchmarks"]["lambada_text"]
    assert text["base"] == text["chat"] and 1 < text["base"]["bits_per_byte"] < 5
    # The two are one model, so in one format nothing is left of any difference.
    plain = results["same_format"]["plain"]
    assert {row["delta"] for row in plain["deltas"]} == {0.0}
    assert "acc_per_token" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.real
def test_missing_data_of_a_task_is_named_before_any_model_loads(source, tmp_path):
    there = [name for name in NAMES if name not in MATH]
    check_tasks(there, source=source, code=RunCode.CONFINED)
    with pytest.raises(
        UserError, match=r"mmlu.yaml: data file mmlu_test.jsonl.gz does not exist; put"
    ):
        check_tasks(["mmlu"], source=TaskSource(source.folder, str(tmp_path)))
