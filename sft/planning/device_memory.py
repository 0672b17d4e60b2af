"""Memory of a model's weights on each device, in training steps and outside of them."""

from dataclasses import dataclass, replace
from functools import cached_property

import psutil
from peft import LoraConfig
from transformers import PreTrainedConfig

from sft.config.sections import LoraSection
from sft.distributed.sharding import supports_sharded_loading
from sft.errors import UserError
from sft.model.architecture import head_sizes, layers_of
from sft.model.flops import Costs, Parameters, costs_of_config, parameters_of_config
from sft.model.lora_targets import lora_config
from sft.model.placement import Placement
from sft.planning.devices import Machine
from sft.planning.step_memory import nf4_bytes

GIB = 2**30
# Share of a device's memory: the driver, the allocator's gaps and NCCL's buffers take the rest.
USABLE = 0.9


@dataclass(frozen=True)
class DeviceMemory:
    """A model, the way it is trained, and the devices."""

    config: PreTrainedConfig
    lora: LoraSection
    placement: Placement
    machine: Machine

    @cached_property
    def costs(self) -> Costs:
        return costs_of_config(self.config, lora=self.adapter)

    @cached_property
    def parameters(self) -> Parameters:
        return parameters_of_config(self.config, lora=self.adapter)

    @property
    def adapter(self) -> LoraConfig | None:
        return lora_config(self.lora) if self.lora.r else None

    @property
    def sharded(self) -> bool:
        """Whether training shards the weights over several devices."""
        return self.machine.sharded and self.machine.count > 1

    @property
    def loads_shards(self) -> bool:
        """Whether each device loads only its shard of the weights, also for forward passes outside
        of training (`sft.distributed.fsdp_forward`)."""
        return (
            self.sharded
            and not self.machine.loads_whole
            and not self.lora.r
            and supports_sharded_loading(self.config, processes=self.machine.count)
        )

    def in_parts(self, requested: bool | str, *, backend: str = "transformers") -> bool:
        """Return whether models are measured with sharded weights.

        Args:
            requested: `eval.in_parts` of the preset; auto: if no device can hold the full model.
            backend: `eval.backend`; vLLM loads the full model in each process.

        Raises:
            UserError: it is requested and impossible, or ruled out and necessary.
        """
        required = plannable(self.config) and self.loads_shards and self.measured > self.limit
        if required and (not requested or backend == "vllm"):
            setting = "in_parts=false" if not requested else "backend=vllm"
            raise UserError(
                f"eval.{setting} has every process hold the full model to measure it, which "
                f"needs {self.measured / GIB:.1f} GiB on each device, and {self.machine.name} has "
                f"{self.limit / GIB:.1f} GiB to use; set eval.in_parts=auto and "
                "eval.backend=transformers"
            )
        if requested == "auto":
            return required
        if requested and not self.loads_shards:
            raise UserError(
                "eval.in_parts=true shards the weights over the processes, which needs FSDP2 "
                "(recipes/accelerate/fsdp2.yaml), lora.r=0 and a model that transformers can load "
                "in shards; set it to auto"
            )
        return bool(requested)

    @cached_property
    def process(self) -> int:
        """Bytes of this process without a model if it shares the device's memory, as on a CPU; the
        log counts them too (`sft.training.throughput.memory_in_use`)."""
        return psutil.Process().memory_info().rss if self.placement.device.type == "cpu" else 0

    @property
    def limit(self) -> float:
        """Bytes of a device that a plan may fill."""
        return USABLE * self.machine.memory

    @property
    def measured(self) -> int:
        """Bytes of the full model's weights on a device that evaluates it."""
        parameters, placement = self.parameters, self.placement
        width = placement.inference.itemsize
        # bitsandbytes quantizes linear layers, not experts stacked in one tensor.
        matrices = parameters.attention + parameters.mlp - parameters.stacked
        rest = parameters.total - parameters.adapter - matrices
        quantized = nf4_bytes(matrices) if placement.load_in_4bit else width * matrices
        return quantized + width * rest + 4 * parameters.adapter  # an adapter stays in float32

    @property
    def full_model(self) -> int:
        """Peak bytes of weights on each device outside of training steps, while the full model is
        evaluated, or loaded and not yet sharded; 0 if devices only ever hold shards."""
        parameters, placement = self.parameters, self.placement
        if self.in_parts("auto"):
            return 0
        if not self.sharded or self.loads_shards:
            return self.measured  # a training step holds as much
        # ZeRO-3 and LoRA load every weight on each device before it is sharded.
        frozen = parameters.total - parameters.trainable
        loaded = placement.compute if self.lora.r else placement.weights
        return max(self.measured, loaded.itemsize * frozen + 4 * parameters.trainable)

    @property
    def shard(self) -> int:
        """Bytes of a device's shard of the weights, trained ones in float32, with two layers and
        everything outside of the layers gathered in the compute dtype (FSDP2 prefetches one)."""
        parameters, width = self.parameters, self.placement.compute.itemsize
        frozen = parameters.total - parameters.trainable
        outside = parameters.embedding + parameters.head
        depth: int = self.config.get_text_config().num_hidden_layers
        layer = (parameters.total - outside) / depth
        # Frozen weights are in the compute dtype under LoRA only.
        stored = 4 * parameters.trainable + (width if self.lora.r else 4) * frozen
        return round(stored / self.machine.count + width * (outside + 2 * layer))

    def check_full_model(self, name: str = "the full model") -> None:
        """Raise UserError if devices must hold the full model and cannot, before it is loaded."""
        if not plannable(self.config) or self.full_model <= self.limit:
            return
        also = " and before training shards it" if self.sharded else ""
        raise UserError(
            f"{name} needs {self.full_model / GIB:.1f} GiB on each device, where every process "
            f"holds it to measure it{also}, and {self.machine.name} has {self.limit / GIB:.1f} "
            f"GiB to use; {self._remedy()}"
        )

    def _remedy(self) -> str:
        # An adapter of any rank needs about as much; 16 is the usual one.
        adapter = replace(self, lora=replace(self.lora, r=self.lora.r or 16))
        if adapter.full_model <= self.limit:
            return "lora.r=16 fits"
        machine = replace(self.machine, sharded=True, loads_whole=False)
        if replace(self, lora=LoraSection(), machine=machine).in_parts("auto"):
            return "FSDP2 shards it (recipes/accelerate/fsdp2.yaml, lora.r=0)"
        return "choose a smaller model, or devices with more memory"


def plannable(config: PreTrainedConfig) -> bool:
    """Return whether a model is one stack of layers with attention, which the plan supports."""
    layers = layers_of(config)
    return bool(layers) and any(head_sizes(layer)[0] for layer in layers)
