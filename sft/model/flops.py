"""Count parameters and floating-point operations (FLOPs) of a causal LM.

The paper (section 3.2, eq. 2) counts 72 n d^2 + 12 n d l operations a token for n layers of width d
at length l, forward and backward, without the vocabulary. Here the model's own matrices are
counted, with grouped queries, gated layers, experts and adapters. Element-wise operations (norms,
softmax, rotations, state-space scans) are not counted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedConfig

from sft.model.architecture import head_sizes, layers_of, meta_model
from sft.model.experts import visited_shares
from sft.model.lora_targets import adapter_coverage, add_adapter, wrapped_parameters
from sft.packing.layout import Span

# Endings of names of parameters that are in no matrix product, although some are matrices.
ELEMENT_WISE = ("bias", "A_log", "scale")


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters by part; tied matrices count once."""

    embedding: int  # token embeddings, and learned position embeddings
    head: int  # the LM head; 0 if it is tied to the embedding
    attention: int
    mlp: int  # all experts
    other: int  # norms
    adapter: int  # LoRA matrices and trained rows of the embedding
    trainable: int  # parameters with gradients, of all parts
    adapted: int = 0  # weights of layers that have an adapter
    stacked: int = 0  # part of `mlp` in stacks of experts, which bitsandbytes does not quantize

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.attention + self.mlp + self.other + self.adapter


@dataclass(frozen=True)
class Costs:
    """Multiply-adds (two operations each) of a token in a model."""

    parameters: Parameters
    frozen: int  # for a token, in the layers' matrices without gradients
    trained: int  # for a token, in those with gradients
    head: int  # for a scored token, in the vocabulary projection
    head_trained: bool
    pairs: tuple[tuple[int | None, int], ...]  # (attention window, cost of a query-key pair)


def costs_of_config(config: PreTrainedConfig, *, lora: LoraConfig | None = None) -> Costs:
    """Return the costs of a configuration's model, with an adapter if `lora` is given."""
    return costs_of_model(_meta_adapted(config, lora))


def parameters_of_config(config: PreTrainedConfig, *, lora: LoraConfig | None = None) -> Parameters:
    """Return the parameters of a configuration's model, with an adapter if `lora` is given."""
    return parameters_of_model(_meta_adapted(config, lora))


def _meta_adapted(config: PreTrainedConfig, lora: LoraConfig | None) -> Any:
    model = meta_model(config)
    return model if lora is None else add_adapter(model, lora)


def parameters_of_model(model: Any) -> Parameters:
    """Count the parameters of a model, PEFT's included."""
    outside = _outside_of_layers(model)
    count = dict.fromkeys(("embedding", "head", "attention", "mlp", "other", "adapter"), 0)
    trainable = 0
    for name, parameter in model.named_parameters():
        trainable += parameter.numel() if parameter.requires_grad else 0
        count[outside.get(id(parameter)) or _part(name, parameter)] += parameter.numel()
    adapted = adapter_coverage(model).adapted if isinstance(model, PeftModel) else 0
    stacked = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    return Parameters(**count, trainable=trainable, adapted=adapted, stacked=stacked)


def _outside_of_layers(model: Any) -> dict[int, str]:
    """Return "head" or "embedding" by the id of each of their parameters."""
    head = {id(p): "head" for p in model.get_output_embeddings().parameters()}
    embeddings = (m for m in model.modules() if isinstance(m, torch.nn.Embedding))
    return head | {id(p): "embedding" for m in embeddings for p in m.parameters()}


def costs_of_model(model: Any) -> Costs:
    """Return the costs of a model, PEFT's layers included; call it before sharding.

    Raises:
        UserError: the configuration lacks the number of experts that a token visits.
    """
    outside = _outside_of_layers(model)
    # PEFT adds an adapter of a whole tensor to the tensor and computes the gradient of the sum.
    merged = wrapped_parameters(model)
    visited = visited_shares(model)
    work = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        if id(parameter) not in outside and not _is_token_row(name):
            trained = parameter.requires_grad or id(parameter) in merged
            work[trained] += _multiply_adds(parameter, name, visited.get(id(parameter)))
    weight = model.get_output_embeddings().weight
    return Costs(
        parameters_of_model(model),
        frozen=work[False],
        trained=work[True],
        head=weight.numel(),
        head_trained=weight.requires_grad,
        pairs=_pair_costs(model.config.get_text_config()),
    )


def attended_pairs(spans: Iterable[Span], *, window: int | None = None, causal: bool = True) -> int:
    """Count (query, key) pairs in documents of a trunk and branches.

    Args:
        window: number of positions that a token sees, including its own; all where None.
        causal: count only the keys that a token sees; otherwise all pairs, as the paper does.
    """
    total = 0
    for span in spans:
        total += _pairs(0, span.trunk, window=window, causal=causal)
        for branch in span.branches:
            total += _pairs(span.trunk, branch, window=window, causal=causal)
    return total


def forward_flops(costs: Costs, spans: Sequence[Span], *, scored: int, causal: bool = True) -> int:
    """Return the operations of one forward pass; padding does not count.

    Args:
        spans: the documents of a batch (`Batch.spans`).
        scored: number of tokens that the vocabulary projection computes.
        causal: see `attended_pairs`; model FLOPs utilization is often given for all pairs.
    """
    return sum(_forward(costs, spans, scored=scored, causal=causal))


def backward_flops(costs: Costs, spans: Sequence[Span], *, scored: int, causal: bool = True) -> int:
    """Return the operations of one backward pass; under LoRA about half of full fine-tuning's."""
    matrices, attention, head = _forward(costs, spans, scored=scored, causal=causal)
    # Gradients by activations cost as much as the forward pass, twice as much in attention, whose
    # products have two inputs; gradients by weights are computed for trained matrices alone.
    by_weights = 2 * _tokens(spans) * costs.trained + (head if costs.head_trained else 0)
    return matrices + 2 * attention + head + by_weights


def training_flops(costs: Costs, spans: Sequence[Span], *, scored: int, causal: bool = True) -> int:
    """Return forward and backward operations, without activation checkpointing's second pass."""
    backward = backward_flops(costs, spans, scored=scored, causal=causal)
    return forward_flops(costs, spans, scored=scored, causal=causal) + backward


def _forward(
    costs: Costs, spans: Sequence[Span], *, scored: int, causal: bool
) -> tuple[int, int, int]:
    matrices = 2 * _tokens(spans) * (costs.frozen + costs.trained)
    attention = sum(
        2 * each * attended_pairs(spans, window=window, causal=causal)
        for window, each in costs.pairs
    )
    return matrices, attention, 2 * scored * costs.head


def _tokens(spans: Sequence[Span]) -> int:
    return sum(span.trunk + sum(span.branches) for span in spans)


def _pairs(before: int, length: int, *, window: int | None, causal: bool) -> int:
    """Count the pairs of `length` queries at the positions from `before`."""
    end = before + length
    if not causal:
        return length * min(end, window or end)
    if window is None or end <= window:
        return length * before + length * (length + 1) // 2
    growing = max(0, window - before)  # queries that see all positions before them
    return growing * before + growing * (growing + 1) // 2 + (length - growing) * window


def _part(name: str, parameter: torch.nn.Parameter) -> str:
    pieces = name.split(".")
    if any(piece.startswith("lora_") for piece in pieces) or _is_token_row(name):
        return "adapter"
    if any("attn" in p or "attention" in p for p in pieces if "norm" not in p):
        return "attention"
    if any("norm" in p or p.startswith("ln_") for p in pieces):
        return "other"
    return "mlp"


def _is_token_row(name: str) -> bool:
    return "trainable_tokens" in name  # PEFT's trained rows of the embedding


def _multiply_adds(parameter: torch.nn.Parameter, name: str, share: Fraction | None) -> int:
    """Return a matrix's multiply-adds per token: its size, times the share of experts used."""
    if parameter.ndim < 2 or name.endswith(ELEMENT_WISE):
        return 0
    return parameter.numel() if share is None else int(parameter.numel() * share)


def _pair_costs(config: Any) -> tuple[tuple[int | None, int], ...]:
    """Return, for each attention window, the multiply-adds per query-key pair of its layers."""
    layers = layers_of(config)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(layers)
    costs: Counter[int | None] = Counter()
    for layer, kind in zip(layers, kinds, strict=False):
        heads, key, value = head_sizes(layer)
        if heads and kind in ("full_attention", "sliding_attention"):
            window = getattr(layer, "sliding_window", None)
            costs[window if kind == "sliding_attention" else None] += heads * (key + value)
    return tuple(costs.items())
