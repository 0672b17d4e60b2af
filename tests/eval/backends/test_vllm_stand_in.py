"""The stand-in for vLLM has only names that vLLM has.

TRUING_VLLM_SOURCE, a folder with vLLM's source, is enough for these tests.
"""

import ast
import dataclasses
import importlib.util
import inspect
import os
from pathlib import Path

import pytest
import vllm_stand_in


def vllm_source():
    """The folder of vLLM's source, found without importing it."""
    given = os.environ.get("TRUING_VLLM_SOURCE")
    spec = importlib.util.find_spec("vllm")
    if given is None and (spec is None or not spec.submodule_search_locations):
        pytest.skip("no vLLM here to compare with; set TRUING_VLLM_SOURCE to its source")
    return Path(given or spec.submodule_search_locations[0])


def class_of(path, name):
    (found,) = (
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    return found


def fields_of(node):
    return {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }


def arguments_of(node, method):
    (found,) = (
        item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == method
    )
    return {a.arg for a in (*found.args.args, *found.args.kwonlyargs)}


def test_the_stand_in_has_no_name_that_vllm_lacks():
    source = vllm_source()
    engine = class_of(source / "engine" / "arg_utils.py", "EngineArgs")
    llm = class_of(source / "entrypoints" / "llm.py", "LLM")
    known = {
        "LLM.__init__": arguments_of(llm, "__init__") | fields_of(engine),
        "LLM.generate": arguments_of(llm, "generate"),
        "SamplingParams": fields_of(class_of(source / "sampling_params.py", "SamplingParams")),
        "Logprob": fields_of(class_of(source / "logprobs.py", "Logprob")),
        "CompletionOutput": fields_of(class_of(source / "outputs.py", "CompletionOutput")),
        "RequestOutput": arguments_of(class_of(source / "outputs.py", "RequestOutput"), "__init__"),
        "TokensPrompt": fields_of(class_of(source / "inputs" / "llm.py", "TokensPrompt")),
    }

    def named(cls):
        return {field.name for field in dataclasses.fields(cls)}

    touched = {
        "LLM.__init__": set(inspect.signature(vllm_stand_in.LLM.__init__).parameters),
        "LLM.generate": set(inspect.signature(vllm_stand_in.LLM.generate).parameters),
        "TokensPrompt": set(vllm_stand_in.TokensPrompt.__annotations__),
    } | {
        name: named(getattr(vllm_stand_in, name))
        for name in ("SamplingParams", "Logprob", "CompletionOutput", "RequestOutput")
    }
    lacking = {name: touched[name] - names for name, names in known.items()}
    assert not any(lacking.values()), lacking


def test_vllm_still_has_what_is_relied_on():
    source = vllm_source()
    exported = (source / "__init__.py").read_text("utf-8")
    for name in ("LLM", "SamplingParams", "TokensPrompt", "__version__"):
        assert f'"{name}"' in exported
    engine = (source / "v1" / "engine" / "__init__.py").read_text("utf-8")
    assert '"stop"' in engine and '"length"' in engine
    envs = (source / "envs.py").read_text("utf-8")
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL"):
        assert f'"{name}"' in envs
    assert "DO_NOT_TRACK" in envs
    platform = (source / "platforms" / "interface.py").read_text("utf-8")
    assert "device_type: str" in platform
