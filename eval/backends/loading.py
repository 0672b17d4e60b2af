"""Load a model with the backend that the preset names."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import GenerationConfig

from eval.backends.base import BACKEND, Backend
from eval.backends.transformers_backend import TransformersBackend
from eval.backends.vllm_backend import VllmModel, check_vllm, find_vllm, vllm_backend
from sft.chat_template.encoding import ids_of
from sft.config.sections import EvalSection
from sft.context import RunContext
from sft.distributed.collectives import run_on_main
from sft.distributed.fsdp_forward import synchronized_forwards
from sft.errors import UserError
from sft.model.architecture import window_of
from sft.model.loading import free_memory, load_model
from sft.model.model_config import read_model_config
from sft.model.placement import Placement, on_cpu
from sft.run.adapters import is_adapter
from sft.run.revisions import split_revision


def check_backend(section: EvalSection, placement: Placement) -> None:
    """Check before any model is loaded that the backend works here.

    Raises:
        UserError: vLLM is not installed, does not support the run's device, or would read other
            weights than the run.
    """
    if section.backend == "vllm":
        if placement.load_in_4bit:
            raise UserError(
                "eval.backend=vllm would measure full-precision weights, not the 4-bit ones of "
                "model.load_in_4bit=true; set eval.backend=transformers"
            )
        check_vllm(section.vllm_python, placement.device)


def backend_inputs(section: EvalSection, context: RunContext) -> dict[str, str]:
    """Return the backend's part of a measure's inputs: a new backend invalidates the measure."""
    if section.backend != "vllm":
        return {}  # measures from before vLLM was supported stay valid
    version = find_vllm(section.vllm_python).version
    return {BACKEND: f"vllm {version} {context.placement.inference}"}


@contextmanager
def loaded(path: str, context: RunContext, section: EvalSection) -> Iterator[Backend]:
    """Load the model or adapter at `path` to score and generate; free vLLM's memory at the end.

    All processes call it. Each loads the full model on its device; or, if the context shards
    models, all load a part and run each forward pass together.

    Raises:
        UserError: vLLM does not load the model.
    """
    if section.backend == "vllm":
        with _in_vllm(path, context, section) as backend:
            yield backend
    else:
        model = load_model(
            path,
            context.placement,
            dtype=context.placement.inference,
            trust_remote_code=context.trust_remote_code,
            parts=context.parts,
        )
        with synchronized_forwards(model):
            yield TransformersBackend(model, context.tokenizer)


@contextmanager
def _in_vllm(path: str, context: RunContext, section: EvalSection) -> Iterator[Backend]:
    """Load in vLLM from a temporary folder of the run, which the first process writes for all."""
    scratch, trust = context.folder / ".vllm", context.trust_remote_code

    def prepare() -> str:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed run
        full = _merged(path, context, scratch / "model") if is_adapter(path) else path
        # Our tokenizer has the added tokens; vLLM also reads the model type from its folder.
        config = read_model_config(full, trust_remote_code=trust)
        config.save_pretrained(scratch / "tokenizer")
        context.tokenizer.save_pretrained(scratch / "tokenizer")
        return full

    try:
        full = run_on_main(prepare)
        config = read_model_config(full, trust_remote_code=trust)
        free_memory()
        model = VllmModel(
            full,
            tokenizer_folder=scratch / "tokenizer",
            dtype=context.placement.inference,
            window=window_of(config),
            eos_ids=_eos_ids(full, config),
            seed=context.seed,
            trust_remote_code=trust,
        )
        device = context.placement.device
        vllm = check_vllm(section.vllm_python, device)
        with vllm_backend(model, vllm=vllm, tokenizer=context.tokenizer, device=device) as backend:
            yield backend
    finally:
        if PartialState().is_main_process:
            shutil.rmtree(scratch, ignore_errors=True)


def _merged(path: str, context: RunContext, folder: Path) -> str:
    """Merge an adapter into its base in float32 on the CPU, and return the folder.

    vLLM supports neither all ranks nor embeddings that are trained with an adapter.
    """
    placement = replace(on_cpu(context.placement), attention="sdpa")
    model = load_model(
        path, placement, dtype=torch.float32, trust_remote_code=context.trust_remote_code
    )
    model.merge_and_unload().to(context.placement.inference).save_pretrained(folder)
    return str(folder)


def _eos_ids(path: str, config: Any) -> tuple[int, ...]:
    """Return the eos ids that transformers would set on the loaded model."""
    name, at = split_revision(path)
    try:
        settings = GenerationConfig.from_pretrained(name, revision=at or "main")
    except OSError:  # the model has no generation_config.json
        settings = GenerationConfig.from_model_config(config)
    return ids_of(settings.eos_token_id)
