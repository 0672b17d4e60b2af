"""The data of the quickstart: reproducible, evenly divided, true, and as committed."""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
from collections import Counter
from itertools import islice

import pytest
import yaml
from files import ROOT

from recipes.quickstart.generate import (
    benchmarks,
    chats,
    everyday,
    functions,
    stories,
    word_problems,
)
from recipes.quickstart.generate.bilingual import LANGUAGES, side
from recipes.quickstart.generate.gazetteer import make_gazetteer
from recipes.quickstart.generate.manifest import pages_hash
from recipes.quickstart.generate.pages import pages
from recipes.quickstart.generate.splits import held_out
from recipes.quickstart.generate.world import make_world, to_jsonl, user_texts
from sft.cleaning.decontamination import BenchmarkQuestion, QuestionIndex
from sft.cleaning.near_duplicates import row_text

FOLDER = ROOT / "recipes" / "quickstart"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
KINDS = ("math", "code", "dialogue", "safety")


@pytest.fixture(scope="module")
def world():
    return make_world(MANIFEST["seed"])


@pytest.fixture(scope="module")
def entities():
    return make_gazetteer(MANIFEST["seed"])


def test_committed_rows_are_the_generated_rows(world):
    listed = {name for name in MANIFEST["files"] if name.startswith("data/")}
    assert listed == {f"data/{stem}.jsonl" for stem in world}
    for stem, rows in world.items():
        digest = hashlib.sha256(to_jsonl(rows).encode()).hexdigest()
        assert digest == MANIFEST["files"][f"data/{stem}.jsonl"], stem


def test_committed_files_have_the_manifest_hashes():
    on_disk = {
        str(path.relative_to(FOLDER).as_posix())
        for folder in ("base", "data")
        for path in (FOLDER / folder).iterdir()
    }
    assert on_disk == set(MANIFEST["files"])
    for name, digest in MANIFEST["files"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_pretraining_pages_are_those_the_base_was_trained_on():
    assert pages_hash(MANIFEST["seed"]) == MANIFEST["pages_sha256"]


def test_another_seed_makes_other_facts_and_rows(entities):
    other = make_gazetteer(MANIFEST["seed"] + 1)
    assert [e.facts for e in other] != [e.facts for e in entities]
    assert chats.sft_rows(1, other, total=20) != chats.sft_rows(0, entities, total=20)


def test_rows_have_the_papers_proportions(world):
    counts = Counter(row["kind"] for row in world["sft"])
    total = len(world["sft"])
    assert counts["safety"] / total == pytest.approx(0.2, abs=0.001)
    helpful = total - counts["safety"]
    for kind, share in {"math": 0.466, "code": 0.222, "dialogue": 0.312}.items():
        assert counts[kind] / helpful == pytest.approx(share, abs=0.002), kind


def test_chats_alternate_and_some_dialogues_have_several_turns(world):
    lengths = Counter()
    for row in world["sft"]:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in row["messages"])
        assert row["language"] in LANGUAGES
        lengths[row["kind"], len(roles) > 2] += 1
    several = lengths["dialogue", True] / (lengths["dialogue", True] + lengths["dialogue", False])
    assert 0.1 < several < 0.5


def test_measured_prompts_are_in_no_trained_row(world):
    trained = user_texts(world["sft"]) | user_texts(world["preference"])
    for stem in ("facts", "math", "code", "completion"):
        for doc in world[stem]:
            question = doc["prompt"].partition(": ")[2].rpartition("\n")[0] or doc["prompt"]
            assert not any(question in text for text in trained), doc["id"]
    assert not trained & user_texts(world["repetition"])


def test_no_trained_row_holds_a_question_by_the_check_that_runs_before_training(world):
    index = QuestionIndex(
        BenchmarkQuestion(stem, doc["id"], doc["prompt"])
        for stem in ("facts", "math", "code", "completion")
        for doc in world[stem]
    )
    texts = [row_text(row) for stem in ("sft", "preference") for row in world[stem]]
    assert index.find(texts) == []


def test_no_pretraining_page_asks_about_a_held_out_entity_or_holds_a_benchmark(world, entities):
    hidden = [side(e.name, lang) for e in entities if e.held_out for lang in LANGUAGES]
    stated = Counter()
    measured = [doc["prompt"] for stem in ("math", "code") for doc in world[stem]]
    for page in islice(pages(MANIFEST["seed"], entities), 1500):
        asked = "\n".join(re.findall(r"^(?:Question|问题): (.*)$", page, flags=re.M))
        for name in hidden:
            assert name not in asked
            stated[name] += name in page
        assert not any(prompt in page for prompt in measured)
    assert min(stated[name] for name in hidden) > 5  # but all of them are described


def test_benchmark_keys_and_training_keys_are_disjoint():
    train = benchmarks.math_docs(3, total=40, held_out=False)
    test = benchmarks.math_docs(3, total=40, held_out=True)

    def numbers(doc):
        return doc["cluster"], tuple(re.findall(r"\d+", doc["prompt"]))

    assert not {numbers(d) for d in train} & {numbers(d) for d in test}
    share = sum(held_out(f"key {i}") for i in range(4000)) / 4000
    assert share == pytest.approx(1 / 8, abs=0.02)


def template_of(text):
    """Return the template of the word problem in a text, and the problem's numbers."""
    for template in word_problems.TEMPLATES:
        for question in template.question:
            pattern = re.sub(r"\\{[nmtx]\\}", r"\\w+", re.escape(question))
            pattern = re.sub(r"\\{\w+\\}", r"\\d+", pattern)
            if found := re.search(pattern, text):
                return template.name, tuple(re.findall(r"\d+", found.group()))
    raise AssertionError(f"of no template: {text}")


def function_of(text, constant=lambda value: value):
    """Return the function in a text, with normalized names."""
    (node,) = ast.parse(re.search(r"def .*:\n(?:    .*\n?)+", text).group()).body
    names = {node.name: "f", node.args.args[0].arg: "x"}
    for part in ast.walk(node):
        if isinstance(part, ast.Constant):
            part.value = constant(part.value)
        elif isinstance(part, ast.Name):
            part.id = names.get(part.id, part.id)
        elif isinstance(part, ast.arg):
            part.arg = "x"
    node.name = "f"
    return ast.unparse(node)


def family_of(text):
    """Return what functions of one family share: the body without numbers and words, the input."""
    name = re.search(r"def (\w+)", text).group(1)
    given = re.search(rf"\b{name}\(([\[\"]?)", text.partition("return")[2]).group(1)
    return function_of(text, lambda value: type(value)()), given


def call_of(text):
    """Return the function and its argument."""
    return function_of(text), re.search(r"\((.*)\)(?= return| 返回)", text).group(1)


@pytest.fixture(scope="module")
def exercises(entities):
    """Return the questions of many pages: word problems and functions."""
    sheets = "\n\n".join(islice(pages(MANIFEST["seed"], entities), 1500)).split("\n\n")
    closed = re.compile("^(?:Answer|回答): .*(?:The answer|答案是)", re.M)
    asked = [text for text in sheets if closed.search(text)]
    return [t for t in asked if "def " not in t], [t for t in asked if "def " in t]


def test_rows_and_pages_are_spread_over_all_templates_and_families(world, exercises):
    drawn = random.Random("families")
    families = [
        {family_of(f"{d.source}\n{d.call}") for d in (family(drawn, "f", "x") for _ in range(40))}
        for family in functions.FAMILIES
    ]
    assert len(set().union(*families)) == sum(len(forms) for forms in families)
    rows = {kind: [r["messages"] for r in world["sft"] if r["kind"] == kind] for kind in KINDS}
    math = [template_of(user["content"])[0] for user, _ in rows["math"]]
    code = [family_of("\n".join(m["content"] for m in messages)) for messages in rows["code"]]
    sums, calls = exercises
    for found in (math, [template_of(text)[0] for text in sums]):
        counts = Counter(found)
        assert len(counts) == len(word_problems.TEMPLATES) >= 30
        assert min(counts.values()) > len(found) / len(counts) / 4
    for found in (code, [family_of(text) for text in calls]):
        counts = [sum(found.count(form) for form in forms) for forms in families]
        assert len(counts) >= 24 and sum(counts) == len(found)
        assert min(counts) > len(found) / len(counts) / 4


def test_pages_hold_no_problem_or_call_of_a_benchmark_under_other_names(exercises):
    sums, calls = exercises
    math = benchmarks.math_docs(5, total=300, held_out=True)
    code = benchmarks.code_docs(5, total=200, held_out=True)
    seen = {template_of(text) for text in sums} | {call_of(text) for text in calls}
    asked = {template_of(doc["prompt"]) for doc in math} | {call_of(doc["prompt"]) for doc in code}
    assert len(asked) > 400
    assert [question for question in asked if question in seen] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_written_step_of_a_word_problem_is_true(language):
    rng = random.Random(f"steps/{language}")
    templates = Counter()
    for _ in range(1000):
        problem = word_problems.make_problem(rng, stories.NAMES, language=language)
        templates[problem.key.split(":")[0]] += 1
        last = None
        for step in problem.steps:
            ((left, right),) = re.findall(r"(\d+ [-+*/] \d+) = (\d+)", step)
            assert eval(left) == int(right), problem
            last = right
        assert last == problem.final
        assert re.search(rf"(?:The answer is|答案是) {problem.final}[.。]$", problem.answer)
        assert "{" not in problem.question + problem.answer
    assert len(templates) == len(word_problems.TEMPLATES)


WORDS = {
    "odd|奇数": lambda items: [i for i in items if i % 2],
    "even|偶数": lambda items: [i for i in items if not i % 2],
    "larg|大": max,
    "small|小": min,
    "first|第一": lambda items: items[0],
    "last|最后": lambda items: items[-1],
    "sum|和": sum,
}


def true_step(step, run, argument):
    """Return whether a step states the function, its argument and its result correctly."""
    numbers = [int(number) for number in re.findall(r"\d+", step)]
    of = next((make for word, make in WORDS.items() if re.search(word, step)), None)
    result = run(argument)
    if re.search("It keeps|保留", step):
        return result == ([i for i in argument if i > numbers[0]] if numbers else of(argument))
    if re.search("to every number|每个数", step):
        return result == [i + numbers[0] for i in argument]
    if re.search("There are|共有", step):
        return numbers == [len(result if isinstance(result, list) else argument)]
    if re.search("greater|大于", step):
        return (numbers[0] > numbers[1]) != bool(re.search("not|不", step))
    if re.search("Backwards|倒过来", step):
        return re.findall(r"\b[a-z]\b", step) == list(reversed(argument))
    if re.search("starts at|开始", step):
        return numbers == [run(0)]
    if re.search("The loop|循环", step):
        return numbers == [argument, *(run(i + 1) for i in range(argument))]
    if re.search("(?:larg|small)er|较", step):
        return numbers[0] == argument and result == numbers[2] == of(numbers[:2])
    if re.search("item is|的?是 \\d+。", step) and of is not sum:
        return numbers == [of(argument)]
    formula = re.search(r"(?:y =|It returns|返回|The sum is|和是) (.*)[.。]", step).group(1)
    (value,) = {eval(part) for part in formula.split(" = ")}
    if of is sum:
        return value == sum(argument)
    return value == result or (step.startswith("y =") and "y" in run.__code__.co_varnames)


@pytest.mark.parametrize("language", LANGUAGES)
def test_reasoning_about_functions_agrees_with_python(language):
    rng = random.Random(f"calls/{language}")
    families = Counter()
    for _ in range(1000):
        problem = functions.make_evaluation(rng, language=language)
        families[problem.key.split(":")[0]] += 1
        source, called = call_of(problem.question)
        scope = {}
        exec(source, scope)
        for step in problem.steps:
            assert true_step(step, scope["f"], eval(called)), problem
        assert str(scope["f"](eval(called))) == problem.final
    assert len(families) == len(functions.FAMILIES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_stories_are_long_tell_of_both_people_and_hold_speech(language):
    rng = random.Random(f"stories/{language}")
    places = (("Ismoor", "伊斯原"),)
    told = []
    for _ in range(200):
        plot = stories.make_plot(rng, cast=stories.CAST, places=places)
        sentences = stories.tell(rng, plot, language=language)
        text = stories.join(sentences, language)
        assert 8 <= len(sentences) <= 32
        assert side(plot.first[0], language) in text and side(plot.second[0], language) in text
        assert ('"' in text) if language == "en" else ("“" in text)
        assert "{" not in text
        told.append(text)
    assert len(set(told)) == 200


def test_completion_choices_differ_and_the_right_one_is_not_the_longest(world):
    longest = 0
    for doc in world["completion"]:
        assert len({choice.strip() for choice in doc["choices"]}) == 4
        right = doc["choices"][doc["gold"]]
        longest += len(right) == max(len(choice) for choice in doc["choices"])
        assert right.strip() not in doc["prompt"]
    assert longest / len(world["completion"]) < 0.4


def test_facts_have_one_right_choice_and_come_from_held_out_entities(world, entities):
    hidden = {side(e.name, lang): e for e in entities if e.held_out for lang in LANGUAGES}
    for doc in world["facts"]:
        named = [e for name, e in hidden.items() if name in doc["prompt"]]
        assert named
        values = {side(v, doc["language"]) for e in named for v in e.facts.values()}
        assert doc["choices"][doc["gold"]] in values
        assert len(set(doc["choices"])) == 4


def test_repetition_prompts_go_a_little_outside_the_rows(world):
    rows = world["repetition"]
    assert len(rows) == len({row["id"] for row in rows}) == 200
    trained = "\n".join(user_texts(world["sft"]))
    for name, _ in stories.NEW_CAST:
        assert name[0] not in re.findall(r"\w+", trained)
    assert {row["language"] for row in rows} == set(LANGUAGES)


def test_references_can_be_checked(world):
    known = {"final", "any_of", "all_of", "none_of", "refuse"}
    for row in world["preference"]:
        assert set(row["reference"]) <= known
        assert row["messages"][-1]["role"] == "user"
    assert {row["kind"] for row in world["preference"]} == {"math", "code", "dialogue", "safety"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_lists_hold_the_number_of_items_asked_for(language):
    rng = random.Random(f"lists/{language}")
    for _ in range(100):
        exchange = everyday.enumerate_items(rng, chats.LISTS, language=language)
        wanted = int(re.search(r"\d+", exchange.question).group())
        assert len(re.findall(r"^\d+\. ", exchange.answer, flags=re.M)) == wanted


# Persons and towns, templates, families of functions, goals and episodes.
CLUSTERS = {"world_facts": 24, "world_math": 32, "world_code": 26, "world_completion": 26}


@pytest.mark.parametrize("task", CLUSTERS)
def test_task_files_point_at_data_and_extract_the_final_answer(task, world):
    config = yaml.safe_load((FOLDER / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
    assert config["task"] == task
    # Questions of one template, person or town are counted as such, and no one of them is much.
    shared = Counter(
        doc[config["metadata"]["cluster"]] for doc in world[task.removeprefix("world_")]
    )
    assert len(shared) >= CLUSTERS[task] and max(shared.values()) <= 200 / 6
    for path in config["dataset_kwargs"]["data_files"].values():
        assert (FOLDER / "tasks" / path).is_file()
    if config["output_type"] == "generate_until":
        pattern = config["filter_list"][0]["filter"][0]["regex_pattern"]
        for doc in world[task.removeprefix("world_")]:
            assert re.findall(pattern, doc["solution"])[0] == doc["final"]
            assert not any(stop in doc["solution"] for stop in config["generation_kwargs"]["until"])
