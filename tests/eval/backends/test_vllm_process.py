"""vLLM is found or refused by name, and its process starts and ends with its run."""

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from files import ROOT
from tiny_models import make_tiny_model
from vllm_tests import context_of, fake_package, on_path

from eval.backends.loading import backend_inputs, check_backend, loaded
from eval.backends.vllm_backend import CHILD, check_vllm, environment, find_vllm
from sft.config.preset import load_preset
from sft.config.sections import EvalSection, ModelSection
from sft.errors import UserError
from sft.model.placement import choose_placement


def test_a_vllm_that_is_not_there_is_said_before_anything_loads(
    tmp_path, tiny_tokenizer, monkeypatch
):
    on_path(monkeypatch, ROOT)
    context = context_of(tmp_path, tiny_tokenizer)
    for python, words in {
        "/nowhere/python": r"eval.vllm_python=/nowhere/python cannot be started \(No such file",
        sys.executable: r"cannot import vLLM \(ModuleNotFoundError: No module named 'vllm'\)",
    }.items():
        if python == sys.executable and importlib.util.find_spec("vllm"):
            continue
        section = EvalSection(backend="vllm", vllm_python=python)
        with pytest.raises(UserError, match=words) as error:
            check_backend(section, context.placement)
        assert "~/vllm/bin/pip install vllm" in str(error.value)
    check_backend(EvalSection(), context.placement)
    assert backend_inputs(EvalSection(), context) == {}


@pytest.mark.parametrize("device", ["cuda", ""])
def test_a_vllm_of_another_device_is_refused_by_name(tmp_path, monkeypatch, device):
    on_path(
        monkeypatch, fake_package(tmp_path, "__version__, LLM = '9', None", device=repr(device))
    )
    named = device or "no device of this machine"
    with pytest.raises(UserError, match=f"computes on {named}, and the run is on cpu"):
        check_vllm(None, torch.device("cpu"))
    with pytest.raises(UserError, match="vLLM does not compute on mps"):
        check_vllm(None, torch.device("mps"))
    find_vllm.cache_clear()


def test_vllm_is_told_nothing_of_ranks_and_sends_nothing_home(tmp_path, monkeypatch):
    names = ["VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_ENABLE_V1_MULTIPROCESSING", "RANK"]
    names += ["TORCHELASTIC_USE_AGENT_STORE", "ACCELERATE_USE_FSDP"]
    source = (
        f"import os\nLLM = None\n__version__ = ' '.join(os.environ.get(n, '-') for n in {names})"
    )
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    on_path(monkeypatch, fake_package(tmp_path, source))
    assert find_vllm(None).version == "1 1 0 - - -"
    find_vllm.cache_clear()


@pytest.mark.parametrize("visible, seen", [(None, ["0", "1", None]), ("5,7", ["5", "7", "5,7"])])
def test_the_vllm_of_a_process_sees_the_gpu_of_that_process(monkeypatch, visible, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices = [torch.device(name) for name in ("cuda:0", "cuda:1", "cuda")]
    assert [environment(device).get("CUDA_VISIBLE_DEVICES") for device in devices] == seen


SLEEPER = """
import time
TokensPrompt = SamplingParams = dict
class LLM:
    class model_config:
        max_model_len = 8
    def __init__(self, **kwargs): print("words of vLLM", flush=True)
    def generate(self, *args, **kwargs): time.sleep(600)
"""


def test_the_process_ends_with_its_orders_whatever_it_is_at(tmp_path, monkeypatch):
    on_path(monkeypatch, fake_package(tmp_path, SLEEPER))
    child = subprocess.Popen(
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child.stdin.write(json.dumps({"load": {}}) + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "8\n", "vLLM's words do not go between the replies"
    child.stdin.write(json.dumps({"write": [{"ids": [1], "params": {}}]}) + "\n")
    child.stdin.flush()
    time.sleep(0.2)
    _, words = child.communicate(timeout=60)  # closes its standard input, as a killed run does
    assert child.returncode == 0 and words == "words of vLLM\n"


def test_a_model_that_vllm_does_not_take_is_said(tmp_path, monkeypatch, tiny_tokenizer, capfd):
    source = (
        "__version__ = '9'\nclass LLM:\n    def __init__(self, **kwargs): raise ValueError('no')"
    )
    on_path(monkeypatch, fake_package(tmp_path, source, device="'cpu'"))
    make_tiny_model().save_pretrained(tmp_path / "model")
    context = context_of(tmp_path, tiny_tokenizer)
    words = r"vLLM 9 did not load .*model \(exit code 1, its reason is above\)"
    with (
        pytest.raises(UserError, match=words),
        loaded(str(tmp_path / "model"), context, EvalSection(backend="vllm")),
    ):
        pass
    assert "ValueError: no" in capfd.readouterr().err
    find_vllm.cache_clear()


def test_settings_that_the_backend_would_not_follow_are_refused(tmp_path):
    path = tmp_path / "preset.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {sft: [{path: a}]}\ndpo: {enabled: false}\n")
    with pytest.raises(UserError, match=r"eval.vllm_python=/p has no effect on eval.backend="):
        load_preset(path, overrides=["eval.vllm_python=/p"])
    with pytest.raises(UserError, match=r"vLLM loads the full model in each process"):
        load_preset(path, overrides=["eval.backend=vllm", "eval.in_parts=true"])
    with pytest.raises(UserError, match=r"eval.backend='tgi' is not one of transformers, vllm"):
        load_preset(path, overrides=["eval.backend=tgi"])
    placement = replace(choose_placement(ModelSection()), load_in_4bit=True)
    with pytest.raises(
        UserError, match=r"eval.backend=vllm would measure full-precision weights, not the"
    ):
        check_backend(EvalSection(backend="vllm"), placement)
