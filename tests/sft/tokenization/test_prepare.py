"""Sources become the rows that the preset describes: weights, kinds, lengths, and a cache."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from datasets import Dataset, concatenate_datasets

from sft.chat_template.template import ensure_template
from sft.cleaning.decontamination import BenchmarkQuestion, Benchmarks
from sft.config.sections import DataSection, LoraSection, ModelSection, Preset, Source
from sft.context import RunContext
from sft.data.mixture import take_count, take_share
from sft.data.prompts import read_prompts
from sft.errors import UserError
from sft.model.loading import context_window
from sft.model.placement import Placement
from sft.packing.layout import unshared
from sft.planning.stages import fit_lengths
from sft.system.atomic_files import read_json, read_jsonl, write_jsonl
from sft.tokenization.input_hashes import rows_fingerprint, source_fingerprint
from sft.tokenization.prepare import prepare_chats, read_token_rows, rows_of_stage
from sft.tokenization.row_checks import Rules, total
from sft.training.micro_batches import chat_document

NOTHING = Benchmarks(key="", load=dict)
STOP = DataSection(on_error="stop")
# The ends of a turn of the tiny tokenizer, which has no BOS.
RULES = Rules(stops=frozenset({0, 3}), bos=None, leading_bos=0)


def chat(question, answer, **more):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


@pytest.fixture
def context(tmp_path, tiny_tokenizer):
    ensure_template(tiny_tokenizer)
    placement = Placement(torch.device("cpu"), torch.float32, torch.float32, "sdpa", ())
    return RunContext(tmp_path / "run", tiny_tokenizer, placement, LoraSection(), 0, False)


@pytest.fixture
def sources(tmp_path):
    write_jsonl(tmp_path / "m.jsonl", [chat("?" * 9 * (i + 1), str(i)) for i in range(8)])
    write_jsonl(tmp_path / "d.jsonl", [chat(f"hi {i}", "yo", kind="dialogue") for i in range(4)])
    return [
        Source(str(tmp_path / "m.jsonl"), kind="math", weight=0.5),
        Source(str(tmp_path / "d.jsonl"), weight=2.0),
    ]


def test_weights_kinds_and_counts(sources, context):
    rows = prepare_chats(DataSection(sources), context, benchmarks=NOTHING)
    assert rows["kind"].count("math") == 4 and rows["kind"].count("dialogue") == 8
    facts = read_json(context.folder / "data" / "data.json")
    assert facts["kinds"] == {"math": 4, "dialogue": 8}
    assert [s["kept"] for s in facts["sources"]] == [8, 4]
    assert facts["tokens"] == sum(len(ids) for ids in rows["input_ids"])
    end = context.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for ids, trained in zip(rows["input_ids"], rows["trained"], strict=True):
        assert [i for i, t in zip(ids, trained, strict=True) if t][-1] == end


def test_the_table_of_sources_is_shown_whether_rows_are_prepared_or_kept(context, tmp_path, capfd):
    rows = [chat(f"q{i}", f"a{i}", topic="mills") for i in range(3)]
    rows[1]["messages"][1]["weight"] = 0
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for _ in range(2):
        prepare_chats(
            DataSection([Source(str(tmp_path / "rows.jsonl"))]), context, benchmarks=NOTHING
        )
        shown = " ".join(capfd.readouterr().err.split())
        assert "rows.jsonl 3 2 1 marked as" in shown and "2 topic" in shown
    (source,) = read_json(context.folder / "data" / "data.json")["sources"]
    assert source["unread"] == {"topic": 2}
    assert source["dropped"] == {"marked as not trained": 1}


def test_rows_are_prepared_again_only_when_something_they_depend_on_changed(sources, context):
    section = DataSection(sources)
    prepare_chats(section, context, benchmarks=NOTHING)
    marker = context.folder / "data" / "done.json"
    first = marker.stat().st_mtime_ns
    prepare_chats(section, context, benchmarks=NOTHING)
    assert marker.stat().st_mtime_ns == first
    context.tokenizer.chat_template = context.tokenizer.chat_template.replace("\n", "")
    prepare_chats(section, context, benchmarks=NOTHING)
    assert marker.stat().st_mtime_ns != first


def test_a_run_may_lie_in_a_folder_whose_name_is_a_pattern(sources, context, tmp_path):
    context = replace(context, folder=tmp_path / "run [1] {a,b} * ? 火")
    assert len(prepare_chats(DataSection(sources), context, benchmarks=NOTHING)) == 12


@pytest.mark.parametrize("harm", ["flipped", "emptied", "missing"])
@pytest.mark.parametrize("name", ["*.arrow", "dataset_info.json", "made.json"])
def test_a_damaged_cache_of_rows_is_made_again(sources, context, caplog, name, harm):
    section = DataSection(sources)
    before = prepare_chats(section, context, benchmarks=NOTHING).to_list()
    (file,) = (context.folder / "data" / ".cache").rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if harm != "missing":
        file.write_bytes(content if harm == "flipped" else b"")
    assert prepare_chats(section, context, benchmarks=NOTHING).to_list() == before
    assert ("damaged; making it again" in caplog.text) == (f"{name} {harm}" != "made.json missing")


LONG = "Which bird follows the fishing boats of the northern islands out to sea every morning?"


def known(text):
    return Benchmarks(key=text, load=lambda: {"birds": [BenchmarkQuestion("birds", "1", text)]})


CHANGES = {
    "a row": lambda section, folder: write_jsonl(folder / "d.jsonl", [chat("hi", "y")]),
    "near duplicates": lambda section, folder: setattr(section, "near_duplicates", 0.9),
    "no decontamination": lambda section, folder: setattr(section, "decontaminate_tasks", False),
    "a file of questions": lambda section, folder: section.decontaminate.append(
        str(folder / "q.jsonl")
    ),
    "a weight": lambda section, folder: setattr(section.sft[0], "weight", 1.0),
    "on_error": lambda section, folder: setattr(section, "on_error", "drop"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_changed_option_or_row_meets_a_stale_cache(sources, context, tmp_path, change):
    write_jsonl(tmp_path / "q.jsonl", [{"question": LONG}])
    section = DataSection(sources)
    prepare_chats(section, context, benchmarks=known(LONG))
    marker = context.folder / "data" / "done.json"
    first = marker.stat().st_mtime_ns
    CHANGES[change](section, tmp_path)
    prepare_chats(section, context, benchmarks=known(LONG))
    assert marker.stat().st_mtime_ns != first
    second = marker.stat().st_mtime_ns
    prepare_chats(section, context, benchmarks=known(LONG))
    assert marker.stat().st_mtime_ns == second


def test_a_changed_question_takes_its_copies_out(sources, context, tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [chat(LONG, "yo"), chat("hi", "yo")])
    section = DataSection(sources, on_error="drop")
    rows = prepare_chats(section, context, benchmarks=NOTHING)
    assert rows["kind"].count("other") == 4
    rows = prepare_chats(section, context, benchmarks=known(LONG.upper()))
    assert rows["kind"].count("other") == 2
    facts = read_json(context.folder / "data" / "data.json")
    assert facts["questions"] == {"birds": 1} and facts["unchecked"] == []
    assert facts["sources"][1]["dropped"] == {"contaminated": 1}
    (line,) = read_jsonl(context.folder / "data" / "contamination.jsonl")
    assert line["origin"] == f"{tmp_path / 'd.jsonl'}:1" and line["task"] == "birds"


def test_a_benchmark_that_could_not_be_loaded_is_tried_again(sources, context, tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [chat(LONG, "yo"), chat("hi", "yo")])
    section = DataSection(sources, on_error="drop")
    offline = Benchmarks(key="birds 1.0", load=lambda: {"birds": []})
    rows = prepare_chats(section, context, benchmarks=offline)
    assert len(rows) == 8
    assert read_json(context.folder / "data" / "data.json")["unchecked"] == ["birds"]
    online = Benchmarks(key="birds 1.0", load=known(LONG).load)
    assert len(prepare_chats(section, context, benchmarks=online)) == 6


def test_a_run_without_chats_prepares_none(context):
    assert len(prepare_chats(DataSection(), context, benchmarks=NOTHING)) == 0


def test_rows_have_one_fingerprint_however_they_are_stored(sources, context):
    rows = prepare_chats(DataSection(sources), context, benchmarks=NOTHING)
    rows = rows.select_columns(["input_ids", "trained"])
    plain = rows.to_list()
    first = rows_fingerprint(rows)
    assert rows_fingerprint(Dataset.from_list(plain)) == first
    pieces = [rows.select([0, 1, 2]), rows.select(range(3, 12))]
    assert rows_fingerprint(concatenate_datasets(pieces)) == first
    assert rows_fingerprint(rows.select([1, 0, *range(2, 12)])) != first
    for column, value in (("input_ids", 7), ("trained", not plain[5]["trained"][3])):
        changed = [{**row, column: list(row[column])} for row in plain]
        changed[5][column][3] = value
        assert rows_fingerprint(Dataset.from_list(changed)) != first
    moved = [dict(row) for row in plain]
    for column in ("input_ids", "trained"):  # one token from a row's end to the next one's start
        moved[0][column], moved[1][column] = (
            plain[0][column][:-1],
            plain[0][column][-1:] + plain[1][column],
        )
    assert rows_fingerprint(Dataset.from_list(moved)) != first


def test_a_stage_takes_its_kinds_and_leaves_long_rows_out(sources, context):
    rows = prepare_chats(DataSection(sources), context, benchmarks=NOTHING)
    dialogue = rows_of_stage(
        rows, kinds=["dialogue"], max_length=None, rules=RULES, section=STOP, where="s"
    )
    assert len(dialogue.rows) == 8 and total(dialogue.checked).left_out == 0
    lengths = sorted(len(ids) for ids in rows["input_ids"])
    cut = rows_of_stage(
        rows, kinds=[], max_length=lengths[-1] - 1, rules=RULES, section=STOP, where="s"
    )
    assert total(cut.checked).left_out == lengths.count(lengths[-1]) == 1
    with pytest.raises(UserError, match="no row is of kind safety; the rows are 4 math, 8 dialog"):
        rows_of_stage(rows, kinds=["safety"], max_length=None, rules=RULES, section=STOP, where="s")


def test_when_most_rows_are_too_long_the_user_decides(sources, context):
    rows = prepare_chats(DataSection(sources), context, benchmarks=NOTHING)
    lengths = sorted(len(row["input_ids"]) for row in rows if row["kind"] == "math")
    short = {"kinds": ["math"], "max_length": lengths[0], "rules": RULES, "where": "s"}
    with pytest.raises(UserError, match=r"rows are longer; raise it .* or data.on_error=drop"):
        rows_of_stage(rows, section=STOP, **short)
    left = rows_of_stage(rows, section=DataSection(on_error="drop"), **short)
    assert len(left.rows) == lengths.count(lengths[0]) < len(lengths) / 2
    with pytest.raises(UserError, match=r"12 of 12 rows are longer; .* data.too_long=truncate$"):
        rows_of_stage(
            rows,
            kinds=[],
            max_length=3,
            section=DataSection(on_error="drop", too_long="split"),
            rules=RULES,
            where="s",
        )


@pytest.mark.parametrize(("weight", "count"), [(0.25, 25), (1.0, 100), (2.5, 250), (0.0, 0)])
def test_shares_are_exact_without_replacement_and_the_same_for_a_seed(weight, count):
    rows = [{"n": i} for i in range(100)]
    taken = take_share(rows, weight=weight, seed=3)
    assert len(taken) == count
    uses = [sum(r["n"] == i for r in taken) for i in range(100)]
    assert max(uses, default=0) - min(uses, default=0) <= 1
    assert taken == take_share(rows, weight=weight, seed=3)


@pytest.mark.parametrize("count", [1, 7, 100, 101, 250])
def test_a_count_is_exact_and_no_row_comes_a_second_time_before_all_have_come(count):
    rows = [{"n": i} for i in range(100)]
    taken = take_count(rows, count=count, seed=3)
    uses = [sum(r["n"] == i for r in taken) for i in range(100)]
    assert len(taken) == count and max(uses) - min(uses) <= 1
    assert taken == take_count(rows, count=count, seed=3)
    assert count % 100 == 0 or taken != take_count(rows, count=count, seed=5)


def test_counts_turns_and_texts_reach_the_token_rows(sources, context, tmp_path):
    counted = [replace(source, weight=1.0, count=11) for source in sources]
    write_jsonl(tmp_path / "t.jsonl", [{"text": "abc"}])
    rows = prepare_chats(
        DataSection([*counted, Source(str(tmp_path / "t.jsonl"))]), context, benchmarks=NOTHING
    )
    assert rows["kind"].count("math") == rows["kind"].count("dialogue") == 11
    (text,) = [row for row in rows if row["kind"] == "text"]
    assert context.tokenizer.decode(text["input_ids"]) == "abc<|endoftext|>"
    assert text["trained"] == [False, True, True, True]


def test_the_last_turn_alone_is_trained_where_the_preset_says_so(context, tmp_path):
    two = chat("a", "b")["messages"] + chat("c", "d")["messages"]
    write_jsonl(tmp_path / "two.jsonl", [{"messages": two}])
    source = [Source(str(tmp_path / "two.jsonl"))]
    for turns, trained in (("all", 4), ("last", 2), ("all", 4)):
        section = DataSection(source, turns=turns)
        rows = prepare_chats(section, context, benchmarks=NOTHING)
        assert sum(rows[0]["trained"]) == trained


def test_long_rows_are_cut_or_split_as_the_preset_says(context, tmp_path):
    turns = [m for i in range(4) for m in chat(f"q{i}", str(i) * 20)["messages"]]
    write_jsonl(
        tmp_path / "long.jsonl", [{"messages": turns}, chat("x", "y" * 200), chat("s", "t")]
    )
    write_jsonl(tmp_path / "text.jsonl", [{"text": "z" * 150}])
    sources = [Source(str(tmp_path / name)) for name in ("long.jsonl", "text.jsonl")]

    def made(policy, length=100):
        section = DataSection(sources, too_long=policy, on_error="drop")
        rows = prepare_chats(section, context, benchmarks=NOTHING, split_at=length)
        return rows_of_stage(
            rows, kinds=[], max_length=length, rules=RULES, section=section, where="s"
        )

    dropped = made("drop")
    assert (len(dropped.rows), total(dropped.checked).left_out) == (1, 3)
    cut = made("truncate")
    counts = total(cut.checked)
    assert (len(cut.rows), counts.left_out, counts.cut) == (4, 0, 2)  # one in a prompt
    split = made("split")
    # The chat of four rounds comes in two pieces or more, the text in two; one answer is too long.
    assert total(split.checked).left_out == 1 and total(split.checked).cut == 1
    assert read_json(context.folder / "data" / "data.json")["pieces"] == 2
    assert sum(sum(row["trained"]) for row in split.rows) == 4 * 21 + 2 + 150
    for result in (dropped, cut, split):
        assert all(len(row["input_ids"]) <= 100 for row in result.rows)


def long_and_short(context, tmp_path, *, long, short, source="a"):
    write_jsonl(tmp_path / f"{source}.jsonl", [chat("x", c * 90) for c in long])
    write_jsonl(tmp_path / "b.jsonl", [chat("x", c) for c in short])
    sources = [Source(str(tmp_path / f"{source}.jsonl")), Source(str(tmp_path / "b.jsonl"))]

    def made(**options):
        section = DataSection(sources, near_duplicates=0, **options)
        rows = prepare_chats(section, context, benchmarks=NOTHING)
        return rows_of_stage(
            rows, kinds=[], max_length=100, rules=RULES, section=section, where="sft_all"
        )

    return made


def test_answers_cut_by_the_dozen_stop_the_run(context, tmp_path, caplog):
    few = long_and_short(context, tmp_path, long="a", short="bcdefghijk")(too_long="truncate")
    assert total(few.checked).cut == 1
    many = long_and_short(context, tmp_path, long="ab", short="cdefghijk")
    with pytest.raises(UserError, match=r"truncate cuts 2 of 11 rows within an answer.*split"):
        many(too_long="truncate")
    assert total(many(too_long="truncate", on_error="drop").checked).cut == 2
    assert "cuts 2 of 11 rows within an answer" in caplog.text


def test_a_source_of_which_nothing_is_left_stops_the_run(context, tmp_path, caplog):
    made = long_and_short(context, tmp_path, long="ab", short="cdefghijk")
    with pytest.raises(UserError, match=r"leaves out all 2 rows of .*a\.jsonl"):
        made()
    assert len(made(on_error="drop").rows) == 9
    assert "leaves out all 2 rows of" in caplog.text


def test_examples_are_the_rows_as_they_are_trained(context, tmp_path):
    made = long_and_short(context, tmp_path, long="a", short="bcdefghijk")(too_long="truncate")
    whole, cut = made.examples
    assert (whole.cut, cut.cut) == (False, True)
    assert len(cut.input_ids) == 100 and cut.trained[-1]
    rows = [(row["input_ids"], row["trained"]) for row in made.rows]
    assert all((example.input_ids, example.trained) in rows for example in made.examples)


def test_where_each_turn_is_trained_rows_of_a_chat_share_their_prefix(context, tmp_path):
    turns = [m for i in range(4) for m in chat(f"question {i}", str(i))["messages"]]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}, chat("x", "y")])
    section = DataSection([Source(str(tmp_path / "a.jsonl"))], turns="each")
    rows = prepare_chats(section, context, benchmarks=NOTHING)
    assert len(rows) == 5
    stage = rows_of_stage(
        rows, kinds=[], max_length=300, rules=RULES, section=section, where="sft_all"
    )
    counts = total(stage.checked)
    assert (counts.rows, counts.turns, counts.untrained) == (5, 5, 0)
    paths = [each for row in stage.rows for each in unshared(chat_document(row))]
    found = [(list(path.trunk.ids), list(path.trunk.scored)) for path in paths]
    assert found == [(row["input_ids"], row["trained"]) for row in rows]
    assert len(stage.rows) < 5 and any(stage.rows["branches"])


def test_prompts_wait_for_an_answer_whatever_the_row_was(tmp_path):
    user = {"role": "user", "content": "b?"}
    write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"prompt": "a?", "category": "small talk", "language": "en"},
            {"id": "x", "messages": [user], "reference": {"final": "4"}},
            chat("c?", "an answer", kind="math"),
            {"instruction": "d?", "input": "", "output": "cut"},
            {"prompt": "a?"},
        ],
    )
    rows = read_prompts([Source(str(tmp_path / "p.jsonl"))])
    assert [r["messages"][-1]["content"] for r in rows] == ["a?", "b?", "c?", "d?"]
    assert all(r["messages"][-1]["role"] == "user" for r in rows)
    assert [r["category"] for r in rows] == ["small talk", "all", "math", "all"]
    assert rows[1]["id"] == "x" and rows[1]["reference"] == {"final": "4"}
    assert len({r["id"] for r in rows}) == 4


@pytest.mark.parametrize("line", ['{"messages": [', '{"messages": []}', '{"nothing": 1}'])
def test_a_bad_prompt_names_its_line(tmp_path, line):
    (tmp_path / "p.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=r"p\.jsonl:2"):
        read_prompts([Source(str(tmp_path / "p.jsonl"))])


def test_no_stage_trains_past_the_models_context():
    preset = Preset()
    preset.sft_dialogue.trl["max_length"] = 100
    preset.dpo.trl["max_length"] = None
    fitted = fit_lengths(preset, 512)
    lengths = [s.trl["max_length"] for s in (fitted.sft_all, fitted.sft_dialogue, fitted.dpo)]
    assert lengths == [512, 100, 512]
    assert preset.sft_all.trl["max_length"] == 1024, "the preset given is left as it was"
    assert fit_lengths(preset, None) == preset


@pytest.mark.parametrize("name", ["LlamaConfig", "GPT2Config", "MptConfig"])
def test_the_context_is_read_from_the_configuration(name, tmp_path):
    key = {"LlamaConfig": "max_position_embeddings", "GPT2Config": "n_positions"}.get(name)
    getattr(transformers, name)(**({key: 77} if key else {})).save_pretrained(tmp_path)
    found = context_window(str(tmp_path), ModelSection())
    assert found == (77 if key else None)


@pytest.mark.parametrize(
    ("path", "words"), [("/dev/zero", "a device or a pipe"), ("/dev", "is a folder")]
)
def test_what_is_no_file_is_refused_before_it_is_hashed(path, words):
    with pytest.raises(UserError, match=words):
        source_fingerprint(Source(path))


def test_a_relative_folder_below_one_with_brackets_is_read(tmp_path, monkeypatch):
    """Upstream takes paths for patterns."""
    folder = tmp_path / "a [b] *c"
    (folder / "run").mkdir(parents=True)
    monkeypatch.chdir(folder)
    rows = pa.table({"input_ids": [[1, 2]]})
    pq.write_table(rows, "run/sft.parquet")
    assert read_token_rows(Path("run/sft.parquet"))["input_ids"][:] == [[1, 2]]
