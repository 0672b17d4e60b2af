"""Memory, operations and hours of each stage of a run, from its real rows.

Memory is that of `sft.planning.step_memory` on the longest rows that can meet in a micro-batch;
operations are those of `sft.model.flops` over all rows; hours follow from a device's published peak
at a given utilization. Measuring, sampling pairs and writing checkpoints take further hours.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset

from sft.config.sections import DpoStage, ModelSection, SftStage
from sft.errors import UserError
from sft.model.flops import forward_flops, training_flops
from sft.model.loading import attention_for
from sft.model.placement import Placement
from sft.packing.document_attention import DOCUMENTS
from sft.packing.flex_attention import FLEX
from sft.packing.layout import (
    FLAT_BUCKET,
    Batch,
    Document,
    RowKind,
    Segment,
    Span,
    best_fit,
    lay_out,
)
from sft.packing.logprobs import batch_tokens
from sft.planning.device_memory import GIB, DeviceMemory
from sft.planning.stages import count_steps, step_rows
from sft.planning.step_memory import (
    Memory,
    NeedsValues,
    RowsNotRead,
    Setup,
    memory_ceiling,
    step_memory,
)
from sft.training.micro_batches import pass_tokens

# Enough for two digits of the padding share.
SAMPLED = 2000  # micro-batches that padding is estimated from
REFERENCE_ROWS = 64  # pairs of a forward pass of the reference model, as in `dpo.reference`


def named_placement(section: ModelSection) -> Placement:
    """Return the placement for a GPU named by --device: float32 weights, bfloat16 products."""
    attention = "sdpa" if section.attn_implementation == "auto" else section.attn_implementation
    compute = torch.bfloat16 if section.dtype == "auto" else getattr(torch, section.dtype)
    return Placement(
        torch.device("cuda"), torch.float32, compute, attention, (), section.load_in_4bit
    )


@dataclass(frozen=True)
class StageWorkload:
    """The lengths of the documents that a stage trains on in one epoch."""

    name: str
    section: SftStage | DpoStage
    spans: tuple[Span, ...]
    scored: tuple[int, ...]  # tokens of each document that the loss is computed on
    reference: bool = False  # the reference model scores each row once before training
    bound: bool = False  # lengths are upper bounds, since the rows do not exist yet

    @property
    def tokens(self) -> int:
        return sum(map(_length, self.spans))

    @property
    def title(self) -> str:
        """The stage's name in tables and sentences."""
        return f"{self.name}, at most" if self.bound else self.name

    @property
    def checkpoints(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        options = self.section.trl
        return bool(options.get("gradient_checkpointing") or options["activation_checkpointing"])


@dataclass(frozen=True)
class StageBudget:
    """Cost of one stage."""

    workload: StageWorkload
    steps: int
    padding: float  # share of positions that hold no token
    flops: int  # of the full stage, including recomputation
    memory: Memory | None  # of one device; None if the model's code does not run on fake tensors
    hours: float | None


@dataclass(frozen=True)
class Planner(DeviceMemory):
    """Plans the stages of a run: the model, the way it is trained, and the devices."""

    utilization: float = 0.4  # of the peak; dense models of billions of weights reach 0.3 to 0.5

    def stage(self, workload: StageWorkload) -> StageBudget:
        """Return the budget of a stage."""
        options, devices = workload.section.trl, self.machine.count
        batch = step_rows(workload.section, processes=devices)
        steps = count_steps(len(workload.spans), batch=batch, options=options)
        # The last step of an epoch is filled up, so that steps can exceed the epochs' rows.
        epochs = steps * batch / len(workload.spans)
        flops = round(epochs * self._epoch_flops(workload))
        if workload.reference:
            flops += forward_flops(self.costs, workload.spans, scored=sum(workload.scored))
        peak = self.machine.peak
        hours = flops / (peak * devices * self.utilization) / 3600 if peak else None
        memory: Memory | None = None
        with suppress(NeedsValues, RowsNotRead):
            micro = options["per_device_train_batch_size"] * devices
            # Gradients of several micro-batches outlive one backward pass.
            memory = self.memory(workload, accumulates=batch > micro)
        padding = padding_of(workload, replace(self.placement, attention=self.attention))
        return StageBudget(workload, steps, padding, flops, memory, hours)

    @property
    def attention(self) -> str:
        """The attention backend that is planned for.

        Flex attention runs on a GPU only. Its fallback, masks over rows, takes more memory, so that
        the plan is an upper bound.
        """
        chosen = self.placement.attention
        return attention_for(self.config, "sdpa" if chosen == FLEX else chosen)

    def _epoch_flops(self, workload: StageWorkload) -> int:
        total = training_flops(self.costs, workload.spans, scored=sum(workload.scored))
        if workload.checkpoints:  # the layers' forward pass runs again, without the head
            total += forward_flops(self.costs, workload.spans, scored=0)
        return total

    def memory(self, workload: StageWorkload, *, accumulates: bool) -> Memory:
        """Return the peak memory of one device over all batches that the stage's rows can form: in
        a training step, or while the reference is computed before it."""
        peak = self._training(workload, accumulates=accumulates)
        if workload.reference:
            peak = max(peak, self._reference(workload), key=lambda memory: memory.total)
        return replace(peak, process=self.process)

    def _training(self, workload: StageWorkload, *, accumulates: bool) -> Memory:
        setup = replace(
            self._setup,
            # FSDP gathers sharded weights in the compute dtype, so that autocast casts nothing.
            weights=self.placement.compute if self.sharded else self.placement.weights,
            checkpointing=workload.checkpoints,
            accumulates=accumulates,
        )
        memory = self._of_fullest_batch(
            workload,
            setup,
            rows=workload.section.trl["per_device_train_batch_size"],
            tokens=pass_tokens(self.placement.device, sharded=self.sharded),
            packing=workload.section.packing,
        )
        trainable = self.parameters.trainable
        if self.sharded:
            own = trainable / self.machine.count
            return replace(
                memory, weights=self.shard, gradients=round(4 * own), optimizer=round(8 * own)
            )
        if self.machine.count > 1:  # DDP's buckets hold every gradient a second time
            return replace(memory, gradients=memory.gradients + 4 * trainable)
        return memory

    def _reference(self, workload: StageWorkload) -> Memory:
        """Return the memory of `dpo.reference`, whose batches do not depend on the micro-batch."""
        setup = self._setup
        if self.loads_shards:
            setup = replace(setup, weights=self.placement.compute)
        memory = self._of_fullest_batch(
            workload,
            setup,
            training=False,
            rows=REFERENCE_ROWS,
            tokens=batch_tokens(self.placement.device),
            packing=True,
        )
        return replace(memory, weights=self.shard) if self.loads_shards else memory

    def _of_fullest_batch(
        self, workload: StageWorkload, setup: Setup, *, training: bool = True, **limits: Any
    ) -> Memory:
        """Run the fullest batch; if the model's code refuses packed rows, with a row for each
        sequence, as `sft.packing.equivalence` falls back to when a run starts."""
        kind: RowKind = "flat" if self.attention == DOCUMENTS else "masked"
        try:
            batch = _fullest_batch(workload, kind, **limits)
            return step_memory(self.config, batch, setup, training=training)
        except RowsNotRead:
            batch = _fullest_batch(workload, "separate", **limits)
            setup = replace(setup, separate_rows=True)
            return step_memory(self.config, batch, setup, training=training)

    @property
    def _setup(self) -> Setup:
        return Setup(
            lora=self.adapter,
            weights=self.placement.weights,
            compute=self.placement.compute,
            attention=self.attention,
            load_in_4bit=self.placement.load_in_4bit,
        )

    def ceiling(self, workload: StageWorkload) -> int:
        """Return a loose upper bound of the stage's bytes at once; `memory` takes seconds."""
        device = self.placement.device
        most = max(pass_tokens(device, sharded=self.sharded), batch_tokens(device))
        lengths = sorted(map(_length, workload.spans), reverse=True)
        rows = workload.section.trl["per_device_train_batch_size"]
        rows = max(rows, REFERENCE_ROWS) if workload.reference else rows
        # A batch has at most so many tokens, but always holds the longest row.
        tokens = min(sum(lengths[:rows]), max(most, lengths[0]))
        total = self.parameters.total
        return self.process + memory_ceiling(
            self.config, parameters=total, tokens=tokens, longest=lengths[0]
        )

    def check_fits(self, budget: StageBudget) -> None:
        """Raise UserError if a stage does not fit; it names the nearest setting that does."""
        if problem := self.excess(budget):
            raise UserError(problem)

    def excess(self, budget: StageBudget) -> str | None:
        """Return a sentence on a stage that does not fit its device; None if it fits."""
        limit = self.limit
        if budget.memory is None or budget.memory.total <= limit:
            return None
        found = next((setting for setting, size in self._changes(budget) if size <= limit), None)
        advice = f"; {found} fits" if found else "; nothing that truing can change makes it fit"
        return (
            f"{budget.workload.title} needs {budget.memory.total / GIB:.1f} GiB on each device and "
            f"{self.machine.name} has {limit / GIB:.1f} GiB to use{advice}"
        )

    def _changes(self, budget: StageBudget) -> Iterator[tuple[str, int]]:
        """Yield settings that need less memory, with their bytes, each further from the preset."""
        workload, planner, settings = budget.workload, self, ""

        def size(planner: Planner) -> int:
            return planner.memory(workload, accumulates=True).total

        for key, value in (("activation_checkpointing", True), ("per_device_train_batch_size", 1)):
            if workload.section.trl[key] != value:
                section = replace(workload.section, trl=workload.section.trl | {key: value})
                workload = replace(workload, section=section)
                settings += f" {workload.name.replace('-', '_')}.{key}={str(value).lower()}"
                yield settings.strip(), size(planner)
        without_lora = settings.strip()
        if not self.lora.r:  # without gradients and moments of the full weights
            planner = replace(self, lora=replace(self.lora, r=16))
            settings = f" lora.r=16{settings}"
            yield settings.strip(), size(planner)
        if self.placement.load_in_4bit:
            return  # bitsandbytes' weights cannot be sharded
        if self.placement.device.type == "cuda" and not self.sharded:
            quantized = replace(planner, placement=replace(self.placement, load_in_4bit=True))
            yield f"model.load_in_4bit=true{settings}", size(quantized)
        if self.placement.device.type == "mps":
            return  # a Mac has one device
        for count in (2, 4, 8, 16, 32, 64):
            if count > self.machine.count:
                machine = replace(self.machine, count=count, sharded=True)
                rest = without_lora or "this preset"
                yield (
                    f"FSDP over {count} such devices with {rest}",
                    size(replace(self, machine=machine)),
                )


def padding_of(workload: StageWorkload, placement: Placement) -> float:
    """Return the share of positions without a token, over micro-batches in random order."""
    micro = workload.section.trl["per_device_train_batch_size"]
    lengths = [_length(span) for span in workload.spans]
    random.Random(0).shuffle(lengths)  # the order of training is random, too
    tokens = positions = 0
    for first in range(0, min(len(lengths), micro * SAMPLED), micro):
        batch = lengths[first : first + micro]
        tokens += sum(batch)
        if placement.attention == DOCUMENTS and workload.section.packing:
            positions += -(-sum(batch) // FLAT_BUCKET) * FLAT_BUCKET
            continue
        longest = max(batch)
        bins = len(best_fit(batch, row_length=longest)) if workload.section.packing else len(batch)
        positions += bins * math.ceil(longest / 64) * 64  # rows are padded to multiples of 64
    return 1 - tokens / positions


def _fullest_batch(
    workload: StageWorkload, kind: RowKind, *, rows: int, tokens: int, packing: bool
) -> Batch:
    """Lay out the fullest batch of at most `tokens` tokens of the stage's longest rows."""
    pairs = sorted(zip(workload.spans, workload.scored, strict=True), key=lambda p: -_length(p[0]))
    documents = [_document(span, scored) for span, scored in pairs[:rows]]
    batches = best_fit([len(d) for d in documents], row_length=tokens)
    fullest = max(batches, key=lambda batch: sum(len(documents[i]) for i in batch))
    return lay_out([documents[i] for i in fullest], packing=packing, rows=kind)


def _length(span: Span) -> int:
    return span.trunk + sum(span.branches)


def _document(span: Span, scored: int) -> Document:
    """Return a document of these lengths whose last tokens are scored, evenly over its branches."""
    lengths = span.branches or (span.trunk,)
    counts = [scored * n // sum(lengths) for n in lengths]
    counts[-1] += scored - sum(counts)  # what the rounding lost
    parts = tuple(
        Segment([0] * n, [i >= n - count for i in range(n)])
        for n, count in zip(lengths, counts, strict=True)
    )
    if not span.branches:
        return Document(parts[0])
    return Document(Segment([0] * span.trunk, [False] * span.trunk), parts)


def chats_workload(name: str, section: SftStage, rows: Dataset) -> StageWorkload:
    """Return the workload of an SFT stage on token rows `{"input_ids", "trained", "branches"?}`."""
    columns = rows.with_format("arrow")
    trained = columns["trained"][:].to_pylist()
    shared = "branches" in rows.column_names
    branches = columns["branches"][:].to_pylist() if shared else [()] * len(trained)
    spans = tuple(
        Span(i, 0, len(flags) - sum(lengths), tuple(lengths))
        for i, (flags, lengths) in enumerate(zip(trained, branches, strict=True))
    )
    return StageWorkload(name, section, spans, tuple(map(sum, trained)))


def pairs_workload(
    section: DpoStage, lengths: Sequence[tuple[int, int, int]], *, bound: bool = False
) -> StageWorkload:
    """Return the workload of DPO on pairs, given the tokens of prompt, chosen and rejected.

    Args:
        bound: the pairs do not exist yet; there cannot be more or longer ones.
    """
    spans = tuple(
        Span(i, 0, prompt, (chosen, rejected))
        for i, (prompt, chosen, rejected) in enumerate(lengths)
    )
    scored = tuple(sum(span.branches) for span in spans)
    return StageWorkload("dpo", section, spans, scored, reference=True, bound=bound)
