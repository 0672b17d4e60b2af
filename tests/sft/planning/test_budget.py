"""Budgets of stages against closed forms, and the settings that fit a device."""

import re
from dataclasses import replace
from io import StringIO

import psutil
import pytest
import torch
import yaml
from hub_stand_in import CONFIGS
from rich.console import Console
from tiny_models import make_tiny_model
from transformers import AutoConfig

from dpo.reference import SHARD
from recipes.base_vs_chat import main as compare
from recipes.plan_run import main
from recipes.sft_then_dpo import main as train
from sft.config.sections import DpoStage, LoraSection, SftStage
from sft.errors import UserError
from sft.model.flops import costs_of_config, forward_flops, training_flops
from sft.model.loading import attention_for
from sft.model.placement import Placement
from sft.packing.layout import Span
from sft.planning.budget import (
    REFERENCE_ROWS,
    Planner,
    StageWorkload,
    padding_of,
    pairs_workload,
)
from sft.planning.budget_table import budget_table, check_memory, format_hours, show_budget
from sft.planning.device_memory import USABLE
from sft.planning.devices import Machine, named_machine
from sft.planning.step_memory import nf4_bytes
from sft.system.atomic_files import read_json, write_jsonl
from sft.training.throughput import memory_in_use

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "vocab_size": 300}
CONFIG = AutoConfig.for_model("llama", num_hidden_layers=2, **SHAPE)
GPU = Placement(torch.device("cuda"), torch.float32, torch.bfloat16, "sdpa", ())
CPU = Placement(torch.device("cpu"), torch.float32, torch.float32, "eager", ())


def planner(**options):
    plain = {
        "config": CONFIG,
        "lora": LoraSection(),
        "placement": GPU,
        "machine": Machine("a device", 1e12, 1e12),
    }
    return Planner(**(plain | options))


def workload(lengths=(60,) * 10, **options):
    plain = {"train_batch_size": 4, "packing": True}
    given = {"per_device_train_batch_size": 2, "num_train_epochs": 3.0}
    section = SftStage(**plain, trl=SftStage().trl | given | options)
    spans = tuple(Span(i, 0, n, ()) for i, n in enumerate(lengths))
    return StageWorkload("sft-all", section, spans, tuple(n // 2 for n in lengths))


@pytest.mark.parametrize("kind", ["bloom", "openai-gpt", "fuyu", "gemma4_unified_text"])
def test_other_layouts_of_rows_and_layers_are_planned(kind):
    """Code that refuses packed rows, a text model inside another, head sizes that vary by layer."""
    sizes = SHAPE | {"num_hidden_layers": 2, "head_dim": 16, "num_key_value_heads": 2}
    own = {"vocab_size_per_layer_input": 300, "hidden_size_per_layer_input": 8}
    config = AutoConfig.for_model(kind, **sizes, **own)
    if kind == "fuyu":
        config = AutoConfig.for_model(kind, text_config=SHAPE | {"num_hidden_layers": 2})
    placement = replace(CPU, attention=attention_for(config, "sdpa"))
    found = planner(config=config, placement=placement).stage(workload())
    assert found.memory is not None
    parameters = costs_of_config(config).parameters
    assert found.memory.optimizer == 8 * parameters.trainable
    assert found.memory.weights >= 4 * parameters.total
    assert found.memory.total < planner(config=config, placement=placement).ceiling(workload())


def test_operations_are_those_of_all_epochs_and_hours_follow_from_them():
    found = planner(utilization=0.5).stage(workload())
    costs = costs_of_config(CONFIG)
    epoch = training_flops(costs, workload().spans, scored=300)
    # 10 rows in steps of 4 are 3 steps an epoch, the last one filled up with rows of no work.
    assert found.steps == 9
    assert found.flops == pytest.approx(epoch * 9 * 4 / 10)
    assert found.hours == pytest.approx(found.flops / (1e12 * 0.5 * 3600))
    again = planner().stage(workload(activation_checkpointing=True))
    layers = forward_flops(costs, workload().spans, scored=0)
    assert again.flops - found.flops == pytest.approx(layers * 9 * 4 / 10, abs=2)


def test_a_pair_s_prompt_counts_once_and_its_reference_is_a_forward_pass():
    section = DpoStage(train_batch_size=2)
    pairs = pairs_workload(section, [(30, 5, 7), (20, 4, 4)])
    assert pairs.tokens == 30 + 5 + 7 + 20 + 4 + 4 and pairs.scored == (12, 8)
    found = planner().stage(pairs)
    costs = costs_of_config(CONFIG)
    trained = training_flops(costs, pairs.spans, scored=20)
    assert found.flops == trained + forward_flops(costs, pairs.spans, scored=20)


def test_padding_is_that_of_the_rows():
    flat = replace(GPU, attention="documents")
    assert padding_of(workload((60,) * 10), flat) == 0  # 2 x 60 is a multiple of 8
    assert padding_of(workload((61,) * 10), flat) == pytest.approx(1 - 122 / 128)
    assert padding_of(workload((60,) * 10), GPU) == pytest.approx(1 - 60 / 64)


def test_sharding_divides_what_is_stored_and_ddp_doubles_gradients():
    four = Machine("a device", 1e12, count=4)
    parameters = costs_of_config(CONFIG).parameters
    rows = workload()
    rows = replace(rows, section=replace(rows.section, train_batch_size=16))
    alone = planner().stage(rows).memory
    copies = planner(machine=replace(four, count=2)).stage(rows).memory
    assert copies.gradients - alone.gradients == 4 * parameters.trainable
    spread = planner(machine=replace(four, sharded=True)).stage(rows).memory
    assert spread.optimizer == 2 * parameters.trainable
    assert spread.gradients == parameters.trainable
    layer = (parameters.attention + parameters.mlp + parameters.other) / 2
    gathered = 2 * (parameters.embedding + parameters.head + 2 * layer)
    assert spread.weights == pytest.approx(parameters.total + gathered)


CHECKPOINTING = "sft_all.activation_checkpointing=true"
ONE_ROW = f"{CHECKPOINTING} sft_all.per_device_train_batch_size=1"


@pytest.mark.parametrize("words", [CHECKPOINTING, ONE_ROW, f"lora.r=16 {ONE_ROW}"])
def test_a_stage_that_does_not_fit_is_refused_with_the_nearest_setting_that_does(words):
    config = AutoConfig.for_model("llama", num_hidden_layers=2, **(SHAPE | {"hidden_size": 128}))
    rows = workload((256,) * 8, per_device_train_batch_size=4)
    options = {"activation_checkpointing": True}
    options |= {"per_device_train_batch_size": 1} if ONE_ROW in words else {}
    changed = workload((256,) * 8, **({"per_device_train_batch_size": 4} | options))
    lora = LoraSection(r=16 if "lora" in words else 0)
    enough = planner(config=config, lora=lora).memory(changed, accumulates=True).total
    small = planner(config=config, machine=Machine("a card", enough / USABLE + 1))
    with pytest.raises(UserError, match=rf"a card has .* GiB to use; {re.escape(words)} fits"):
        small.check_fits(small.stage(rows))
    planner(config=config).check_fits(small.stage(rows))


def test_4_bits_are_recommended_after_lora_and_sharding_is_not_after_4_bits():
    config = AutoConfig.for_model("llama", num_hidden_layers=2, **(SHAPE | {"hidden_size": 256}))
    rows = workload((64,) * 4, per_device_train_batch_size=1, activation_checkpointing=True)
    lora = LoraSection(r=4)
    in_4bit = replace(GPU, load_in_4bit=True)
    packed = planner(config=config, lora=lora, placement=in_4bit)
    enough = packed.memory(rows, accumulates=True).total
    small = planner(config=config, lora=lora, machine=Machine("a card", enough / USABLE + 1))
    with pytest.raises(UserError, match=r"to use; model\.load_in_4bit=true fits"):
        small.check_fits(small.stage(rows))
    none = replace(packed, machine=Machine("a card", enough / 2))
    with pytest.raises(UserError, match="nothing that truing can change makes it fit"):
        none.check_fits(none.stage(rows))


def test_the_reference_of_many_pairs_at_once_can_take_more_than_a_step_of_one():
    assert REFERENCE_ROWS == SHARD
    config = AutoConfig.for_model("llama", num_hidden_layers=2, **(SHAPE | {"hidden_size": 128}))
    options = {"per_device_train_batch_size": 1, "activation_checkpointing": True}
    section = DpoStage(trl=DpoStage().trl | options)
    alone, many = (pairs_workload(section, [(60, 20, 20)] * n) for n in (1, 64))
    plan = planner(config=config, lora=LoraSection(r=4))
    step = plan.memory(alone, accumulates=True)
    scored = plan.memory(many, accumulates=True)
    assert scored.optimizer == scored.gradients == 0 < step.optimizer
    assert scored.total > step.total
    more = pairs_workload(section, [(60, 20, 20)] * 99)  # another shard, taken after the first
    assert plan.memory(more, accumulates=True) == scored
    # Spread weights are taken in parts, two layers and what is outside of them gathered.
    spread = replace(plan, lora=LoraSection(), machine=Machine("a device", 1e12, None, 4, True))
    parameters = costs_of_config(config).parameters
    outside = parameters.embedding + parameters.head
    layer = (parameters.total - outside) // config.num_hidden_layers
    assert spread._reference(many).weights == parameters.total + 2 * (outside + 2 * layer)
    # By DeepSpeed whole, in float32 and cast.
    by_deepspeed = replace(spread, machine=replace(spread.machine, loads_whole=True))
    assert 0 <= by_deepspeed._reference(many).weights - 4 * parameters.total < 1000


def test_full_model_memory_is_planned_where_processes_hold_all_weights():
    parameters = costs_of_config(CONFIG).parameters
    plain = planner()
    assert plain.full_model == 2 * parameters.total  # measured in bfloat16
    four = Machine("a device", 1e12, None, 4, sharded=True)
    assert replace(plain, machine=four).full_model == 2 * parameters.total  # each reads its part
    late = replace(four, loads_whole=True)
    assert replace(plain, machine=late).full_model == 4 * parameters.total  # loaded, not yet spread
    adapter = replace(plain, machine=four, lora=LoraSection(r=4)).parameters.adapter
    assert replace(
        plain, machine=four, lora=LoraSection(r=4)
    ).full_model == 2 * parameters.total + (4 * adapter)
    matrices = parameters.attention + parameters.mlp
    packed = replace(plain, placement=replace(GPU, load_in_4bit=True))
    assert packed.full_model == nf4_bytes(matrices) + 2 * (parameters.total - matrices)


@pytest.fixture
def large():
    """The paper's 67B model (67.4 B parameters), whose training steps fit 32 devices."""
    kind, shape = CONFIGS["deepseek-ai/deepseek-llm-67b-base"]
    return AutoConfig.for_model(kind, **shape)


def test_a_model_that_fits_no_device_is_measured_in_shards(large):
    many = replace(named_machine("h100"), count=32, sharded=True)
    plan = planner(config=large, machine=many)
    plan.check_full_model()
    assert plan.in_parts("auto") and plan.full_model == 0
    console = Console(width=200, record=True, file=StringIO())
    console.print(budget_table(plan, [], parts=plan.in_parts("auto")))
    assert "full model: 125.59 GiB of weights, on no device; it is measured in shards" in (
        console.export_text()
    )
    roomy = replace(plan, machine=replace(many, memory=160e9))
    assert not roomy.in_parts("auto") and roomy.in_parts(True)
    assert roomy.full_model == 2 * plan.parameters.total
    assert not roomy.in_parts(False)
    words = (
        r" has every process hold .* 125\.6 GiB .* 67\.1 GiB to use; set eval\.in_parts=auto and"
    )
    with pytest.raises(UserError, match=r"eval\.in_parts=false" + words):
        plan.in_parts(False)
    with pytest.raises(UserError, match=r"eval\.backend=vllm" + words):
        plan.in_parts("auto", backend="vllm")
    assert not roomy.in_parts("auto", backend="vllm")


@pytest.mark.parametrize(
    "options",
    [
        {"machine": named_machine("h100")},
        {"machine": replace(named_machine("h100"), count=8)},
        {"machine": Machine("a device", 80e9, None, 8, sharded=True, loads_whole=True)},
        {"lora": LoraSection(r=8)},
        {"config": AutoConfig.for_model("gpt2", n_embd=64, n_layer=2, n_head=2)},
    ],
    ids=["one", "ddp", "zero3", "lora", "gpt2"],
)
def test_sharded_measuring_is_refused_without_fsdp2(large, options):
    many = replace(named_machine("h100"), count=32, sharded=True)
    plan = planner(**({"config": large, "machine": many} | options))
    assert not plan.in_parts("auto")
    with pytest.raises(UserError, match=r"eval\.in_parts=true .* needs FSDP2 .*; set it to auto"):
        plan.in_parts(True)


def test_a_model_that_fits_no_device_is_refused_in_one_sentence(large):
    many = replace(named_machine("h100"), count=32, sharded=True, loads_whole=True)
    with pytest.raises(UserError) as caught:
        planner(config=large, machine=many).check_full_model()
    assert str(caught.value) == (
        "the full model needs 251.2 GiB on each device, where every process holds it to measure "
        "it and before training shards it, and NVIDIA H100 SXM has 67.1 GiB to use; FSDP2 shards "
        "it (recipes/accelerate/fsdp2.yaml, lora.r=0)"
    )
    with pytest.raises(UserError, match=r"needs 125\.6 GiB .* to measure it, and .*; choose a sma"):
        planner(config=large, machine=named_machine("h100")).check_full_model()
    wide = Machine("a device", 160e9, None, 32, sharded=True, loads_whole=True)
    with pytest.raises(UserError, match=r"lora\.r=16 fits"):
        planner(config=large, machine=wide).check_full_model()
    planner(config=large, machine=wide, lora=LoraSection(r=16)).check_full_model()


def test_measuring_and_the_chain_check_the_memory_before_they_load_a_model(
    preset, tmp_path, capsys, monkeypatch
):
    def small(placement):
        return Machine("a thimble", 1e5)

    monkeypatch.setattr("sft.planning.devices.this_machine", small)
    monkeypatch.setattr("recipes.sft_then_dpo.this_machine", small)
    assert train([preset]) == 2
    assert "the full model needs 0.0 GiB on each device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    base = str(tmp_path / "base")
    command = ["--base", base, "--chat", base, "--prompts", str(tmp_path / "rows.jsonl")]
    assert compare([*command, "--cap", "64", "--to", str(tmp_path / "compared")]) == 2
    assert re.search(r"base \(.*\) needs .* and a thimble has", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("shape", "lora", "placement"),
    [
        ({}, 4, GPU),
        ({}, 0, replace(GPU, attention="eager")),
        ({"num_key_value_heads": 1}, 0, CPU),
        ({"vocab_size": 30_000, "num_hidden_layers": 1}, 4, CPU),
        ({"intermediate_size": 2000, "num_hidden_layers": 1}, 0, CPU),
    ],
)
def test_the_ceiling_is_above_the_planned_memory(shape, lora, placement):
    config = AutoConfig.for_model("llama", **({"num_hidden_layers": 2} | SHAPE | shape))
    plan = planner(config=config, placement=placement, lora=LoraSection(r=lora))
    pairs = pairs_workload(DpoStage(), [(60, 20, 20)] * 70)
    many = workload((30,) * 200, per_device_train_batch_size=50)
    for rows in (workload((900, 5)), many, pairs):
        found = plan.memory(rows, accumulates=True).total - plan.process
        assert plan.ceiling(rows) - plan.process > 1.5 * found


def test_a_certain_plan_stops_a_run_and_an_upper_bound_warns(caplog):
    rows, pairs = workload(), pairs_workload(DpoStage(), [(30, 5, 7)] * 8, bound=True)
    needed = planner().stage(rows).memory.total
    check_memory(planner(machine=Machine("a card", 2 * needed)), [rows])
    assert not caplog.text
    check_memory(planner(machine=Machine("a card", 1.01 * needed)), [rows])
    assert "sft-all needs" in caplog.text and "continuing" in caplog.text
    with pytest.raises(UserError, match=r"sft-all needs .* fits"):
        check_memory(planner(machine=Machine("a card", needed - 1)), [rows])
    caplog.clear()
    check_memory(planner(machine=Machine("a card", 1e3)), [pairs])
    assert "dpo, at most needs" in caplog.text


def test_layers_that_the_plan_does_not_know_are_no_error(caplog):
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=260)
    check_memory(planner(config=config), [workload()])
    show_budget(planner(config=config), [workload()], parts=False)
    assert "plan: none, it does not know the layers of a 'mamba' model" in caplog.text


def test_target_modules_that_the_model_lacks_are_one_sentence():
    lora = LoraSection(r=4, target_modules=["nonsense"])
    with pytest.raises(
        UserError, match="this 'llama' model has no such layer; its linear layers are"
    ):
        check_memory(planner(lora=lora), [workload()])


def test_a_device_that_is_not_known_is_one_sentence():
    with pytest.raises(UserError, match="--device b52 is not one of h200, h100"):
        named_machine("b52")


@pytest.fixture
def preset(tmp_path, tiny_tokenizer):
    make_tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {"prompt": f"{i}+{i}", "response": str(2 * i), "kind": "dialogue"} for i in range(20, 40)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": f"no {i}"} for i in range(6)]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    stage = {"train_batch_size": 8, "per_device_train_batch_size": 4, "max_length": 128}
    content = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"name_or_path": str(tmp_path / "base"), "dtype": "float32"},
        "data": {
            "sft": [{"path": str(tmp_path / "rows.jsonl")}],
            "preference": [{"path": str(tmp_path / "pairs.jsonl")}],
        },
        "sft_all": stage | {"num_train_epochs": 1},
        "sft_dialogue": {"enabled": False},
        "dpo": stage,
        "eval": {"repetition": {"prompts": str(tmp_path / "rows.jsonl"), "cap": 64}},
    }
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "preset.yaml")


def line(text, label):
    return re.search(rf"^ *{re.escape(label)} +(.+?) *$", text, re.MULTILINE).group(1).split()


def test_the_plan_counts_what_the_run_then_does(preset, tmp_path, capsys):
    assert main([preset, "--device", "h100"]) == 0
    planned = capsys.readouterr().out
    assert train([preset]) == 0
    stages = read_json(tmp_path / "run" / "results.json")["stages"]
    assert line(planned, "steps") == [str(stages[name]["steps"]) for name in ("sft-all", "dpo")]
    assert line(planned, "rows") == ["20", "6"]
    # The last step of either stage is filled up: with one token a row, or with the first pair.
    assert int(line(planned, "tokens an epoch")[0]) == stages["sft-all"]["tokens"] - 4
    assert "parameters: 26,912 (" in planned
    assert line(planned, "hours") == ["<0.01", "<0.01"]


def test_a_dry_run_shows_the_plan(preset, capsys):
    assert train([preset, "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert len(line(shown, "memory, GiB")) == 2 and "parameters: 26,912" in shown
    assert len(line(shown, "hours")) == 2  # of any device: its matrix products are measured
    told = " ".join(shown.split())
    assert re.search(r"measuring, at most: \S+ hours \(base \S+, 2 trained", told), told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "abacus"], "is not one of"),
        (["--sharded"], "--devices 2 or more"),
        (
            ["--sharded", "--devices", "2", "model.load_in_4bit=true", "lora.r=4"],
            "model.load_in_4bit=true keeps them whole on each",
        ),
        (["--utilisation", "1.5"], "at most 1"),
        (["--devices", "0"], "--devices 0 must be 1 or more"),
        (
            ["--device", "h100", "--devices", "3"],
            "train_batch_size=8 is no multiple of 12",
        ),
        (["--device", "h100", "eval.in_parts=true"], "needs FSDP2"),
    ],
)
def test_mistakes_are_one_sentence(preset, capsys, arguments, words):
    assert main([preset, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_plan_for_a_cpu_includes_python_and_its_libraries_as_the_log_does():
    held = psutil.Process().memory_info().rss
    plans = [replace(planner(), placement=placement) for placement in (CPU, GPU)]
    here, there = (plan.stage(workload()) for plan in plans)
    assert 0.9 * held < here.memory.process < memory_in_use(CPU.device) * 1.1
    assert here.memory.total - here.memory.process < held
    assert there.memory.process == 0
    text = StringIO()
    Console(file=text, width=120).print(budget_table(plans[0], [here], parts=False))
    assert line(text.getvalue(), "process, GiB") == [f"{here.memory.process / 2**30:.2f}"]
    assert plans[0].ceiling(workload()) > here.memory.total


def test_many_hours_are_formatted_as_integers():
    shown = [format_hours(hours, 2) for hours in (0.0123, 9.87, 99.4, 250.4, 12345.6)]
    assert shown == ["0.012", "9.9", "99", "250", "12,346"]
