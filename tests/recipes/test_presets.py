"""Every shipped preset parses, names files that exist, and fits the devices that it names."""

import importlib.util
import re
import types
from dataclasses import replace

import pytest
import torch
from files import ROOT
from hub_stand_in import CONFIGS, ROWS, stand_in
from launching import long
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from transformers import AutoConfig

from recipes.plan_run import main as plan
from recipes.sft_then_dpo import main as train
from sft.config.preset import find_path, load_preset
from sft.model.placement import Placement
from sft.planning.budget import REFERENCE_ROWS, Planner, named_placement, pairs_workload
from sft.planning.device_memory import GIB
from sft.planning.devices import Machine, named_machine

PRESETS = sorted((ROOT / "recipes" / "presets").rglob("*.yaml"))


def test_there_are_presets():
    assert {p.stem for p in PRESETS} >= {"quickstart", "own_model"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_parses(path):
    preset = load_preset(path)
    assert preset.run.dir.startswith("runs/")
    assert preset.dpo.trl["num_train_epochs"] == 1  # the paper's


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_key_of_a_preset_says_why_or_belongs_to_a_commented_group(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    tops = [line for line in lines if re.match(r"[a-z_]+:", line)]
    assert lines[0].startswith("#") and len(tops) == 9
    assert sum("#" in line for line in lines) >= len(lines) / 4


def test_the_quickstart_names_only_files_of_the_checkout():
    preset = load_preset(ROOT / "recipes" / "presets" / "quickstart.yaml")
    named = [
        preset.model.name_or_path,
        preset.model.chat_template,
        preset.eval.task_dir,
        preset.eval.repetition.prompts,
        *(source.path for source in (*preset.data.sft, *preset.pairs.prompts)),
    ]
    for path in named:
        assert path.startswith("recipes/quickstart/") and find_path(path) is not None


OF_THE_HUB = [path for path in PRESETS if path.stem not in ("quickstart", "own_model")]
# Where each is meant to run.
DEVICES = {
    "deepseek_llm_7b": ["--device", "h100", "--devices", "8", "--sharded"],
    "deepseek_llm_67b": ["--device", "h100", "--devices", "32", "--sharded"],
    "llama3_8b_fsdp_8gpu": ["--device", "h100", "--devices", "8", "--sharded"],
    "qwen3_0.6b_lora": ["--device", "rtx4090"],
    "qwen3_8b_qlora_single_gpu": ["--device", "rtx4090"],
    "smollm2_135m_full": ["--device", "rtx4090"],
    "smollm2_1.7b_lora_mac": ["--device", "a100-40"],
}
TOKENS = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"]


@pytest.fixture
def hub(tmp_path, tiny_tokenizer):
    """Return overrides that replace a preset's models and data of the Hub by local folders."""

    def overrides(path):
        if path.stem.startswith("llama3"):
            known = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *TOKENS]}
            tiny_tokenizer.add_special_tokens(known)
            tiny_tokenizer.bos_token = "<|begin_of_text|>"
        return stand_in(path, tmp_path, tiny_tokenizer)

    return overrides


def test_every_preset_of_the_hub_has_its_device():
    assert {path.stem for path in OF_THE_HUB} == set(DEVICES)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("path", OF_THE_HUB, ids=lambda p: p.stem)
def test_presets_of_the_hub_plan_where_they_are_meant_to_run(path, hub, capsys):
    assert plan([str(path), *hub(path), *DEVICES[path.stem]]) == 0
    captured = capsys.readouterr()
    shown = captured.err + captured.out  # the rows in the log, the plan on stdout
    preset = load_preset(path)
    stages = ["sft-all", *["sft-dialogue"] * bool(preset.sft_dialogue.enabled), "dpo"]
    assert re.search(r"^ +" + " +".join(stages) + " *$", shown, re.MULTILINE)
    kinds = ["math", "code", "dialogue"]
    assert all(re.search(rf"\.jsonl +{kind} +40 ", shown) for kind in kinds)
    steps = re.search(r"^ *steps +(.+?) *$", shown, re.MULTILINE).group(1).split()
    rows = 120 / preset.sft_all.train_batch_size
    assert int(steps[0]) == preset.sft_all.trl["num_train_epochs"] * -(-rows // 1)


def test_a_preset_of_the_hub_dry_runs(hub, capsys):
    path = ROOT / "recipes" / "presets" / "smollm2_135m_full.yaml"
    assert train([str(path), *hub(path), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "⟦" in shown.out and "memory, GiB" in shown.err


def test_the_qlora_preset_dry_runs_on_a_gpu_and_is_refused_without_one(hub, capsys, monkeypatch):
    path = ROOT / "recipes" / "presets" / "qwen3_8b_qlora_single_gpu.yaml"
    # float32, because upstream looks for bfloat16 units itself.
    command = [str(path), *hub(path), "--dry-run", "model.dtype=float32"]

    class State:
        device = torch.device("cpu")
        num_processes = 1

    monkeypatch.setattr("sft.model.placement.PartialState", State)
    assert train(command) == 2
    assert "model.load_in_4bit=true needs an NVIDIA GPU (CUDA)" in capsys.readouterr().err
    monkeypatch.setattr(State, "device", torch.device("cuda"))
    # peft asks too, once; it is to hear the truth, and only our check that it is installed.
    is_bnb_available(), is_bnb_4bit_available()
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: name == "bitsandbytes" or real(name, *_)
    )
    monkeypatch.setattr("sft.run.run_record.version", lambda name: "0.50.2")
    gpu = types.SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: gpu.name)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert train(command) == 0
    shown = capsys.readouterr().err
    assert "memory, GiB" in shown
    gpu.total_memory = 6e9
    assert train(command) == 2
    assert re.search(
        r"sft-all needs .* GiB on each device .*4090 has 5\.0", capsys.readouterr().err
    )


@pytest.mark.parametrize("path", OF_THE_HUB, ids=lambda p: p.stem)
def test_presets_of_the_hub_name_licences_and_what_stage_2_needs(path):
    preset = load_preset(path)
    sources = [*preset.data.sft, *preset.data.preference]
    assert preset.model.name_or_path in CONFIGS and preset.model.license
    assert all(source.path in ROWS and source.license for source in sources)
    assert set(preset.sft_dialogue.kinds) <= {source.kind for source in preset.data.sft}
    assert "GiB" in path.read_text(encoding="utf-8").partition("\nrun:")[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem == "smollm2_135m_full" else long)
        for path in OF_THE_HUB
    ],
)
def test_a_header_names_the_planned_memory(path):
    """Pairs of `max_length` with the shortest prompts take more memory than chats do."""
    header, _, _ = path.read_text(encoding="utf-8").partition("\nrun:")
    told = re.findall(r"(\d+\.\d) GiB", header)
    preset = load_preset(path)
    kind, shape = CONFIGS[preset.model.name_or_path]
    config = AutoConfig.for_model(kind, **shape)
    given = DEVICES[path.stem]
    machine = named_machine(given[1])
    if "--sharded" in given:
        machine = replace(machine, count=int(given[3]), sharded=True)
    if path.stem.endswith("_mac"):
        machine, mps = Machine("a Mac", 32e9), torch.device("mps")
        placement = Placement(mps, torch.float32, torch.bfloat16, "sdpa", ())
    else:
        placement = named_placement(preset.model)
    planner = Planner(config, preset.lora, placement, machine)
    length = preset.dpo.trl["max_length"]
    pairs = pairs_workload(preset.dpo, [(1, length - 1, length - 1)] * REFERENCE_ROWS)
    assert told[0] == f"{planner.memory(pairs, accumulates=True).total / GIB:.1f}"
    if planner.in_parts("auto"):
        assert told[1] == f"{planner.measured / GIB:.1f}"


def test_the_paper_s_presets_have_the_paper_s_numbers():
    """Section 4 and 5.1.2 of arXiv 2401.02954."""
    small, large = (
        load_preset(ROOT / f"recipes/presets/deepseek_llm_{n}.yaml") for n in ("7b", "67b")
    )
    assert [p.sft_all.trl["num_train_epochs"] for p in (small, large)] == [4, 2]
    assert [p.sft_all.trl["learning_rate"] for p in (small, large)] == [1e-5, 5e-6]
    assert small.sft_dialogue.enabled is True and large.sft_dialogue.enabled == "auto"
    for preset in (small, large):
        options = preset.dpo.trl
        assert options["learning_rate"] == 5e-6 and options["num_train_epochs"] == 1
        assert preset.dpo.train_batch_size == 512
        assert options["lr_scheduler_type"] == "cosine" and options["warmup_steps"] > 0
        assert preset.lora.r == 0
        math, _, dialogue = preset.data.sft
        assert (math.count or 0) / (dialogue.count or 1) == pytest.approx(46.6 / 31.2, rel=0.01)
