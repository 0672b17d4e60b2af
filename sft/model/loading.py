"""Find, check, load and save models and their tokenizers."""

import ctypes
import gc
import logging
import math
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    set_seed,
)

from sft.chat_template.encoding import ids_of, stop_ids
from sft.chat_template.system_prompt import KEEP, default_system, quoted, set_system_prompt
from sft.chat_template.template import ensure_template
from sft.chat_template.template_date import set_date, uses_date
from sft.config.sections import LoraSection, ModelSection
from sft.distributed.sharding import (
    loads_shards,
    prepare_for_accelerate,
    reshard,
    sharding_options,
)
from sft.errors import UserError
from sft.model.adapter_card import write_adapter_card
from sft.model.adapter_checks import check_given_adapter
from sft.model.adapter_settings import check_adapter
from sft.model.architecture import check_causal, window_of
from sft.model.fused_lora import fuse_adapters
from sft.model.generation_settings import check_generation, repair_generation_config
from sft.model.lora_targets import adapter_coverage, add_adapter, lora_config
from sft.model.model_config import read_model_config
from sft.model.model_files import (
    LIBRARY_ERRORS,
    build_empty,
    check_config_file,
    check_sizes,
    loading,
    reason_of,
    try_tokenizer,
)
from sft.model.placement import Placement
from sft.model.quantization import nf4
from sft.model.vocabulary import add_tokens, check_vocabulary, token_rows
from sft.model.weight_files import check_entries, check_values, check_weights, read_weights
from sft.packing.equivalence import verify_packing
from sft.packing.liger import enable_liger
from sft.packing.lm_head_logprobs import select_logprob_head
from sft.packing.logprobs import enable_scoring
from sft.run.adapters import CONFIG, adapter_base, is_adapter, tokenizer_path
from sft.run.revisions import is_hub_id, located, resolve_commit, split_revision, with_revision
from sft.run.stage_folders import find_local_model
from sft.system.atomic_files import describe_os_error, reset_permissions
from sft.system.hub import hub_refusal

log = logging.getLogger(__name__)


def resolve_model_path(name_or_path: str, *, revision: str | None = None) -> str:
    """Return a local directory, or `org/name@commit` for a Hub id.

    The commit is left out where neither the Hub nor the cache of downloads names it.

    Args:
        name_or_path: a path, or a Hub id with or without `@revision`.
    """
    at = f"model.name_or_path={name_or_path}"
    named = with_revision(ModelSection(name_or_path, revision=revision))
    found = find_local_model(name_or_path)
    if found is None:
        name = named.name_or_path
        if not is_hub_id(name):
            raise UserError(
                f"{at}: no such directory; give a local model directory or a hub id like org/name"
            )
        commit = resolve_commit(name, revision=named.revision)
        return name if commit is None else f"{name}@{commit}"
    if revision is not None:
        raise UserError(
            f"model.revision={revision}: {at} is a local directory, which has no revisions; leave "
            "model.revision out"
        )
    if not found.is_dir():
        raise UserError(f"{at} is a file; give the model's directory")
    if not any((found / f).is_file() for f in ("config.json", CONFIG)):
        raise UserError(
            f"{at} holds no config.json or {CONFIG}; give a directory saved by save_pretrained"
        )
    return str(found.resolve())


def check_model(section: ModelSection) -> str:
    """Check a model before any weights are loaded, and return its resolved path or Hub id."""
    given = section.name_or_path
    path = resolve_model_path(given, revision=section.revision)
    check_sizes(path, given=given)
    check_adapter(path, given=given)
    base, base_given = path, given
    if is_adapter(path):
        base = adapter_base(path)
        base_given = f"{given} (its base, {base[:200]!r})"
    # Each check relies on those before it: file sizes before JSON, numbers before building.
    check_sizes(base, given=base_given)
    check_config_file(base, given=base_given)
    try:
        config = read_config(path, section)
    except UserError:
        raise
    except LIBRARY_ERRORS as error:
        raise UserError(f"model.name_or_path={base_given}: {_unreadable(error, path)}") from None
    check_causal(config, given=base_given)
    check_weights(path, given=given)
    check_generation(base, given=base_given)
    build_empty(config, given=base_given)
    check_given_adapter(path, config, given=given)
    return path


def _unreadable(error: Exception, path: str) -> str:
    """Return the reason why no configuration could be read, and the remedy."""
    if refusal := hub_refusal(error, name=adapter_base(path) if is_adapter(path) else path):
        return refusal
    if "trust_remote_code" in str(error):
        return (
            "it brings its own code, which runs only with your permission; read that code, then "
            "set model.trust_remote_code=true on the command line, or give a model that "
            "transformers knows"
        )
    return (
        f"no model could be read there ({reason_of(error)}); correct its config.json, or give "
        "another directory or hub id"
    )


def read_config(path: str, section: ModelSection) -> Any:
    """Return the configuration of a model, or of an adapter's base."""
    return read_model_config(path, trust_remote_code=section.trust_remote_code)


def context_window(path: str, section: ModelSection) -> int | None:
    """Return the number of tokens that a sequence may have (`sft.model.architecture.window_of`)."""
    return window_of(read_config(path, section))


def load_tokenizer(
    path: str, section: ModelSection, *, date: str | None = None, system_prompt: str = KEEP
) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with a chat template and a pad token, and check that it fits the model.

    Args:
        date: `run.date`, which the template writes instead of the current date.
        system_prompt: `data.system_prompt` (`sft.chat_template.system_prompt`).
    """
    tokenizer = _stored_tokenizer(path, section)
    add_tokens(tokenizer, section.add_tokens)
    log.info("%s", ensure_template(tokenizer, template=section.chat_template))
    set_system_prompt(tokenizer, system_prompt)
    if default := default_system(tokenizer):
        log.info(
            "chat template: it writes a system turn where a chat has none: %s", quoted(default)
        )
    if date is not None:
        set_date(tokenizer, date)
        if uses_date(tokenizer):
            log.info("chat template: it writes the date, in this run always %s (run.date)", date)
    # Generation pads; eos does no harm as pad token, since labels go by position, not by token.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    rows = read_config(path, section).get_text_config().vocab_size
    check_vocabulary(tokenizer, rows=rows, added=section.add_tokens)
    return tokenizer


def _stored_tokenizer(path: str, section: ModelSection) -> PreTrainedTokenizerBase:
    place = tokenizer_path(path)
    check_entries(place, given=path)
    if place != path:
        log.info("tokenizer: from %s, since the adapter %s was saved without one", place, path)
    try_tokenizer(place, given=path)
    missing = Path(place).is_dir() and not any(Path(place).glob("*token*"))
    what = f"no tokenizer could be read in {place}"
    what += ", which holds no tokenizer.json" if missing else ""
    remedy = "save one in the model's directory with save_pretrained"
    with loading(path, what=what, remedy=remedy, hub=place):
        tokenizer = AutoTokenizer.from_pretrained(
            **located(place), trust_remote_code=section.trust_remote_code
        )
        tokenizer.decode(tokenizer("a b").input_ids)  # raises for settings of a wrong type
    return tokenizer


def has_template(path: str, section: ModelSection) -> bool:
    """Whether a chat template is given or stored with the tokenizer, so ours is not used."""
    if section.chat_template is not None:
        return True
    stored = AutoTokenizer.from_pretrained(
        **located(tokenizer_path(path)), trust_remote_code=section.trust_remote_code
    )
    return stored.chat_template is not None


def load_model(
    path: str,
    placement: Placement,
    *,
    dtype: torch.dtype | None = None,
    trainable: bool = False,
    trust_remote_code: bool = False,
    parts: bool = False,
) -> Any:
    """Load a model or a LoRA adapter onto its device, ready to score packed rows.

    Only safetensors are read. An adapter is returned as a PeftModel over its recorded base, with
    its weights in float32.

    Args:
        dtype: dtype of the (base) weights, `placement.weights` by default; with 4-bit weights, of
            matrix products and of unquantized weights (embeddings, head, norms).
        parts: whether each process loads its shard under FSDP2, where transformers supports the
            model; all processes must call the function.
    """
    free_memory()
    check_adapter(path, given=path)
    check_weights(path, given=path)
    adapter = is_adapter(path)
    dtype = dtype or placement.weights
    more: dict[str, Any] = {}
    if placement.load_in_4bit:
        more = {"quantization_config": nf4(dtype), "device_map": {"": placement.device}}
    base = adapter_base(path) if adapter else path
    try:
        config = read_model_config(base, trust_remote_code=trust_remote_code)
        attention = attention_for(config, placement.attention)
        if attention != placement.attention:
            log.info("attention: %s (%s is not made for sdpa)", attention, config.model_type)
        parts = parts and loads_shards(config)
        if parts:
            more = sharding_options(
                compute=placement.compute if trainable else dtype, weights=dtype
            )
        model = read_weights(
            base,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            **more,
        )
    except OSError as error:
        if Path(str(base)).is_dir() or describe_os_error(error):
            raise
        if refusal := hub_refusal(error, name=base):
            raise UserError(f"model.name_or_path={base}: {refusal}") from None
        raise UserError(
            f"{base}: no safetensors weights could be downloaded from the hub "
            f"({' '.join(str(error).split())[:160]}); check the network, or give a model that has "
            "them (pickled weights are not loaded)"
        ) from None
    check_values(model.named_parameters(), given=base)
    repair_generation_config(model)
    model = prepare_for_accelerate(model) if parts else model.to(placement.device)
    enable_scoring(model)
    enable_liger(model)
    select_logprob_head(model)
    verify_packing(model, training=placement.compute if trainable else None)
    reshard(model)
    if adapter:
        model = PeftModel.from_pretrained(model, path, is_trainable=trainable).to(placement.device)
    return model


def attention_for(config: PreTrainedConfig, attention: str) -> str:
    """Return the chosen attention, or "eager" for a model that sdpa does not support."""
    # Upstream's classes declare it: sdpa has no caps on scores and no attention sinks.
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return attention if kind is None or kind._supports_sdpa else "eager"


@cache
def _freeze_imported_objects() -> None:
    # The objects of imported libraries live to the end; every collection, ours and accelerate's,
    # would spend half a second on them.
    gc.freeze()


def free_memory() -> None:
    """Free the memory of the previous model, including reference cycles of its trainer."""
    _freeze_imported_objects()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    # glibc keeps freed activations for itself: gibibytes after a training stage on a CPU.
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def load_trainable(
    path: str,
    placement: Placement,
    *,
    lora: LoraSection,
    seed: int,
    trust_remote_code: bool,
    tokens: Sequence[int] = (),
) -> Any:
    """Load the model that a stage starts from, with gradients for the weights that it trains.

    Under LoRA the frozen weights have the compute dtype (or 4 bits) and the adapter float32: a
    given adapter is trained further, a full model gets a new one and trains the embeddings of
    `tokens` too. Without LoRA all weights train in float32.
    """
    model = load_model(
        path,
        placement,
        dtype=placement.compute if lora.r else placement.weights,
        trainable=True,
        trust_remote_code=trust_remote_code,
        parts=not lora.r,
    )
    if not lora.r:
        return model
    if is_adapter(path):
        log.info("adapter: continues %s; it adapts %s", path, adapter_coverage(model))
        return fuse_adapters(model)
    if lora.use_dora:
        # transformers 5.23 ignores DoRA's magnitudes when it loads an adapter.
        log.info("adapter: DoRA; load it with peft, since from_pretrained ignores its magnitudes")
    config = lora_config(lora)
    config.trainable_token_indices = token_rows(model, tokens) if tokens else None
    set_seed(seed)  # for the adapter's random initial weights
    _, revision = split_revision(path)
    adapted = add_adapter(model, config, in_4bit=placement.load_in_4bit, revision=revision)
    rule = "lora_alpha / sqrt(r)" if lora.use_rslora else "lora_alpha / r"
    scale = lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
    scaling = f"scaled by {scale:g} ({rule})"
    log.info("adapter: new, rank %d, %s; it adapts %s", lora.r, scaling, adapter_coverage(adapted))
    return fuse_adapters(adapted)


def bare_model(model: Any) -> Any:
    """Return the base model of an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights (safetensors), tokenizer with template, and generation settings.

    `generation_config.json` lists every token that ends an assistant turn as an eos id, in addition
    to the model's own.

    Args:
        weights: the full weights of a sharded model (`sft.distributed.sharding.full_weights`).
    """
    bare = bare_model(model)
    bare.config.use_cache = bare.generation_config.use_cache = True  # the Trainer switches it off
    bare.generation_config.eos_token_id = stop_ids(
        tokenizer, also=ids_of(bare.generation_config.eos_token_id)
    )
    bare.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=weights)
    bare.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if isinstance(model, PeftModel):
        write_adapter_card(folder)
    reset_permissions(folder)
