"""Logs that lm-eval writes here are imported as one side of a comparison."""

import json
import shutil

import pytest
import yaml
from benchmark_runs import run
from lm_eval.evaluator import evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from made_up_run import benchmark_row, make_run, write_rows
from made_up_tasks import CHOICE, NAMES, change
from tiny_models import make_tiny_model

from eval.metrics.paired_comparison import compare
from eval.report.report import write_report
from eval.results.external_results import import_measures
from eval.tasks.benchmark import quiet
from eval.tasks.task_files import TaskSource, load_tasks
from sft.config.sections import EvalSection, TaskOptions
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring
from sft.system.atomic_files import read_json, read_jsonl

TEXT = CHOICE | {
    "task": "mine_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_choice": None,
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte"}],
    "metadata": {"version": 1.0},
}


def log_with_lm_eval(
    model, tokenizer, folder, out, *, names, shots=0, groups=None, model_name="org__model"
):
    """What `lm_eval --log_samples --output_path OUT` writes (evaluator and tracker are its own)."""
    loaded = load_tasks(names, source=TaskSource(str(folder)), shots=shots, seed=0)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    with quiet():
        results = evaluate(lm, {"tasks": loaded, "groups": groups or {}}, bootstrap_iters=0)
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.model_name_sanitized = model_name
    tracker.general_config_tracker.model_name = model_name.replace("__", "/")
    tracker.save_results_aggregated(results=results | (groups or {}), samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    return next(out.rglob("samples_*.jsonl")).parent


@pytest.fixture
def logged(task_dir, tmp_path, tiny_tokenizer):
    (task_dir / "mine_text.yaml").write_text(yaml.safe_dump(TEXT))
    model = make_tiny_model(seed=1)
    names = [*NAMES, "mine_text"]
    return log_with_lm_eval(model, tiny_tokenizer, task_dir, tmp_path / "log", names=names)


def test_a_log_pairs_with_what_is_measured_here(logged, task_dir, tmp_path, tiny_tokenizer):
    import_measures(logged, tmp_path / "theirs", section=EvalSection())
    model = enable_scoring(make_tiny_model(seed=1))
    names = [*NAMES, "mine_text"]
    entries = run(model, tiny_tokenizer, task_dir, tmp_path / "ours", tasks=names)
    scores = read_json(tmp_path / "theirs" / "scores.json")
    for name in NAMES:
        # lm-eval's logs do not say how an answer ended, and imported rows hold no choices, from
        # which the other metrics of multiple choice are computed.
        unknown = entries[name].keys() & {"metrics", "cut_answers"}
        assert unknown == {"metrics" if name == "mine_choice" else "cut_answers"}
        known = {key: value for key, value in entries[name].items() if key not in unknown}
        assert scores["benchmarks"][name] == known
    bits = scores["language"]["mine_text"]["bits_per_byte"]
    assert bits == pytest.approx(entries["mine_text"]["bits_per_byte"], rel=1e-5)
    for name in names:
        ours = read_jsonl(tmp_path / "ours" / f"{name}.jsonl")
        theirs = read_jsonl(tmp_path / "theirs" / "samples" / f"{name}.jsonl")
        assert compare(name, ours, theirs, names=("a", "b")).comparison.delta == pytest.approx(
            0, abs=1e-4
        )
        for mine, read in zip(ours, theirs, strict=True):
            assert {
                k: read[k]
                for k in ("doc_hash", "version", "template", "prompt", "metric", "cluster")
            } == {
                k: mine[k]
                for k in ("doc_hash", "version", "template", "prompt", "metric", "cluster")
            }
            assert mine.get("answer") == read.get("answer")


def test_another_metric_is_used_if_the_preset_names_it(logged, tmp_path):
    options = {"mine_choice": TaskOptions(metric="acc")}
    import_measures(logged, tmp_path / "a", section=EvalSection(per_task=options))
    assert read_json(tmp_path / "a" / "scores.json")["benchmarks"]["mine_choice"]["metric"] == "acc"
    options = {"mine_written": TaskOptions(filter="strict")}
    with pytest.raises(UserError, match="has no filter 'strict'; it has none"):
        import_measures(logged, tmp_path / "b", section=EvalSection(per_task=options))


def test_another_template_or_version_of_a_task_is_not_paired(
    logged,
    task_dir,
    tmp_path,
    tiny_tokenizer,
):
    import_measures(logged, tmp_path / "one", section=EvalSection())
    first = read_jsonl(tmp_path / "one" / "samples" / "mine_choice.jsonl")
    for i, changes in enumerate(
        ({"doc_to_text": "{{question}}"}, {"metadata": {"version": 2.0, "cluster": "passage"}})
    ):
        change(task_dir, **changes)
        out = tmp_path / f"log{i}"
        again = log_with_lm_eval(
            make_tiny_model(seed=1), tiny_tokenizer, task_dir, out, names=["mine_choice"]
        )
        import_measures(again, tmp_path / f"two{i}", section=EvalSection())
        second = read_jsonl(tmp_path / f"two{i}" / "samples" / "mine_choice.jsonl")
        with pytest.raises(UserError, match=("template is", "version is 1.0 for a but 2.0")[i]):
            compare("mine_choice", first, second, names=("a", "b"))


def test_a_group_is_one_task_and_the_newest_log_is_used(logged, tmp_path):
    (results,) = logged.glob("results_*.json")
    record = json.loads(results.read_text()) | {
        "group_subtasks": {"mine": ["part"], "part": ["mine_choice"], "mine_written": []}
    }
    results.write_text(json.dumps(record))
    older = next(logged.glob("samples_mine_written_*.jsonl"))
    shutil.copy(older, logged / "samples_mine_written_2020-01-01T00-00-00.000000.jsonl")
    import_measures(logged, tmp_path / "a", section=EvalSection())
    scores = read_json(tmp_path / "a" / "scores.json")["benchmarks"]
    assert set(scores) == {"mine", "mine_written"} and scores["mine"]["n"] == 8
    assert {row["version"] for row in read_jsonl(tmp_path / "a/samples/mine_written.jsonl")} == {
        "1.0"
    }


def test_the_backend_of_a_log_is_known_and_a_log_of_two_is_refused(logged, tmp_path, caplog):
    def imported(name):
        return import_measures(logged, tmp_path / name, section=EvalSection())

    (results,) = logged.glob("results_*.json")
    record = json.loads(results.read_text())
    for source, backend in {None: None, "hf": "transformers", "vllm": "vllm", "gguf": None}.items():
        caplog.clear()
        results.write_text(json.dumps(record | {"model_source": source}))
        assert imported(f"from-{source}") == backend
        again = tmp_path / f"from-{source}"
        assert import_measures(again, tmp_path / f"{source}-2", section=EvalSection()) == backend
        assert ("measured by lm-eval's gguf" in caplog.text) == (source == "gguf")
    date = results.stem.removeprefix("results_")
    other = date.replace("20", "30", 1)
    results.with_name(f"results_{other}.json").write_text(
        json.dumps(record | {"model_source": "hf"})
    )
    results.write_text(json.dumps(record | {"model_source": "vllm"}))
    file = next(logged.glob("samples_mine_text_*.jsonl"))
    file.rename(file.with_name(file.name.replace(date, other)))
    with pytest.raises(UserError, match=r"different backends.*: mine_\w+ by vllm, mine_text by tr"):
        imported("both")


def test_logs_of_two_models_are_not_one_model(logged, task_dir, tmp_path, tiny_tokenizer):
    """One task of another model, or of another commit, under one folder, newer or older."""
    section, log = EvalSection(), tmp_path / "log"
    other = log_with_lm_eval(
        make_tiny_model(seed=2),
        tiny_tokenizer,
        task_dir,
        log,
        names=["mine_written"],
        model_name="org__other",
    )
    assert other.parent == logged.parent == log
    with pytest.raises(
        UserError, match=r"of two models, org/\w+ and org/\w+; .*org__(model|other)"
    ):
        import_measures(log, tmp_path / "a", section=section)
    for name, folder in (("b", logged), ("c", other)):
        import_measures(folder, tmp_path / name, section=section)
    # Without results, models are distinguished by their folders only.
    for results in log.rglob("results_*.json"):
        results.rename(results.with_suffix(".away"))
    with pytest.raises(UserError, match="of two models, org__model and org__other; name one"):
        import_measures(log, tmp_path / "d", section=section)
    for results in log.rglob("results_*.away"):
        results.rename(results.with_suffix(".json"))
    (record,) = other.glob("results_*.json")
    for file in other.glob("*_*.json*"):
        shutil.move(file, logged / file.name)
    (moved,) = (logged / record.name,)
    moved.write_text(
        json.dumps(
            json.loads(moved.read_text())
            | {"model_name": "org/model", "config": {"model_sha": "0123abc"}}
        )
    )
    words = r"org/model at 0123abc.*; move the files of one to another folder"
    with pytest.raises(UserError, match=words):
        import_measures(logged, tmp_path / "e", section=section)


def test_logs_that_cannot_be_read_are_refused_by_line(logged, tmp_path):
    with pytest.raises(UserError, match="holds nothing measured; give a run"):
        import_measures(tmp_path / "ours", tmp_path / "a", section=EvalSection())
    file = next(logged.glob("samples_mine_choice_*.jsonl"))
    lines = file.read_text().splitlines()
    for bad, sentence in (
        (lines[0][:50], r"jsonl:2: not JSON"),
        (json.dumps({"doc_id": 1}), r"jsonl:2: not a sample of lm-eval .* lacks doc_hash, filter"),
    ):
        file.write_text("\n".join([lines[0], bad]))
        with pytest.raises(UserError, match=sentence):
            import_measures(file, tmp_path / "b", section=EvalSection())


WRONG_LINES = {
    "doc_id": [],
    "doc_hash": 3,
    "filter": {"x": 1},
    "metrics": [["acc"]],
    "arguments": {"gen_args_0": "Q"},
    "filtered_resps": [],
    "bits_per_byte": ["a", 0],
    "its depth": None,
}
WRONG_RESULTS = {
    "n-shot": [1],
    "config": "hf",
    "configs.mine_choice": {"configs": {"mine_choice": {"metric_list": [{"metric": 3}]}}},
    "n-shot.mine_choice": {"n-shot": {"mine_choice": "5"}},
    "group_subtasks": {"group_subtasks": {"all": [3]}},
    "config.model_sha": {"config": {"model_sha": {"x": 1}}},
    "model_source": {"x": 1},
}


def test_values_of_other_types_in_a_log_are_named(logged, tmp_path):
    file = next(logged.glob("samples_mine_choice_*.jsonl"))
    sound = [json.loads(line) for line in file.read_text().splitlines()]
    for name, value in WRONG_LINES.items():
        change = {name: value} if value is not None else {"doc": json.loads("[" * 200 + "]" * 200)}
        lines = [sound[0], sound[1] | change]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(UserError, match=rf"jsonl:2: {name} is not as lm-eval writes it"):
            import_measures(logged, tmp_path / "theirs", section=EvalSection())
    file.write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="jsonl:1: not JSON"):
        import_measures(logged, tmp_path / "theirs", section=EvalSection())
    file.write_text("".join(json.dumps(line) + "\n" for line in sound))
    results = next(logged.glob("results_*.json"))
    right = json.loads(results.read_text())
    for name, value in WRONG_RESULTS.items():
        change = value if "." in name or name == "group_subtasks" else {name: value}
        results.write_text(json.dumps(right | change))
        with pytest.raises(UserError, match=rf"json: {name} is not as lm-eval writes it"):
            import_measures(logged, tmp_path / "theirs", section=EvalSection())
    for content in ("[]", "{", "null"):
        results.write_text(content)
        with pytest.raises(UserError, match=r"json: not results of lm-eval"):
            import_measures(logged, tmp_path / "theirs", section=EvalSection())
    results.write_text(
        json.dumps(right | {"group_subtasks": {"a": ["b", "mine_choice"], "b": ["a"]}})
    )
    import_measures(logged, tmp_path / "theirs", section=EvalSection())  # and it ends


def test_half_a_character_in_a_log_is_no_reason_to_fail(logged, tmp_path):
    file = next(logged.glob("samples_mine_written_*.jsonl"))
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines:
        line["filtered_resps"] = ["half \ud800, whole \U0001f600"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    import_measures(file, tmp_path / "a", section=EvalSection())
    rows = read_jsonl(tmp_path / "a" / "samples" / "mine_written.jsonl")
    assert {row["answer"] for row in rows} == {"half ?, whole \U0001f600"}


def test_every_sample_file_of_another_run_is_copied(tmp_path):
    source = tmp_path / "run" / "eval" / "chat"
    (source / "samples").mkdir(parents=True)
    names = ("safety", "generations", "generations-sampled", "generations-double-cap")
    answer = {"id": "1", "messages": [], "text": "a", "repeats": False}
    write_rows(source / "samples" / "quiz.jsonl", [benchmark_row("quiz", "chat", 1, True)])
    for name in names:
        write_rows(source / f"{name}.jsonl", [answer])
    rate = {"rate": 0.0, "ci": [0.0, 0.8], "n": 1}
    quiz = {"score": 1.0, "n": 1, "metric": "exact_match", "shots": 0, "chat_template": True}
    safety = {"judge": "rules", "agreement": None, "categories": []}
    scores = {"benchmarks": {"quiz": quiz}, "repetition": rate, "safety": safety}
    (source / "scores.json").write_text(json.dumps(scores), "utf-8")
    import_measures(source, tmp_path / "here", section=EvalSection())
    assert all((tmp_path / "here" / f"{name}.jsonl").is_file() for name in names)


def test_measures_of_a_version_without_prompts_and_templates_are_read_and_shown(tmp_path):
    run = make_run(tmp_path / "run")
    for path in run.glob("eval/*/samples/*.jsonl"):
        rows = [{k: v for k, v in row.items() if k != "prompt"} for row in read_jsonl(path)]
        write_rows(path, rows)
    results = read_json(run / "results.json")
    for entries in results["benchmarks"].values():
        for entry in entries.values():
            entry.pop("chat_template", None)
    (run / "results.json").write_text(json.dumps(results), "utf-8")
    write_report(run)
    assert "world_math" in (run / "report.html").read_text("utf-8")
