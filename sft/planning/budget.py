"""What a run will take: memory, operations and hours of each stage, from its real rows.

Memory is that of `sft.planning.step_memory` on the longest rows that can meet in a micro-batch;
operations are `sft.model.flops`'s over all rows; hours follow from a device's published peak at a
stated utilisation. Measuring, sampling pairs and writing checkpoints come on top of the hours.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig

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
    scoring_memory,
    step_memory,
)
from sft.training.micro_batches import pass_tokens

SAMPLED = 2000  # micro-batches that padding is counted on
REFERENCE_ROWS = 64  # pairs whose reference is taken at once, see `dpo.reference`


def named_placement(section: ModelSection) -> Placement:
    """How a device of the table trains: float32 weights, bfloat16 products, masks over rows."""
    attention = "sdpa" if section.attn_implementation == "auto" else section.attn_implementation
    compute = torch.bfloat16 if section.dtype == "auto" else getattr(torch, section.dtype)
    return Placement(
        torch.device("cuda"), torch.float32, compute, attention, (), section.load_in_4bit
    )


@dataclass(frozen=True)
class StageWorkload:
    """The documents of a stage: an epoch's rows by their lengths."""

    name: str
    section: SftStage | DpoStage
    spans: tuple[Span, ...]
    scored: tuple[int, ...]  # tokens of each that the loss is on
    reference: bool = False  # each row is scored once before training
    bound: bool = False  # no more than this: the rows are still to be made

    @property
    def tokens(self) -> int:
        return sum(_length(span) for span in self.spans)

    @property
    def title(self) -> str:
        """How the stage is called where its figures are told."""
        return f"{self.name}, at most" if self.bound else self.name


@dataclass(frozen=True)
class StageBudget:
    """What one stage takes."""

    workload: StageWorkload
    steps: int
    padding: float  # share of the positions in rows that are no token
    flops: int  # of the whole stage, with what checkpointing computes again
    memory: Memory | None  # of one device; None where the model's code does not run without data
    hours: float | None


@dataclass(frozen=True)
class Planner(DeviceMemory):
    """What all stages have in common: the model, how it trains, and on what."""

    utilisation: float = 0.4  # of the peak; dense models of billions train at 0.3 to 0.5

    def stage(self, workload: StageWorkload) -> StageBudget:
        """The budget of a stage."""
        options = workload.section.trl
        micro = options["per_device_train_batch_size"] * self.machine.count
        batch = step_rows(workload.section, processes=self.machine.count)
        steps = count_steps(len(workload.spans), batch=batch, options=options)
        epochs = steps * batch / len(workload.spans)
        flops = round(epochs * self._epoch_flops(workload)) + self._reference_flops(workload)
        rate = self.machine.peak
        hours = flops / (rate * self.machine.count * self.utilisation) / 3600 if rate else None
        memory: Memory | None = None
        with suppress(NeedsValues, RowsNotRead):
            memory = self.memory(workload, accumulates=batch > micro)
        padding = padding_of(workload, replace(self.placement, attention=self.attention))
        return StageBudget(workload, steps, padding, flops, memory, hours)

    @property
    def attention(self) -> str:
        """What the model's attention is planned as. Flex attention runs on a GPU alone; the masks
        over rows that it falls back to take more, so the plan is a bound."""
        wanted = self.placement.attention
        return attention_for(self.config, "sdpa" if wanted == FLEX else wanted)

    def _epoch_flops(self, workload: StageWorkload) -> int:
        costs = self.costs
        total = training_flops(costs, workload.spans, scored=sum(workload.scored))
        if _checkpoints(workload.section):
            total += forward_flops(costs, workload.spans, scored=0)
        return total

    def _reference_flops(self, workload: StageWorkload) -> int:
        if not workload.reference:
            return 0
        return forward_flops(self.costs, workload.spans, scored=sum(workload.scored))

    def memory(self, workload: StageWorkload, *, accumulates: bool) -> Memory:
        """Memory of one device at the worst moment that the stage's rows can bring about: in a
        training step, or while the reference is taken before it."""
        training = self._training(workload, accumulates=accumulates)
        most = training
        if workload.reference:
            most = max(training, self._reference(workload), key=lambda memory: memory.total)
        return replace(most, process=self.process)

    def _training(self, workload: StageWorkload, *, accumulates: bool) -> Memory:
        rows = workload.section.trl["per_device_train_batch_size"]
        most = pass_tokens(self.placement.device, sharded=self.sharded)
        setup = replace(
            self._setup,
            # Sharded weights are gathered in the compute dtype, so nothing is cast.
            weights=self.placement.compute if self.sharded else self.placement.weights,
            checkpointing=_checkpoints(workload.section),
            accumulates=accumulates,
        )
        whole = self._of_fullest(
            step_memory, workload, setup, rows=rows, tokens=most, packing=workload.section.packing
        )
        if self.sharded:
            return self._shard(whole)
        if self.machine.count > 1:  # DDP's buckets hold every gradient a second time
            return replace(whole, gradients=whole.gradients + 4 * self.parameters.trainable)
        return whole

    def _reference(self, workload: StageWorkload) -> Memory:
        """As `dpo.reference` takes it, many pairs at once whatever the micro-batch: of the whole
        model, or of the parts that the devices lend each other."""
        tokens = batch_tokens(self.placement.device)
        setup = self._setup
        if self.lends:
            setup = replace(setup, weights=self.placement.compute)
        whole = self._of_fullest(
            scoring_memory, workload, setup, rows=REFERENCE_ROWS, tokens=tokens, packing=True
        )
        return replace(whole, weights=self.part) if self.lends else whole

    def _of_fullest(
        self,
        take: Callable[[PreTrainedConfig, Batch, Setup], Memory],
        workload: StageWorkload,
        setup: Setup,
        **limits: Any,
    ) -> Memory:
        """Memory of the fullest pass, each sequence in a row of its own where the model's code
        takes no packed rows, as `sft.packing.equivalence` finds when a run starts."""
        kind: RowKind = "flat" if self.attention == DOCUMENTS else "masked"
        try:
            return take(self.config, self._fullest(workload, kind, **limits), setup)
        except RowsNotRead:
            batch = self._fullest(workload, "apart", **limits)
            return take(self.config, batch, replace(setup, apart=True))

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
        """Bytes that the stage stays far below, counted at once, where `memory` takes seconds."""
        device = self.placement.device
        most = max(pass_tokens(device, sharded=self.sharded), batch_tokens(device))
        lengths = sorted(map(_length, workload.spans), reverse=True)
        rows = workload.section.trl["per_device_train_batch_size"]
        rows = max(rows, REFERENCE_ROWS) if workload.reference else rows
        tokens = min(sum(lengths[:rows]), max(most, lengths[0]))
        every = self.parameters.total
        return self.process + memory_ceiling(
            self.config, parameters=every, tokens=tokens, longest=lengths[0]
        )

    def _fullest(
        self, workload: StageWorkload, kind: RowKind, *, rows: int, tokens: int, packing: bool
    ) -> Batch:
        """The fullest pass of at most `tokens` tokens that the stage's longest rows make."""
        order = sorted(range(len(workload.spans)), key=lambda i: -_length(workload.spans[i]))[:rows]
        documents = [_document(workload.spans[i], workload.scored[i]) for i in order]
        passes = best_fit([len(d) for d in documents], row_length=tokens)
        fullest = max(passes, key=lambda part: sum(len(documents[i]) for i in part))
        return lay_out([documents[i] for i in fullest], packing=packing, rows=kind)

    def _shard(self, whole: Memory) -> Memory:
        """Weights, gradients and moments in parts, as FSDP2 spreads them."""
        trained = self.parameters.trainable / self.machine.count
        return replace(
            whole,
            weights=self.part,
            gradients=round(4 * trained),
            optimiser=round(8 * trained),
        )

    def refuse_too_large(self, budget: StageBudget) -> None:
        """Say what to change where a stage does not fit its device.

        Raises:
            UserError: it does not; with the nearest setting that does, found by planning it.
        """
        if sentence := self.too_large(budget):
            raise UserError(sentence)

    def too_large(self, budget: StageBudget) -> str | None:
        """What to change where a stage does not fit its device; None where it does."""
        limit = self.limit
        if budget.memory is None or budget.memory.total <= limit:
            return None
        found = next((words for words, memory in self._changes(budget) if memory <= limit), None)
        advice = f"; {found} fits" if found else "; nothing that truing can change makes it fit"
        return (
            f"{budget.workload.title} needs {budget.memory.total / GIB:.1f} GiB on each device and "
            f"{self.machine.name} has {limit / GIB:.1f} GiB to use{advice}"
        )

    def _changes(self, budget: StageBudget) -> Iterator[tuple[str, int]]:
        """Settings that need less memory, each further from the preset than the one before."""
        workload = budget.workload
        name = workload.name.replace("-", "_")
        planner, words = self, ""
        for key, value in (("activation_checkpointing", True), ("per_device_train_batch_size", 1)):
            if workload.section.trl[key] != value:
                section = replace(workload.section, trl=workload.section.trl | {key: value})
                workload = replace(workload, section=section)
                words += f" {name}.{key}={str(value).lower()}"
                yield words.strip(), planner.memory(workload, accumulates=True).total
        full = words
        if not self.lora.r:
            planner = replace(self, lora=replace(self.lora, r=16))
            words = f" lora.r=16{words}"
            yield words.strip(), planner.memory(workload, accumulates=True).total
        if self.placement.load_in_4bit:
            return  # not for weights that are spread over devices
        if self.placement.device.type == "cuda" and not self.sharded:
            in_4bit = replace(planner, placement=replace(self.placement, load_in_4bit=True))
            yield (
                f"model.load_in_4bit=true{words}",
                in_4bit.memory(workload, accumulates=True).total,
            )
        if self.placement.device.type == "mps":
            return  # a Mac has one
        for count in (2, 4, 8, 16, 32, 64):
            if count > self.machine.count:
                machine = replace(self.machine, count=count, sharded=True)
                memory = replace(self, machine=machine).memory(workload, accumulates=True)
                yield f"FSDP over {count} such devices with{full or ' this preset'}", memory.total


def padding_of(workload: StageWorkload, placement: Placement) -> float:
    """The share of positions that hold no token, over micro-batches of the rows in random order."""
    micro = workload.section.trl["per_device_train_batch_size"]
    lengths = [_length(span) for span in workload.spans]
    random.Random(0).shuffle(lengths)
    tokens = positions = 0
    for first in range(0, min(len(lengths), micro * SAMPLED), micro):
        batch = lengths[first : first + micro]
        tokens += sum(batch)
        if placement.attention == DOCUMENTS and workload.section.packing:
            positions += -(-sum(batch) // FLAT_BUCKET) * FLAT_BUCKET
            continue
        longest = max(batch)
        bins = len(best_fit(batch, row_length=longest)) if workload.section.packing else len(batch)
        positions += bins * math.ceil(longest / 64) * 64
    return 1 - tokens / positions


def _length(span: Span) -> int:
    return span.trunk + sum(span.branches)


def _document(span: Span, scored: int) -> Document:
    """A document of these lengths, of which the last tokens are scored: of a chat, of each of its
    branches alike, or of a pair its answers whole."""
    lengths = span.branches or (span.trunk,)
    counts = [scored * n // sum(lengths) for n in lengths]
    counts[-1] += scored - sum(counts)
    parts = tuple(
        Segment([0] * n, [i >= n - count for i in range(n)])
        for n, count in zip(lengths, counts, strict=True)
    )
    if not span.branches:
        return Document(parts[0])
    return Document(Segment([0] * span.trunk, [False] * span.trunk), parts)


def _checkpoints(section: SftStage | DpoStage) -> bool:
    options = section.trl
    return bool(options.get("gradient_checkpointing") or options["activation_checkpointing"])


def chats_workload(name: str, section: SftStage, rows: Any) -> StageWorkload:
    """The workload of an SFT stage on token rows `{"input_ids", "trained", "branches"?}`."""
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
    """The workload of the preference stage on pairs: tokens of prompt, chosen and rejected.

    Args:
        bound: the pairs are still to be made, these are the most that can come.
    """
    spans = tuple(
        Span(i, 0, prompt, (chosen, rejected))
        for i, (prompt, chosen, rejected) in enumerate(lengths)
    )
    scored = tuple(sum(span.branches) for span in spans)
    return StageWorkload("dpo", section, spans, scored, reference=True, bound=bound)
