"""The memory that a step, or a forward pass, takes, by part, from one that computes nothing.

The model is built and it is run on torch's fake tensors, which have shapes, dtypes and storages
but no data; what is alive is summed up after every operation. So the figures are those of the very
code that trains (the scoring head, autocast, adapters, checkpointing), for any architecture, on a
machine that could never hold the model. Nothing is loaded or downloaded but the configuration.
"""

import copy
import weakref
from collections.abc import Callable
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

# Lists in a configuration that say of each layer what kind it is.
BY_LAYER = ("layer_types", "mlp_layer_types")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment of a step when most is alive."""

    weights: int
    gradients: int
    optimiser: int  # AdamW's two moments, float32
    activations: int  # with the weights that autocast casts
    logits: int  # of the vocabulary's width
    process: int = 0  # Python and its libraries, where the device's memory holds them too

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Setup:
    """How a stage trains, as far as memory goes."""

    lora: LoraConfig | None
    weights: torch.dtype  # of what trains
    compute: torch.dtype  # of matrix products, and under LoRA of the frozen weights
    attention: str
    load_in_4bit: bool = False  # of the frozen weights, see `_as_4bit`
    checkpointing: bool = False
    accumulates: bool = False  # several micro-batches a step: gradients outlive one
    apart: bool = (
        False  # each sequence has a row of its own, see `sft.packing.logprobs.disable_packing`
    )


class NeedsValues(Exception):
    """The model's code asks for values of tensors (a loop over the experts that were chosen), which
    a step that computes nothing does not have."""


class RowsNotRead(Exception):
    """The model's code does not take rows of this layout."""


def step_memory(config: PreTrainedConfig, batch: Batch, setup: Setup) -> Memory:
    """Memory of a training step on `batch`, all on one device.

    Deep models are run with a few repetitions of their layers' pattern, with twice as many, and
    drawn out to their depth. While gradients come in, what is alive changes by the same amount with
    each layer, so it is most at one end of the backward pass or the other, and each end grows
    linearly.

    Raises:
        NeedsValues: the model cannot be run without data.
        RowsNotRead: it cannot be run on these rows.
    """
    return _to_depth(config, lambda shape: _run_step(shape, batch, setup))


def scoring_memory(config: PreTrainedConfig, batch: Batch, setup: Setup) -> Memory:
    """Memory of a forward pass on `batch` that keeps no gradients, all on one device.

    Raises:
        NeedsValues: the model cannot be run without data.
        RowsNotRead: it cannot be run on these rows.
    """
    return _to_depth(config, lambda shape: _run_scoring(shape, batch, setup))


def memory_ceiling(config: PreTrainedConfig, *, parameters: int, tokens: int, longest: int) -> int:
    """Bytes that a step on `tokens` tokens, in rows of `longest` at most, stays far below.

    Weights, gradients, moments and copies at 20 bytes a parameter; 16 bytes for every token and
    input or output of a matrix, of which in * out parameters have 2 * in * out / min(in, out) at
    most; 32 for every score of attention, as if all were kept.
    """
    narrowest, scores = config.get_text_config().hidden_size, 0
    for layer in layers_of(config):
        heads, size, _ = head_sizes(layer)
        scores += heads
        if heads:
            few = getattr(layer, "num_key_value_heads", None) or heads
            narrowest = min(narrowest, size * few)
    widths = 2 * parameters // narrowest
    return int(20 * parameters + tokens * (16 * widths + 32 * longest * scores))


def _to_depth(config: PreTrainedConfig, run: Callable[[PreTrainedConfig], list[Memory]]) -> Memory:
    try:
        return _drawn_to_depth(config, run)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NeedsValues(config.model_type) from error
    except UserError:  # a ValueError too
        raise
    except ROW_ERRORS as error:
        raise RowsNotRead(config.model_type) from error


def _drawn_to_depth(
    config: PreTrainedConfig, run: Callable[[PreTrainedConfig], list[Memory]]
) -> Memory:
    depth = config.get_text_config().num_hidden_layers
    period = _period(config)
    shallow = period * -(-4 // period)
    if depth <= 2 * shallow:
        return _most(run(config))
    short = run(_cut(config, shallow))
    long = run(_cut(config, 2 * shallow))
    times = (depth - shallow) / shallow
    return _most([_drawn_out(a, b, times) for a, b in zip(short, long, strict=True)])


def _most(moments: list[Memory]) -> Memory:
    return max(moments, key=lambda moment: moment.total)


def _drawn_out(short: Memory, long: Memory, times: float) -> Memory:
    def drawn(name: str) -> int:
        first: int = getattr(short, name)
        last: int = getattr(long, name)
        return round(first + times * (last - first))

    return Memory(**{field.name: drawn(field.name) for field in fields(Memory)})


def _period(config: PreTrainedConfig) -> int:
    """After how many layers their kinds repeat; the depth where they do not."""
    text = config.get_text_config()
    depth: int = text.num_hidden_layers
    if getattr(text, "first_k_dense_replace", 0) or getattr(text, "mlp_only_layers", None):
        return depth
    lists = (getattr(text, name, None) or ["any"] * depth for name in BY_LAYER)
    kinds = list(zip(*lists, strict=False))
    fits = (p for p in range(1, depth) if all(k == kinds[i % p] for i, k in enumerate(kinds)))
    return next(fits, depth)


def _cut(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = depth
    for name in BY_LAYER:
        if kinds := getattr(text, name, None):
            setattr(text, name, kinds[:depth])
    return shallow


class _Alive(TorchDispatchMode):
    """Bytes of storages that are alive, by kind, and how they stood when they were most: until half
    of the gradients are there, and after."""

    def __init__(self, model: Any, *, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.now = {"weights": 0, "gradients": 0, "activations": 0, "logits": 0}
        self.peaks = [dict(self.now), dict(self.now)]
        self.kinds: dict[int, tuple[str, int]] = {}
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.missing = 0  # gradients that this micro-batch has not brought yet
        for tensor in (*model.parameters(), *model.buffers()):
            self._see(tensor, "weights")
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        grouped = func is torch.ops.aten._grouped_mm.default
        found = (_grouped if grouped else func)(*args, **(kwargs or {}))
        if func is torch.ops.aten.add.Tensor and self._like_embedding(found, args[0]):
            self._gives_way(args[0])
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                wide = tensor.ndim == 2 and tensor.shape[1] == self.vocabulary
                self._see(tensor, "logits" if wide else "activations")
        half = int(self.missing < len(self.trained) / 2)
        if sum(self.now.values()) > sum(self.peaks[half].values()):
            self.peaks[half] = dict(self.now)
        return found

    def _like_embedding(self, *tensors: torch.Tensor) -> bool:
        return all(t.ndim == 2 and t.shape[0] == self.vocabulary for t in tensors)

    def _gives_way(self, gradient: torch.Tensor) -> None:
        """The engine adds the two gradients of a tied matrix in the place of the first; with the
        tensors of this mode it makes a third."""
        key = gradient.untyped_storage()._cdata
        kind, size = self.kinds[key]
        self.now[kind] -= size
        self.kinds[key] = (kind, 0)

    def _gradient(self, parameter: torch.Tensor) -> None:
        """A parameter's gradient is there: what held it was an activation until now."""
        assert parameter.grad is not None
        self.missing -= 1
        key = parameter.grad.untyped_storage()._cdata
        kind, size = self.kinds[key]
        self.now[kind] -= size
        self.now["gradients"] += size
        self.kinds[key] = ("gradients", size)

    def _see(self, tensor: torch.Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.kinds:
            return
        self.kinds[key] = (kind, storage.nbytes())
        self.now[kind] += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        kind, size = self.kinds.pop(key)
        self.now[kind] -= size


def _grouped(left: torch.Tensor, right: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """A product of experts; without data torch knows the shapes of one in bfloat16 alone."""
    half = torch.bfloat16
    found = torch.ops.aten._grouped_mm.default(left.to(half), right.to(half), *args, **kwargs)
    product: torch.Tensor = found.to(left.dtype)
    return product


def _run_step(config: PreTrainedConfig, batch: Batch, setup: Setup) -> list[Memory]:
    """What is alive at the worst moment of either half of a step."""
    model = _meta_model(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialise(model)
        model.train()
        if setup.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            if setup.lora:
                model.enable_input_require_grads()
        alive = _Alive(model, vocabulary=config.get_text_config().vocab_size)
        with alive:
            for _ in range(2 if setup.accumulates else 1):
                alive.missing = len(alive.trained)
                with _autocast(setup):
                    loss = -log_probs(model, batch).sum()
                loss.backward()
                del loss
    moments = sum(2 * 4 * p.numel() for p in alive.trained)
    return _found(alive, model, setup, moments=moments)


def _run_scoring(config: PreTrainedConfig, batch: Batch, setup: Setup) -> list[Memory]:
    """What is alive at the worst moment of a forward pass without gradients."""
    model = _meta_model(config, setup)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _materialise(model)
        model.eval()
        alive = _Alive(model, vocabulary=config.get_text_config().vocab_size)
        with alive, torch.no_grad(), _autocast(setup):
            log_probs(model, batch)
    return _found(alive, model, setup, moments=0)


def _meta_model(config: PreTrainedConfig, setup: Setup) -> Any:
    model = meta_model(
        config,
        dtype=setup.compute if setup.lora else setup.weights,
        attn_implementation=setup.attention,
    )
    enable_scoring(model)
    if setup.apart:
        disable_packing(model)
    if setup.lora:
        model = fuse_adapters(add_adapter(model, setup.lora, in_4bit=setup.load_in_4bit))
    return model


def _autocast(setup: Setup) -> AbstractContextManager[Any]:
    if setup.compute == setup.weights:
        return nullcontext()
    return torch.autocast("cpu", dtype=setup.compute)


def _found(alive: _Alive, model: Any, setup: Setup, *, moments: int) -> list[Memory]:
    found = [Memory(optimiser=moments, **peak) for peak in alive.peaks]
    return [_as_4bit(memory, model, setup) for memory in found] if setup.load_in_4bit else found


def _as_4bit(memory: Memory, model: Any, setup: Setup) -> Memory:
    """What was counted with whole frozen matrices, had they been NF4 with scales quantised too.

    As transformers has it with bitsandbytes: every linear layer but the head, half a byte a weight,
    a byte of scale for 64 weights, and 4 bytes for 256 scales (0.127 bits a weight, QLoRA section
    3). A product holds one matrix in the compute dtype, and its scales in float32, while it lasts.
    """
    head = model.get_output_embeddings().weight
    matrices = [
        module.weight
        for name, module in model.named_modules()
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
    """Bytes that a matrix of so many weights takes in NF4 with double quantisation."""
    scales = -(-weights // 64)
    return -(-weights // 2) + scales + 4 * -(-scales // 256)


def _materialise(model: Any) -> None:
    """Give meta parameters and buffers a (fake) storage on the CPU; tied ones share it."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = torch.empty_like(tensor, device="cpu")
                    if isinstance(tensor, torch.nn.Parameter):
                        made[id(tensor)] = torch.nn.Parameter(
                            made[id(tensor)], requires_grad=tensor.requires_grad
                        )
                slots[name] = made[id(tensor)]
