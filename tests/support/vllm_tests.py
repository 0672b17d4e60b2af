"""Set up the tests of the vLLM backend, with the stand-in or with the real vLLM.

If TRUING_VLLM_PYTHON names a Python with vLLM, it replaces the stand-in. Its random draws differ,
so sampled answers are not compared then.
"""

import os

import pytest
from files import ROOT

from eval.backends.vllm_backend import find_vllm
from sft.config.sections import EvalSection, ModelSection, Preset
from sft.context import RunContext
from sft.model.placement import choose_placement

REAL = os.environ.get("TRUING_VLLM_PYTHON")
SECTION = EvalSection(backend="vllm", vllm_python=REAL)
draws_as_ours = pytest.mark.skipif(bool(REAL), reason="vLLM draws its own numbers")


def on_path(patch, folder):
    """Let Python processes started from here find the packages in `folder`."""
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    find_vllm.cache_clear()


def context_of(folder, tokenizer, **changes):
    preset = Preset(model=ModelSection(str(folder), dtype="float32"), **changes)
    placement = choose_placement(preset.model)
    return RunContext.of(preset, folder=folder, tokenizer=tokenizer, placement=placement)


def fake_package(folder, source, *, device="''"):
    """Write a `vllm` package of a few lines that computes nothing."""
    package = folder / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (package / "platforms.py").write_text(f"class current_platform:\n    device_type = {device}\n")
    return folder
