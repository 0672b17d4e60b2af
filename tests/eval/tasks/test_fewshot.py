import json
import random

import pytest
import yaml
from benchmark_runs import read, run
from made_up_tasks import CHOICE, NAMES, WRITTEN
from tiny_models import make_tiny_model

from eval.tasks.benchmark import quiet
from eval.tasks.fewshot import FittedShots
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource, load_tasks
from sft.packing.logprobs import enable_scoring


def test_a_question_that_does_not_fit_gets_fewer_examples(tiny_tokenizer, task_dir, tmp_path):
    """A prompt of k examples has about 35 k + 35 tokens; the answers up to 14, or 16 generated."""
    small = enable_scoring(make_tiny_model(max_position_embeddings=110))
    entries = run(small, tiny_tokenizer, task_dir, tmp_path, shots=3)
    for name in NAMES:
        assert entries[name]["shots"] == 3 and entries[name]["fewer_shots"] == 8
        for row in read(tmp_path / f"{name}.jsonl"):
            assert row["prompt"].count("Question:") == 2
            assert "what is number 7?" in row["prompt"]
    wide = run(enable_scoring(make_tiny_model()), tiny_tokenizer, task_dir, tmp_path, shots=3)
    assert all("fewer_shots" not in entry for entry in wide.values())


@pytest.mark.parametrize("window", [400, 4096])
def test_a_long_question_leaves_the_global_generators_as_one_prompt_does(
    tiny_tokenizer, task_dir, window
):
    """Of tasks whose texts are drawn, as some of lm-eval's are."""
    (task,) = load_tasks(NAMES[1:], source=TaskSource(str(task_dir)), shots=3, seed=0).values()
    written = task.doc_to_text
    task.doc_to_text = lambda doc, *form: f"{random.random()} {written(doc, *form)}"
    docs = [dict(doc) for doc in task.eval_docs]
    docs[1]["question"] = "long " * 40
    random.seed(5)
    plain = [task.fewshot_context(doc, num_fewshot=3) for doc in docs]
    after = random.random()
    model = enable_scoring(make_tiny_model(max_position_embeddings=window))
    fitted = FittedShots(task, LmEvalModel(model, tiny_tokenizer, chat=False))
    task.set_fewshot_seed(seed=0)
    random.seed(5)
    asked = [task.fewshot_context(doc, num_fewshot=3) for doc in docs]
    assert random.random() == after
    assert [a == b for a, b in zip(asked, plain, strict=True)].count(False) == len(fitted.fewer)
    assert len(fitted.fewer) == (window == 400)


def test_one_long_question_leaves_the_examples_of_the_others_alone(
    tiny_tokenizer, task_dir, tmp_path
):
    """With examples drawn at random, lm-eval's way: the window decides on the long one alone."""
    rows = [
        json.loads(line) for line in (task_dir / "../data/choice.jsonl").read_text().splitlines()
    ]
    rows[2]["question"] = "what is number 2, " + "and so on, " * 12 + "?"
    shots = [row | {"question": f"example {i}?"} for i, row in enumerate(rows[:2] * 6)]
    for name, part in (("choice", rows), ("shots", shots)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (task_dir / f"../data/{name}.jsonl").write_text(lines)
    drawn = {"fewshot_config": {"sampler": "default"}}
    for config in (CHOICE, WRITTEN):
        (task_dir / f"{config['task']}.yaml").write_text(yaml.safe_dump(config | drawn))
    prompts = {}
    for window in (240, 4096):
        model = enable_scoring(make_tiny_model(max_position_embeddings=window))
        entries = run(model, tiny_tokenizer, task_dir, tmp_path, shots=3)
        for name in NAMES:
            assert entries[name].get("fewer_shots", 0) == (window == 240)
            prompts[name, window] = [row["prompt"] for row in read(tmp_path / f"{name}.jsonl")]
    for name, task in load_tasks(NAMES, source=TaskSource(str(task_dir)), shots=3, seed=0).items():
        with quiet():
            task.build_all_requests(rank=0, world_size=1)
        asked = list(dict.fromkeys(instance.args[0] for instance in task.instances))
        assert prompts[name, 4096] == asked
        small, long = prompts[name, 240], asked[2]
        assert [p for p in small if "so on" not in p] == [p for p in asked if p != long]
        kept = small[2].removesuffix(small[2][small[2].index("Question: what is number 2") :])
        assert 1 <= kept.count("example") < 3 and long.startswith(kept)
