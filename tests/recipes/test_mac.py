"""The statements of recipes/mac.md, with MPS faked: choices, refusals and the preset's plan."""

import ast
import re

import pytest
import torch
from files import ROOT
from hub_stand_in import stand_in

from recipes.sft_then_dpo import main as train
from sft.config.sections import ModelSection
from sft.model import placement as placement_module
from sft.model.placement import choose_placement
from sft.planning import devices

PAGE = (ROOT / "recipes" / "mac.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", PAGE, re.MULTILINE))
FOR_CUDA = {"bitsandbytes", "triton", "flash_attn", "xformers", "liger_kernel"}


@pytest.fixture
def mac(monkeypatch, tmp_path, tiny_tokenizer):
    """The dry run of a preset of the hub, its model two layers deep, on a Mac whose GPU may take
    so much."""

    def command(preset, *overrides, gib):
        class State:
            device = torch.device("mps")
            num_processes = 1

        monkeypatch.setattr(placement_module, "PartialState", State)
        monkeypatch.setattr(placement_module, "_apple_chip", lambda: "Apple M3 Pro")
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: int(gib * 2**30))
        # What transformers asks of macOS (14 or later) before it takes bf16.
        monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
        # Matrix products are measured on the device, which is not here.
        monkeypatch.setattr(devices, "matrix_peak", lambda *_: 5e12)
        path = ROOT / "recipes" / "presets" / f"{preset}.yaml"
        hub = stand_in(path, tmp_path, tiny_tokenizer)
        return train([str(path), *hub, "--dry-run", *overrides])

    return command


@pytest.mark.parametrize(
    ("row", "chips"),
    [
        ("M1, M2", ["Apple M1", "Apple M1 Ultra", "Apple M2 Max"]),
        ("M3 and later", ["Apple M3", "Apple M4 Pro", "Apple M5"]),
    ],
)
def test_each_chip_computes_in_the_dtype_that_the_page_says(row, chips, monkeypatch):
    for chip in chips:
        state = type("State", (), {"device": torch.device("mps"), "num_processes": 1})
        monkeypatch.setattr(placement_module, "PartialState", state)
        monkeypatch.setattr(placement_module, "_apple_chip", lambda chip=chip: chip)
        placement = choose_placement(ModelSection())
        assert ROWS[row] == f"matrix products in {str(placement.compute)[6:]}"
        assert ROWS["attention"].startswith(placement.attention)
        assert placement.weights == torch.float32 and not placement.load_in_4bit


def test_the_mac_preset_plans_and_dry_runs_on_a_mac(mac, capsys):
    given = ("sft_all.torch_empty_cache_steps=10", "sft_dialogue.enabled=false")
    assert mac("smollm2_1.7b_lora_mac", *given, gib=5) == 0
    shown = capsys.readouterr()
    assert "memory: of each device (this Mac)" in shown.err and "⟦" in shown.out


def test_what_a_mac_cannot_do_is_refused_with_what_it_can(mac, capsys):
    assert mac("qwen3_8b_qlora_single_gpu", gib=20) == 2
    said = capsys.readouterr().err
    assert "bitsandbytes does not train on a Mac" in said
    assert "recipes/presets/smollm2_1.7b_lora_mac.yaml" in said


def test_a_preset_that_is_too_large_for_a_mac_is_refused_by_its_plan(mac, capsys):
    assert mac("deepseek_llm_7b", "sft_dialogue.enabled=false", "dpo.enabled=false", gib=16) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"needs [\d.]+ GiB .*this Mac has [\d.]+ GiB to use", said), said
    assert "FSDP" not in said  # a Mac has one GPU


def test_nothing_that_is_for_cuda_alone_is_imported_by_our_modules():
    files = [p for room in ("sft", "dpo", "eval", "recipes") for p in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FOR_CUDA, path
