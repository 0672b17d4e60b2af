"""What of a model's weights lies on each device, in training steps and outside of them."""

from dataclasses import dataclass, replace
from functools import cached_property

import psutil
from peft import LoraConfig
from transformers import PreTrainedConfig

from sft.config.sections import LoraSection
from sft.distributed.sharding import known_in_parts
from sft.errors import UserError
from sft.model.architecture import head_sizes, layers_of
from sft.model.flops import Costs, Parameters, costs_of_config, parameters_of_config
from sft.model.lora_targets import lora_config
from sft.model.placement import Placement
from sft.planning.devices import Machine
from sft.planning.step_memory import nf4_bytes

GIB = 2**30
# Of a device's memory: the rest is the driver's, the allocator's gaps and NCCL's buffers.
USABLE = 0.9


@dataclass(frozen=True)
class DeviceMemory:
    """A model, how it trains, and on what."""

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
        """Whether training spreads the weights over several devices."""
        return self.machine.sharded and self.machine.count > 1

    @property
    def lends(self) -> bool:
        """Whether each device reads its part of the weights alone, to be lent to the others in
        their forward passes (`sft.distributed.fsdp_forward`)."""
        return (
            self.sharded
            and not self.machine.loads_whole
            and not self.lora.r
            and known_in_parts(self.config, processes=self.machine.count)
        )

    def in_parts(self, asked: bool | str, *, backend: str = "transformers") -> bool:
        """Whether models are measured in parts; `auto` where no device holds one whole.

        Args:
            asked: `eval.in_parts` of the preset.
            backend: `eval.backend`; vLLM loads a whole model in each process.

        Raises:
            UserError: it is asked for and cannot be, or refused and has to be.
        """
        required = plannable(self.config) and self.lends and self.measured > self.limit
        if required and (not asked or backend == "vllm"):
            setting = "in_parts=false" if not asked else "backend=vllm"
            raise UserError(
                f"eval.{setting} has every process hold the whole model to measure it, which "
                f"needs {self.measured / GIB:.1f} GiB on each device, and {self.machine.name} has "
                f"{self.limit / GIB:.1f} GiB to use; set eval.in_parts=auto and "
                "eval.backend=transformers"
            )
        if asked == "auto":
            return required
        if asked and not self.lends:
            raise UserError(
                "eval.in_parts=true has processes lend each other their parts of the weights, "
                "which needs FSDP2 (recipes/accelerate/fsdp2.yaml), lora.r=0 and a model that "
                "transformers can read in parts; set it to auto"
            )
        return bool(asked)

    @cached_property
    def process(self) -> int:
        """Bytes of this process without a model, on a CPU, whose memory holds them too (the log
        counts them as well, see `sft.training.throughput.memory_in_use`)."""
        return psutil.Process().memory_info().rss if self.placement.device.type == "cpu" else 0

    @property
    def limit(self) -> float:
        """Bytes of a device that a plan may fill."""
        return USABLE * self.machine.memory

    @property
    def measured(self) -> int:
        """Bytes of the whole model's weights on a device where it is measured."""
        parameters, placement = self.parameters, self.placement
        width = placement.inference.itemsize
        matrices = parameters.attention + parameters.mlp - parameters.stacked
        rest = parameters.total - parameters.adapter - matrices
        each = nf4_bytes(matrices) if placement.load_in_4bit else width * matrices
        return each + width * rest + 4 * parameters.adapter

    @property
    def whole(self) -> int:
        """Bytes of the whole model's weights on each device at the most, outside of training steps:
        when it is measured, and when a stage has loaded it and not yet spread it; 0 where the
        devices only ever have parts."""
        parameters, placement = self.parameters, self.placement
        if self.in_parts("auto"):
            return 0
        if not self.sharded or self.lends:
            return self.measured  # a training step holds as much
        frozen = parameters.total - parameters.trainable
        loaded = placement.compute if self.lora.r else placement.weights
        return max(self.measured, loaded.itemsize * frozen + 4 * parameters.trainable)

    def refuse_whole(self, name: str = "the whole model") -> None:
        """Say so where a device cannot hold the whole model, before anything is loaded.

        Raises:
            UserError: it cannot; with LoRA, or parts of it, where that is enough.
        """
        if not plannable(self.config):
            return
        if self.whole <= self.limit:
            return
        again = " and before training spreads it" if self.sharded else ""
        raise UserError(
            f"{name} needs {self.whole / GIB:.1f} GiB on each device, where every process "
            f"holds it to measure it{again}, and {self.machine.name} has {self.limit / GIB:.1f} "
            f"GiB to use; {self._remedy()}"
        )

    def _remedy(self) -> str:
        adapter = replace(self, lora=replace(self.lora, r=self.lora.r or 16))
        if adapter.whole <= self.limit:
            return "lora.r=16 fits"
        spread = replace(self.machine, sharded=True, loads_whole=False)
        if replace(self, lora=LoraSection(), machine=spread).in_parts("auto"):
            return "FSDP2 lends parts of it (recipes/accelerate/fsdp2.yaml, lora.r=0)"
        return "choose a smaller model, or devices with more memory"

    @property
    def part(self) -> int:
        """Bytes of a device's part of the weights, what trains in float32, with two layers and what
        is outside of the layers gathered in the compute dtype."""
        parameters, width = self.parameters, self.placement.compute.itemsize
        frozen = parameters.total - parameters.trainable
        outside = parameters.embedding + parameters.head
        layer = (parameters.total - outside) / self.config.get_text_config().num_hidden_layers
        stored = 4 * parameters.trainable + (width if self.lora.r else 4) * frozen
        total: float = stored / self.machine.count + width * (outside + 2 * layer)
        return round(total)


def plannable(config: PreTrainedConfig) -> bool:
    """Whether the plan knows a model's layers: attention and MLP, of one stack."""
    layers = layers_of(config)
    return bool(layers) and any(head_sizes(layer)[0] for layer in layers)
