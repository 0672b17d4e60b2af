import json
import random

import pytest
import yaml
from benchmark_runs import read, run
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from made_up_tasks import CHOICE, NAMES, WRITTEN, change
from tiny_models import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.metrics.paired_comparison import compare, delta_table
from eval.metrics.stats import score_interval, wilson
from eval.tasks.benchmark import summarize
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.sample_rows import cluster_of
from eval.tasks.task_files import TaskSource, load_tasks
from sft.chat_template.template import ensure_template
from sft.errors import UserError
from sft.packing.logprobs import enable_scoring


@pytest.fixture
def model():
    return enable_scoring(make_tiny_model())


def by_plain_sum(row):
    largest = row["log_probs"].index(max(row["log_probs"]))
    return row | {"answer_of_largest": row["choices"][largest]}


def test_entries_and_rows_are_as_contracted(model, tiny_tokenizer, task_dir, tmp_path, capfd):
    entries = run(model, tiny_tokenizer, task_dir, tmp_path / "samples", shots=2)
    assert capfd.readouterr() == ("", ""), "lm-eval is to be silent"
    assert list(entries) == NAMES
    for name, entry in entries.items():
        rows = read(tmp_path / "samples" / f"{name}.jsonl")
        contract = {"score", "ci", "n", "metric", "shots", "chat_template"}
        assert set(entry) - {"cut_answers", "metrics"} == contract
        assert entry == summarize(rows) | {"shots": 2, "chat_template": False}
        right = sum(row["score"] for row in rows)
        assert entry["n"] == 8 and entry["score"] == right / 8
        passages = [row["cluster"] for row in rows if row["cluster"] is not None]
        scores = [row["score"] for row in rows]
        assert entry["ci"] == list(score_interval(scores, clusters=passages or None))
        assert passages or entry["ci"] == list(wilson(int(right), 8))
        for row in rows:
            assert row["prompt"].startswith("Question: what is number 7?\nAnswer:")
            assert row["score"] == float(row["answer"] == row["target"])
    choice, written = (read(tmp_path / "samples" / f"{name}.jsonl") for name in NAMES)
    assert entries["mine_choice"]["metric"] == "acc_norm"
    assert [row["cluster"] for row in choice[:3]] == ["p0", "p0", "p1"]
    assert {row["cluster"] for row in written} == {None}
    assert set(entries["mine_choice"]["metrics"]) == {"acc", "acc_bytes", "acc_per_token"}
    first = [row["answer_of_largest"] == row["target"] for row in map(by_plain_sum, choice)]
    assert entries["mine_choice"]["metrics"]["acc"] == sum(first) / 8
    for row in choice:
        per_letter = [v / len(c) for v, c in zip(row["log_probs"], row["choices"], strict=True)]
        assert row["answer"] == row["choices"][per_letter.index(max(per_letter))]
    assert {row["finish_reason"] for row in written} <= {"stop_id", "stop_string", "cap"}


def test_what_questions_share_is_a_field_or_a_template_and_may_be_absent():
    doc = {"query": "Passage: a b\nQuestion: c?", "passage": None, "subject": "law", "empty": ""}
    assert cluster_of("subject", doc) == "law"
    assert cluster_of("{{query.split('\nQuestion:')[0]}}", doc) == "Passage: a b"
    assert cluster_of("passage", doc) is cluster_of("empty", doc) is cluster_of(None, doc) is None


@pytest.mark.parametrize("chat", [False, True])
def test_every_verdict_is_lm_evals_own(model, tiny_tokenizer, task_dir, tmp_path, chat):
    ensure_template(tiny_tokenizer)
    shots = 0 if chat else 2
    run(model, tiny_tokenizer, task_dir, tmp_path, shots=shots, chat=chat)
    loaded = load_tasks(NAMES, source=TaskSource(str(task_dir)), shots=shots, seed=0)
    theirs = evaluate(
        HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=1, device="cpu"),
        {"tasks": loaded},
        bootstrap_iters=0,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    for name in NAMES:
        ours = read(tmp_path / f"{name}.jsonl")
        for row, sample in zip(ours, theirs["samples"][name], strict=True):
            assert row["doc_hash"] == sample["doc_hash"]
            assert row["prompt"] == sample["arguments"][0][0]
            assert row["score"] == sample[row["metric"]]
            if name == "mine_choice":
                expected = [log for log, _ in sample["filtered_resps"]]
                assert row["log_probs"] == pytest.approx(expected, abs=1e-4, rel=1e-6)
            else:
                assert row["answer"] == sample["resps"][0][0]


def test_base_and_chat_formats_pair_on_the_document(model, tiny_tokenizer, task_dir, tmp_path):
    ensure_template(tiny_tokenizer)
    run(model, tiny_tokenizer, task_dir, tmp_path / "base", shots=3)
    run(model, tiny_tokenizer, task_dir, tmp_path / "dpo", chat=True)
    samples = {
        name: {m: read(tmp_path / m / f"{name}.jsonl") for m in ("base", "dpo")} for name in NAMES
    }
    assert samples["mine_choice"]["base"][0]["prompt"] != samples["mine_choice"]["dpo"][0]["prompt"]
    table = delta_table(samples, models=["base", "dpo"])
    assert [row["test"] for row in table] == ["McNemar, clustered", "exact McNemar"]


def test_limit_seed_and_pinned_shots(model, tiny_tokenizer, task_dir, tmp_path):
    before = random.getstate()
    change(task_dir, num_fewshot=0)
    entries = run(model, tiny_tokenizer, task_dir, tmp_path, shots=1, limit=3)
    assert [entry["n"] for entry in entries.values()] == [3, 3]
    assert [entry["shots"] for entry in entries.values()] == [0, 1]
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"doc_to_target": "{{answer}}"}, "task mine_choice cannot be loaded .*'answer'"),
        (
            {"unsafe_code": True},
            "mine_choice runs programs that the model writes, and lm-eval would",
        ),
        ({"metadata": {"cluster": "chapter"}}, "metadata.cluster names 'chapter'"),
    ],
)
def test_tasks_that_cannot_be_scored_are_refused(
    model, tiny_tokenizer, task_dir, tmp_path, changes, sentence
):
    change(task_dir, **changes)
    with pytest.raises(UserError, match=sentence):
        run(model, tiny_tokenizer, task_dir, tmp_path)


def test_too_many_shots_and_empty_tasks_are_refused(model, tiny_tokenizer, task_dir, tmp_path):
    with pytest.raises(UserError, match="mine_choice has 3 few-shot examples but 4 are requested"):
        run(model, tiny_tokenizer, task_dir, tmp_path, shots=4)
    (task_dir.parent / "data/choice.jsonl").write_text("")
    with pytest.raises(UserError, match=r"task mine_choice: .*choice.jsonl is empty; give it rows"):
        run(model, tiny_tokenizer, task_dir, tmp_path)


@pytest.mark.real
def test_real_rows_are_scored_as_in_lm_eval(real_data, tmp_path):
    """HellaSwag and ARC rows on a real pretrained model, against lm-eval's own backend."""
    folder = real_data / "models/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = enable_scoring(AutoModelForCausalLM.from_pretrained(folder).eval())
    base = {k: CHOICE[k] for k in ("dataset_path", "test_split", "output_type", "metric_list")}
    hellaswag = base | {
        "task": "real_hellaswag",
        "dataset_kwargs": {"data_files": {"test": "eval/hellaswag_val_1000.jsonl"}},
        "doc_to_text": "{{activity_label}}: {{ctx}}",
        "doc_to_choice": "{{endings}}",
        "doc_to_target": "{{label}}",
    }
    arc = base | {
        "task": "real_arc",
        "dataset_kwargs": {"data_files": {"test": "eval/arc_easy.jsonl"}},
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
    }
    for config in (hellaswag, arc):
        (tmp_path / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    names = ["real_hellaswag", "real_arc"]
    source = TaskSource(str(tmp_path), str(real_data))
    run(model, tokenizer, source, tmp_path / "samples", tasks=names, limit=10)
    theirs = evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu"),
        {"tasks": load_tasks(names, source=source, shots=0, seed=0)},
        limit=10,
        bootstrap_iters=0,
    )
    for name in names:
        rows = read(tmp_path / "samples" / f"{name}.jsonl")
        for row, sample in zip(rows, theirs["samples"][name], strict=True):
            expected = [log for log, _ in sample["filtered_resps"]]
            assert row["log_probs"] == pytest.approx(expected, abs=1e-4, rel=1e-6)
            assert row["score"] == sample["acc_norm"]


def test_length_normalisation_by_tokens_and_unconditional(
    model, tiny_tokenizer, task_dir, tmp_path
):
    """Tokens are bytes here, the space before a choice included, as the sums are."""
    run(model, tiny_tokenizer, task_dir, tmp_path, tasks=NAMES[:1], metric="acc_per_token")
    for row in read(tmp_path / "mine_choice.jsonl"):
        assert row["metric"] == "acc_per_token"
        assert row["tokens"] == [len(f" {choice}") for choice in row["choices"]]
        values = [log / size for log, size in zip(row["log_probs"], row["tokens"], strict=True)]
        assert row["answer"] == row["choices"][values.index(max(values))]
        assert row["score"] == float(row["answer"] == row["target"])
    run(
        model,
        tiny_tokenizer,
        task_dir,
        tmp_path / "mutual",
        metric="acc_mutual_info",
        tasks=NAMES[:1],
    )
    ours = read(tmp_path / "mutual" / "mine_choice.jsonl")
    metrics = [{"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}]
    change(task_dir, metric_list=metrics)
    run(model, tiny_tokenizer, task_dir, tmp_path / "listed", tasks=NAMES[:1])
    theirs = read(tmp_path / "listed" / "mine_choice.jsonl")
    for row, listed in zip(ours, theirs, strict=True):
        assert row["bare_log_probs"] == pytest.approx(listed["bare_log_probs"], abs=1e-4)
        assert (row["answer"], row["score"]) == (listed["answer"], listed["score"])
    # A file can list the paper's normalisation too.
    metrics = [{"metric": "acc_per_token", "aggregation": "mean", "higher_is_better": True}]
    change(task_dir, metric_list=metrics)
    run(model, tiny_tokenizer, task_dir, tmp_path / "file", tasks=NAMES[:1])
    assert [r["answer"] for r in read(tmp_path / "file" / "mine_choice.jsonl")] == [
        r["answer"] for r in read(tmp_path / "mine_choice.jsonl")
    ]


def test_a_metric_or_filter_that_a_task_lacks_is_refused(model, tiny_tokenizer, task_dir, tmp_path):
    with pytest.raises(UserError, match=r"per_task.mine_choice.metric=f1 is not .* acc_norm, acc"):
        run(model, tiny_tokenizer, task_dir, tmp_path, metric="f1")
    with pytest.raises(UserError, match=r"per_task.mine_choice.filter=strict is not .* has none"):
        run(model, tiny_tokenizer, task_dir, tmp_path, filter="strict")


def test_written_answers_are_graded_by_value_where_that_is_asked_for(
    tiny_tokenizer, task_dir, tmp_path, monkeypatch
):
    """A task that does not list math_equal; its documents' targets are results."""
    rows = [{"question": "one half?", "choices": ["\\frac{1}{2}"], "gold": 0, "passage": "p"}]
    (task_dir / "../data/choice.jsonl").write_text(json.dumps(rows[0]) + "\n")
    monkeypatch.setattr(
        LmEvalModel,
        "generate_until",
        lambda self, requests: (
            self.finish_reasons.update({("mine_written", 0): "stop_id"})
            or ["So $1 - 0.5$ is it. The answer is \\boxed{0.5}."]
        ),
    )
    model = enable_scoring(make_tiny_model())
    entries = run(model, tiny_tokenizer, task_dir, tmp_path, tasks=NAMES[1:])
    assert entries["mine_written"]["metric"] == "exact_match"
    assert entries["mine_written"]["score"] == 0
    entries = run(model, tiny_tokenizer, task_dir, tmp_path, tasks=NAMES[1:], metric="math_equal")
    (row,) = read(tmp_path / "mine_written.jsonl")
    assert entries["mine_written"]["metric"] == row["metric"] == "math_equal"
    assert row["score"] == 1 and row["filtered"] == "0.5" and "boxed" in row["answer"]


def test_answers_are_graded_by_the_rules_of_their_document(
    tiny_tokenizer, task_dir, tmp_path, monkeypatch
):
    """The metric `rules`: the target of a document is a reference of the rule judge."""
    references = [{"all_of": ["1.", "2."], "none_of": ["3."]}, {"refuse": True}, {"final": "42"}]
    asked = [{"question": f"{i}?", "reference": r} for i, r in enumerate(references)]
    (task_dir / "../data/ruled.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in asked))
    config = WRITTEN | {
        "task": "ruled",
        "dataset_kwargs": {"data_files": dict.fromkeys(("test", "train"), "../data/ruled.jsonl")},
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{reference | tojson}}",
        "metric_list": [{"metric": "rules", "aggregation": "mean", "higher_is_better": True}],
    }
    (task_dir / "ruled.yaml").write_text(yaml.safe_dump(config))
    answers = ["1. tea\n2. milk", "Mix them in a jar.", "The answer is 42."]
    monkeypatch.setattr(
        LmEvalModel,
        "generate_until",
        lambda self, requests: (
            self.finish_reasons.update({("ruled", i): "stop_id" for i in range(3)}) or answers
        ),
    )
    model = enable_scoring(make_tiny_model())
    entries = run(model, tiny_tokenizer, task_dir, tmp_path, tasks=["ruled"], shots=0)
    rows = read(tmp_path / "ruled.jsonl")
    assert [row["score"] for row in rows] == [1, 0, 1]
    assert entries["ruled"]["metric"] == "rules" and entries["ruled"]["score"] == 2 / 3
    (task_dir / "../data/ruled.jsonl").write_text(
        json.dumps(asked[0]) + "\n" + json.dumps(asked[1] | {"reference": {"al_of": []}}) + "\n"
    )
    with pytest.raises(UserError, match="ruled: document 2: reference key 'al_of' is unknown"):
        run(model, tiny_tokenizer, task_dir, tmp_path, tasks=["ruled"], shots=0)


def test_answers_are_as_long_as_the_preset_says(model, tiny_tokenizer, task_dir, tmp_path):
    # max_tokens is lm-eval's other name, which counts where max_gen_toks is not there.
    settings = {"until": ["nowhere"], "do_sample": False, "max_tokens": 9}
    file = task_dir / "mine_written.yaml"
    file.write_text(yaml.safe_dump(WRITTEN | {"generation_kwargs": settings}))
    answers = {}
    for cap in (None, 9, 5):
        entry = run(model, tiny_tokenizer, task_dir, tmp_path, tasks=NAMES[1:], max_gen_toks=cap)
        assert entry["mine_written"].get("max_gen_toks") == cap
        answers[cap] = [row["answer"] for row in read(tmp_path / "mine_written.jsonl")]
    assert answers[None] == answers[9]
    assert all(a.startswith(b) for a, b in zip(answers[9], answers[5], strict=True))
    assert any(len(a) > len(b) for a, b in zip(answers[9], answers[5], strict=True))
    with pytest.raises(UserError, match=r"mine_choice.max_gen_toks=5 has no effect"):
        run(model, tiny_tokenizer, task_dir, tmp_path, tasks=NAMES[:1], max_gen_toks=5)


@pytest.mark.parametrize("settings", [None, {"do_sample": False, "max_gen_toks": 16}])
def test_a_task_without_a_stop_string_is_not_cut_at_a_blank_line_in_a_chat(
    tiny_tokenizer, task_dir, tmp_path, monkeypatch, caplog, settings
):
    """Both formats of one task are paired all the same; one that names a stop string has it."""
    ensure_template(tiny_tokenizer)
    stops = []
    generate = LmEvalModel.generate_until

    def noted(self, requests):
        stops.append(requests[0].args[1]["until"])
        return generate(self, requests)

    monkeypatch.setattr(LmEvalModel, "generate_until", noted)
    caplog.set_level("INFO")
    model = enable_scoring(make_tiny_model())
    rows = {}
    for name, kwargs in (("open", settings), ("named", WRITTEN["generation_kwargs"])):
        config = WRITTEN | {"generation_kwargs": kwargs}
        (task_dir / "mine_written.yaml").write_text(yaml.safe_dump(config))
        for chat in (False, True):
            run(model, tiny_tokenizer, task_dir, tmp_path, tasks=NAMES[1:], chat=chat, limit=2)
            rows[name, chat] = read(tmp_path / "mine_written.jsonl")
    assert stops == [["\n\n"], [], ["\n\n"], ["\n\n"]]
    said = [r.getMessage() for r in caplog.records if "no generation_kwargs" in r.message]
    ends = [text.rpartition("ends at ")[2] for text in said]
    assert ends == ["the first '\\n\\n'", "its end of turn"]
    names = ("plain", "chat")
    delta = compare("mine_written", rows["open", False], rows["open", True], names=names)
    assert delta.comparison.n == 2


def test_an_answer_cut_in_a_loop_says_so(tiny_tokenizer, task_dir, tmp_path):
    """The stored row has its loop in characters, and only rows that did not end have one."""
    # Greedy decoding of this one runs into loops.
    one_layer = {"initializer_range": 0.08, "hidden_size": 16, "num_hidden_layers": 1}
    model = enable_scoring(make_tiny_model(1, **one_layer))
    config = yaml.safe_load((task_dir / "mine_written.yaml").read_text())
    config["generation_kwargs"]["max_gen_toks"] = 300
    (task_dir / "mine_written.yaml").write_text(yaml.safe_dump(config))
    run(model, tiny_tokenizer, task_dir, tmp_path, tasks=["mine_written"])
    rows = read(tmp_path / "mine_written.jsonl")
    loops = [row for row in rows if "loop" in row]
    assert loops and all(row["finish_reason"] == "cap" for row in loops)
    for row in loops:
        text, loop = row["answer"].rstrip("\ufffd"), row["loop"]
        tail = text[loop["start"] :]
        unit = tail[: loop["period"]]
        assert (unit * (loop["copies"] + 1)).startswith(tail) and loop["copies"] >= 4


def test_bits_of_one_text_are_whole_json_without_an_interval():
    row = {"metric": "bits_per_byte", "log_prob": -10.0, "bytes": 5}
    entry = summarize([row])
    assert entry["ci"] is None and json.dumps(entry, allow_nan=False)
    deltas = delta_table(
        {"t": {m: [row | {"doc_hash": "h", "doc_id": "0"}] for m in "ab"}}, models="ab"
    )
    assert deltas[0]["ci"] is None and json.dumps(deltas, allow_nan=False)
