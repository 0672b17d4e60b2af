"""Memory of a training step or a forward pass, by part, from a run on fake tensors.

torch's fake tensors have shapes, dtypes and storages but no data. The model is built and run on
them, and the storages that are alive are summed up after every operation. So the code that trains
(the scoring head, autocast, adapters, checkpointing) is the code that is measured, for any
architecture, on a machine that could not hold the model. Only the configuration is loaded.
"""

import copy
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import LoraConfig
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from sft.errors import UserError
from sft.model.architecture import head_sizes, layers_of, meta_model
from sft.model.fused_lora import fuse_adapters
from sft.model.lora_targets import add_adapter
from sft.packing.layout import Batch
from sft.packing.logprobs import ROW_ERRORS, disable_packing, enable_scoring, log_probs

# Attributes of a configuration that list the type of each layer.
LAYER_TYPE_LISTS = ("layer_types", "mlp_layer_types")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device when a step's memory is at its peak."""

    weights: int
    gradients: int
    optimizer: int  # AdamW's two moments, float32
    activations: int  # including the weights that autocast casts
    logits: int  # tensors as wide as the vocabulary
    process: int = 0  # Python and its libraries, if they share the device's memory

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Setup:
    """The settings of a stage that its memory depends on."""

    lora: LoraConfig | None
    weights: torch.dtype  # of trained weights
    compute: torch.dtype  # of matrix products, and of frozen weights under LoRA
    attention: str
    load_in_4bit: bool = False  # frozen weights, see `_quantized`
    checkpointing: bool = False
    accumulates: bool = False  # gradients are kept over several micro-batches
    separate_rows: bool = False  # see `sft.packing.logprobs.disable_packing`


class NeedsValues(Exception):
    """The model's code reads values of tensors (a loop over the chosen experts), which fake tensors
    do not have."""


class RowsNotRead(Exception):
    """The model's code does not accept rows of this layout."""


def step_memory(
    config: PreTrainedConfig, batch: Batch, setup: Setup, *, training: bool = True
) -> Memory:
    """Return the memory on one device of a training step on `batch`, or of a forward pass alone.

    Raises:
        NeedsValues: the model cannot be run on fake tensors.
        RowsNotRead: it cannot be run on these rows.
    """
    depth, period = config.get_text_config().num_hidden_layers, _period(config)
    shallow = period * -(-4 // period)  # at least four layers, in repetitions of the pattern
    try:
        if depth <= 2 * shallow:
            return _largest(_run(config, batch, setup, training=training))
        # During the backward pass each layer changes the memory by the same amount, so that the
        # peak is at one of its ends, and the memory at each end grows linearly with the depth.
        short, long = (
            _run(_truncated(config, n * shallow), batch, setup, training=training) for n in (1, 2)
        )
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NeedsValues(config.model_type) from error
    except UserError:  # a ValueError, which ROW_ERRORS include
        raise
    except ROW_ERRORS as error:
        raise RowsNotRead(config.model_type) from error
    times = (depth - shallow) / shallow
    return _largest([_extrapolated(a, b, times) for a, b in zip(short, long, strict=True)])


def memory_ceiling(config: PreTrainedConfig, *, parameters: int, tokens: int, longest: int) -> int:
    """Return a loose upper bound in bytes for a step on `tokens` tokens, in rows up to `longest`.

    Weights, gradients, moments and copies take 20 bytes per parameter. Each token takes 16 bytes
    for every input or output of a matrix; matrices with in * out parameters have at most
    2 * in * out / min(in, out) of them. Each attention score takes 32 bytes, as if all were kept.
    """
    narrowest, scores = int(config.get_text_config().hidden_size), 0
    for layer in layers_of(config):
        heads, size, _ = head_sizes(layer)
        scores += heads
        if heads:
            narrowest = min(narrowest, size * (getattr(layer, "num_key_value_heads", 0) or heads))
    widths = 2 * parameters // narrowest
    return 20 * parameters + tokens * (16 * widths + 32 * longest * scores)


def _largest(peaks: list[Memory]) -> Memory:
    return max(peaks, key=lambda memory: memory.total)


def _extrapolated(short: Memory, long: Memory, times: float) -> Memory:
    sizes = {field.name: getattr(short, field.name) for field in fields(Memory)}
    return Memory(
        **{n: round(size + times * (getattr(long, n) - size)) for n, size in sizes.items()}
    )


def _period(config: PreTrainedConfig) -> int:
    """Return after how many layers their types repeat; the depth if they do not."""
    text = config.get_text_config()
    depth = int(text.num_hidden_layers)
    # DeepSeek's and Qwen's names of single dense layers, which break the repetition.
    if getattr(text, "first_k_dense_replace", 0) or getattr(text, "mlp_only_layers", None):
        return depth
    lists = (getattr(text, name, None) or ["any"] * depth for name in LAYER_TYPE_LISTS)
    types = list(zip(*lists, strict=False))
    fits = (p for p in range(1, depth) if all(t == types[i % p] for i, t in enumerate(types)))
    return next(fits, depth)


def _truncated(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    # A copy, since callers plan several stages with one configuration.
    shallow: PreTrainedConfig = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = depth
    for name in LAYER_TYPE_LISTS:
        if types := getattr(text, name, None):
            setattr(text, name, types[:depth])
    return shallow


class _LiveBytes(TorchDispatchMode):
    """Sums up the bytes of live storages by kind, with the peak of each half of a step: until half
    of the gradients exist, and after."""

    def __init__(self, model: Any, *, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.now = {"weights": 0, "gradients": 0, "activations": 0, "logits": 0}
        self.peaks = [dict(self.now), dict(self.now)]
        self.storages: dict[int, tuple[str, int]] = {}  # kind and bytes of each live storage
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.missing = 0  # gradients that this micro-batch has not computed yet
        # First, so that views of weights do not count as activations.
        for tensor in (*model.parameters(), *model.buffers()):
            self._add(tensor, "weights")
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._count_gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        grouped = func is torch.ops.aten._grouped_mm.default
        result = (_grouped_mm if grouped else func)(*args, **(kwargs or {}))
        # Autograd adds the two gradients of a tied matrix in place; in this mode it makes a third.
        if func is torch.ops.aten.add.Tensor and self._like_embedding(result, args[0]):
            self._move(args[0], None)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                wide = tensor.ndim == 2 and tensor.shape[1] == self.vocabulary
                self._add(tensor, "logits" if wide else "activations")
        half = int(self.missing < len(self.trained) / 2)
        if sum(self.now.values()) > sum(self.peaks[half].values()):
            self.peaks[half] = dict(self.now)
        return result

    def _like_embedding(self, *tensors: torch.Tensor) -> bool:
        return all(t.ndim == 2 and t.shape[0] == self.vocabulary for t in tensors)

    def _count_gradient(self, parameter: torch.Tensor) -> None:
        """Count a parameter's new gradient, until now an activation, as a gradient."""
        assert parameter.grad is not None
        self.missing -= 1
        self._move(parameter.grad, "gradients")

    def _move(self, tensor: torch.Tensor, to: str | None) -> None:
        """Count a storage under another kind, or no longer."""
        key = tensor.untyped_storage()._cdata
        kind, size = self.storages[key]
        self.now[kind] -= size
        if to is not None:
            self.now[to] += size
        self.storages[key] = (kind, 0) if to is None else (to, size)

    def _add(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return
        self.storages[key] = (kind, storage.nbytes())
        self.now[kind] += storage.nbytes()
        weakref.finalize(storage, self._remove, key)  # runs when the last tensor on it is freed

    def _remove(self, key: int) -> None:
        kind, size = self.storages.pop(key)
        self.now[kind] -= size


def _grouped_mm(left: torch.Tensor, right: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Multiply by each expert's matrix; torch's fake kernel accepts bfloat16 only."""
    half = torch.bfloat16
    product: torch.Tensor = torch.ops.aten._grouped_mm.default(
        left.to(half), right.to(half), *args, **kwargs
    )
    return product.to(left.dtype)


def _run(config: PreTrainedConfig, batch: Batch, setup: Setup, *, training: bool) -> list[Memory]:
    """Return the peak of each half of a training step, or of a forward pass and an empty one."""
    model = _meta_model(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialize(model)
        model.train(training)
        if training and setup.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            if setup.lora:
                model.enable_input_require_grads()
        live = _LiveBytes(model, vocabulary=config.get_text_config().vocab_size)
        with live, torch.set_grad_enabled(training):
            for _ in range(2 if training and setup.accumulates else 1):
                live.missing = len(live.trained) if training else 0
                with _autocast(setup):
                    loss = -log_probs(model, batch).sum()
                if training:  # outside of autocast, as the Trainer does
                    loss.backward()
                del loss
    optimizer = sum(2 * 4 * p.numel() for p in live.trained) if training else 0
    peaks = [Memory(optimizer=optimizer, **peak) for peak in live.peaks]
    return [_quantized(peak, model, setup) for peak in peaks] if setup.load_in_4bit else peaks


def _meta_model(config: PreTrainedConfig, setup: Setup) -> Any:
    model = meta_model(
        config,
        dtype=setup.compute if setup.lora else setup.weights,
        attn_implementation=setup.attention,
    )
    enable_scoring(model)
    if setup.separate_rows:
        disable_packing(model)
    if setup.lora:
        model = fuse_adapters(add_adapter(model, setup.lora, in_4bit=setup.load_in_4bit))
    return model


def _autocast(setup: Setup) -> AbstractContextManager[Any]:
    if setup.compute == setup.weights:
        return nullcontext()
    return torch.autocast("cpu", dtype=setup.compute)


def _quantized(memory: Memory, model: Any, setup: Setup) -> Memory:
    """Return the memory of the same run with the frozen matrices in NF4, scales quantized too.

    transformers quantizes every linear layer but the head with bitsandbytes. A product holds one
    matrix in the compute dtype, and its scales in float32, while it runs.
    """
    head = model.get_output_embeddings().weight
    matrices = [
        module.weight
        for name, module in model.named_modules()
        # Subclasses of Linear are left as they are.
        if type(module) is torch.nn.Linear and "lora_" not in name and module.weight is not head
    ]
    width = setup.compute.itemsize
    saved = sum(m.numel() * width - nf4_bytes(m.numel()) for m in matrices)
    largest = max((m.numel() for m in matrices), default=0)
    transient = largest * width + largest // 64 * 4
    return replace(
        memory, weights=memory.weights - saved, activations=memory.activations + transient
    )


def nf4_bytes(weights: int) -> int:
    """Return the bytes of a matrix with so many weights in NF4 with double quantization."""
    # Half a byte per weight, a byte of scale per 64 weights, 4 bytes per 256 scales: 0.127 bits per
    # weight on top of 4 (QLoRA, arXiv 2305.14314, section 3).
    scales = -(-weights // 64)
    return -(-weights // 2) + scales + 4 * -(-scales // 256)


def _materialize(model: Any) -> None:
    """Give meta parameters and buffers a (fake) storage on the CPU; tied ones share it."""
    made: dict[int, torch.Tensor] = {}  # by the id of the meta tensor
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty_like(tensor, device="cpu")
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = fake
                slots[name] = made[id(tensor)]
