"""Presets: types, overrides, and every mistake reported at once."""

import dataclasses
import os

import pytest
from omegaconf import OmegaConf

from sft.config.preset import CHECKOUT, find_path, load_preset, resolved
from sft.config.sections import Preset, SftStage, Source
from sft.errors import UserError

GOOD = """
model: {name_or_path: somewhere}
data:
  sft: [{path: a.jsonl, kind: math}]
sft_all: {learning_rate: 1e-5, num_train_epochs: 2}
pairs: {prompts: [{path: p.jsonl}]}
"""


@pytest.fixture
def preset_file(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    return path


def test_values_take_the_type_of_the_field_they_land_in(preset_file):
    preset = load_preset(
        preset_file,
        overrides=[
            "sft_all.learning_rate=3e-4",
            "dpo.beta=1",
            "lora.r=16",
            "data.sft=[{path: b.jsonl, kind: code, weight: 2}]",
            "eval.repetition.cap=99",
            "dpo.loss_type=ipo",
            "sft_dialogue.kinds=[dialogue, safety]",
        ],
    )
    assert preset.sft_all.trl["learning_rate"] == 3e-4
    assert preset.dpo.trl["beta"] == 1.0 and isinstance(preset.dpo.trl["beta"], float)
    assert preset.lora.r == 16
    assert preset.data.sft == [Source("b.jsonl", kind="code", weight=2.0)]
    assert preset.eval.repetition.cap == 99
    assert preset.dpo.trl["loss_type"] == ["ipo"]
    assert preset.sft_dialogue.kinds == ["dialogue", "safety"]


def test_one_mistake_in_a_source_is_reported_once(preset_file):
    with pytest.raises(UserError) as caught:
        load_preset(preset_file, overrides=["data.sft=[{path: a.jsonl, wieght: 2}]"])
    assert "did you mean data.sft[0].weight?" in str(caught.value)
    assert "empty" not in str(caught.value)
    with pytest.raises(UserError, match=r"sft_all\.max_length=-5 must be at least 2"):
        load_preset(preset_file, overrides=["sft_all.max_length=-5"])


def test_every_mistake_is_named_at_once_with_the_nearest_valid_key(preset_file):
    preset_file.write_text(GOOD + "evl: {}\nlora: {rank: 3}\n")
    with pytest.raises(UserError) as caught:
        load_preset(
            preset_file,
            overrides=["sft_all.learning_rat=1", "dpo.beta=high", "model.dtype=int8", "nonsense"],
        )
    message = str(caught.value)
    for part in (
        "unknown key evl (did you mean eval?)",
        "unknown key lora.rank",
        "unknown key sft_all.learning_rat (did you mean sft_all.learning_rate?)",
        "dpo.beta='high' is not a number",
        "model.dtype='int8' is not one of auto, float32, bfloat16, float16",
        "override 'nonsense' is not of the form section.key=value",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft_all.bf16=true", "decided by model.dtype"),
        ("dpo.sync_ref_model=true", "decided by the chain"),
        ("dpo.use_weighting=true", "has no effect in this chain"),
        ("sft_all.eval_on_start=true", "has no effect in this chain"),
        ("dpo.accelerator_config={dispatch_batches: true}", "decided by the chain"),
        ("sft_all.train_sampling_strategy=by_length", "is not one of random, sequential"),
        ("sft_all.loss_type=dft", "is nll here"),
        ("data.sft=[]", "data.sft is empty"),
        ("data.sft=a.jsonl", r"data\.sft='a.jsonl' is not a list \[\{path: ...\}, ...\]"),
        ("pairs.prompts=[]", "needs data.preference"),
        ("lora.r=-1", "must be 0"),
        ("sft_all.max_length=many", "is not a whole number or null"),
        ("data.sft=[{path: a, knd: b}]", r"unknown key data.sft\[0\].knd"),
        ("data.turns=first", "is not one of all, last"),
        ("data.too_long=cut", "is not one of drop, truncate, split"),
        ("data.sft=[{path: a, count: 0}]", r"data.sft\[0\].count=0 must be positive"),
        ("data.sft=[{path: a, count: 5, weight: 2}]", "used without weight"),
        ("data.sft=[{path: a, weight: -1}]", "must not be negative"),
        ("data.sft=[{path: a, tree_paths: some}]", "is not one of best, all"),
        ("data.sft=[{path: a, kind_rule: {math: '['}}]", "kind_rule.math='.' is not a regular"),
        ("data.sft=[{path: a, kind_rule: {math: 3}}]", "kind_rule.math=3 is not a regular"),
        ("data.preference=[{path: a, tree_paths: all}]", "has no effect on data.preference"),
        ("pairs.prompts=[{path: a, count: 5}]", "has no effect on pairs.prompts"),
    ],
)
def test_settings_that_could_not_take_effect_are_refused(preset_file, override, words):
    with pytest.raises(UserError, match=words):
        load_preset(preset_file, overrides=[override])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft_all.per_device_train_batch_size=0", "must be at least 1"),
        ("dpo.train_batch_size=-4", "must not be negative; 0 leaves it to per_device_train_batch"),
        ("sft_all.learning_rate=-1", "must be a number, zero or above"),
        ("dpo.learning_rate=.nan", "must be a number, zero or above"),
        ("dpo.num_train_epochs=0", "trains nothing or never ends; give a number above 0"),
        ("sft_all.deepspeed=zero3.json", "is decided by the launcher"),
        ("dpo.save_steps=0", "saves no checkpoint to resume from"),
        ("eval.limit=0", "at least one document of each task, or null for all"),
        ("eval.base_shots=-1", "must be a number of examples, 0 or more"),
        ("eval.per_task={a: {chat_shots: -2}}", r"eval.per_task.a.chat_shots=-2 must be a number"),
        ("eval.per_task={a: {max_gen_toks: 0}}", r"a.max_gen_toks=0 must be at least one token"),
        ("eval.in_parts=always", "eval.in_parts='always' is not one of true, false, auto"),
        ("dpo.beta=0", "must be above 0"),
        ("pairs.samples_per_prompt=1", "must be at least 2"),
        ("pairs.max_new_tokens=0", "must be at least 1"),
        ("pairs.temperature=0", "or all answers to a prompt are the same"),
        ("lora={r: 4, lora_dropout: 1.0}", "must be a share"),
        ("lora={r: 4, lora_alpha: 0}", "or the adapter adds nothing"),
    ],
)
def test_numbers_that_would_fail_or_train_nothing_are_refused(preset_file, override, words):
    key, _, value = override.partition("=")
    if key == "lora":
        preset_file.write_text(f"{GOOD}lora: {value}\n")
        overrides = []
    else:
        overrides = [override]
    with pytest.raises(UserError, match=words) as caught:
        load_preset(preset_file, overrides=overrides)
    assert key.replace("lora", "lora.lora_") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_override_is_reported_without_the_parser_s_line_numbers(preset_file):
    with pytest.raises(UserError) as caught:
        load_preset(preset_file, overrides=["eval.tasks=[gsm8k"])
    said = str(caught.value)
    assert "override 'eval.tasks=[gsm8k' is no YAML value (did not find expected" in said
    assert "line" not in said and "\n" not in said
    with pytest.raises(UserError, match="holds bytes that are no text in the locale's encoding"):
        load_preset(preset_file, overrides=[os.fsdecode(b"run.dir=\xff")])


def test_a_batch_is_set_in_one_way_only(preset_file):
    both = ["sft_all.train_batch_size=8", "sft_all.gradient_accumulation_steps=2"]
    with pytest.raises(UserError, match="sets both"):
        load_preset(preset_file, overrides=both)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "a mapping of sections"),
        ("a: [b", "not a readable YAML"),
        ("run: 3", "a section"),
    ],
)
def test_files_that_are_no_preset(tmp_path, content, words):
    path = tmp_path / "p.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        load_preset(path)


def test_a_missing_preset_names_its_neighbour(preset_file):
    with pytest.raises(UserError, match=r"did you mean .*p\.yaml"):
        load_preset(preset_file.with_name("pp.yaml"))


def test_the_resolved_preset_reads_back_to_itself(preset_file, tmp_path):
    preset = load_preset(preset_file, overrides=["sft_all.learning_rate=2e-5"])
    plain = resolved(preset)
    again = tmp_path / "again.yaml"
    again.write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    assert load_preset(again) == preset
    # Every default of ours is written out.
    assert plain["lora"]["r"] == 0 and plain["dpo"]["beta"] == 0.1
    assert set(plain) == {f.name for f in dataclasses.fields(Preset)}


def test_stages_do_not_share_their_options():
    first, second = SftStage(), SftStage()
    first.trl["learning_rate"] = 7.0
    assert second.trl["learning_rate"] != 7.0


def test_relative_paths_are_taken_from_here_and_then_from_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_path("pyproject.toml") == CHECKOUT / "pyproject.toml"
    (tmp_path / "pyproject.toml").touch()
    assert find_path("pyproject.toml").resolve() == tmp_path / "pyproject.toml"
    assert find_path("no/such/file") is None


def test_labels_of_a_source_are_texts_with_a_known_meaning(preset_file):
    given = "data.preference=[{path: x.jsonl, labels: {0: first, 1: second, same: tie}}]"
    preset = load_preset(preset_file, overrides=[given])
    assert preset.data.preference[0].labels == {
        "0": "first",
        "1": "second",
        "same": "tie",
    }
    with pytest.raises(UserError, match=r"preference\[0\].labels.0='better' is not one of first,"):
        load_preset(preset_file, overrides=["data.preference=[{path: x, labels: {0: better}}]"])
    with pytest.raises(UserError, match=r"data.sft\[0\].labels has no effect on data.sft"):
        load_preset(preset_file, overrides=["data.sft=[{path: x, labels: {0: first}}]"])


def test_our_own_keys_are_these():
    """The keys are frozen, since others rely on them; TRL's are not listed."""
    plain = {
        f.name: " ".join(
            sorted(g.name for g in dataclasses.fields(getattr(Preset(), f.name)) if g.name != "trl")
        )
        for f in dataclasses.fields(Preset)
    }
    assert plain == {
        "run": (
            "collapse_nats date dir loop_budget loop_checks loop_rise on_bad_step report_to "
            "seed spike_factor"
        ),
        "model": (
            "add_tokens attn_implementation base_model chat_template dtype license "
            "load_in_4bit max_unknown name_or_path revision trust_remote_code"
        ),
        "lora": (
            "between_stages lora_alpha lora_dropout r target_modules target_parameters "
            "use_dora use_rslora"
        ),
        "data": (
            "decontaminate decontaminate_tasks near_duplicates on_error preference sft "
            "system_prompt too_long turns"
        ),
        "sft_all": "enabled kinds packing train_batch_size",
        "sft_dialogue": "enabled kinds min_repetition packing train_batch_size",
        "pairs": "max_new_tokens min_score_gap prompts samples_per_prompt temperature top_p",
        "dpo": "enabled packing train_batch_size",
        "eval": (
            "allow_code_execution allow_unconfined_code backend base_format base_shots "
            "chat_shots data_dir each_epoch in_parts limit per_task repetition safety "
            "same_format task_dir tasks vllm_python"
        ),
    }


def test_options_of_a_task_are_a_section_of_their_own(tmp_path):
    path = tmp_path / "preset.yaml"
    text = "model: {name_or_path: m}\ndata: {sft: [{path: a}]}\npairs: {prompts: [{path: a}]}\n"
    path.write_text(text + "eval: {per_task: {mmlu: {chat_shots: 0, metric: acc}}}\n")
    options = load_preset(path).eval.per_task["mmlu"]
    assert (options.base_shots, options.chat_shots, options.metric) == (None, 0, "acc")
    wrong = ["eval.per_task={mmlu: {shots: 5, chat_shots: five}}", "eval.same_format=[markdown]"]
    with pytest.raises(UserError) as error:
        load_preset(path, overrides=wrong)
    for part in (
        "unknown key eval.per_task.mmlu.shots (did you mean eval.per_task.mmlu.",
        "eval.per_task.mmlu.chat_shots='five' is not",
        "eval.same_format[0]='markdown' is not one of plain, chat",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["1: 2", "2026-01-31: x", "true: [1]"])
def test_a_section_whose_name_is_no_text_is_unknown(preset_file, text):
    preset_file.write_text(f"{GOOD}{text}\n")
    with pytest.raises(UserError, match="unknown key"):
        load_preset(preset_file)


def test_an_override_that_contradicts_its_tag_is_refused(preset_file):
    with pytest.raises(UserError, match=r"is no YAML value .a value cannot be read: invalid"):
        load_preset(preset_file, overrides=["run.seed=!!int many"])
