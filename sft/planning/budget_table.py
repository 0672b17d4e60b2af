"""A run's budget: shown as a table, a column a stage, and held against the memory there is."""

import logging
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from sft.errors import UserError
from sft.model.flops import Parameters
from sft.packing.flex_attention import FLEX
from sft.planning.budget import Planner, StageBudget, StageWorkload
from sft.planning.device_memory import GIB, plannable
from sft.planning.step_memory import Memory
from sft.run.console import show

log = logging.getLogger(__name__)

PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "process")


def show_budget(
    planner: Planner, workloads: Sequence[StageWorkload], *, parts: bool, errors: bool = True
) -> float | None:
    """Print what the stages take, where the plan knows the model's layers; returns their hours.

    Args:
        parts: whether models are measured in parts, see `Planner.in_parts`.
        errors: print to stderr, not to stdout.

    Raises:
        UserError: one of them does not fit its device, or the whole model does not.
    """
    if not plannable(planner.config):
        kind = planner.config.model_type
        log.warning("plan: none, it does not know the layers of a %r model", kind)
        return None
    budgets = [planner.stage(workload) for workload in workloads]
    show(budget_table(planner, budgets, parts=parts), errors=errors)
    planner.refuse_whole()
    for budget in budgets:
        planner.refuse_too_large(budget)
    return sum(budget.hours or 0.0 for budget in budgets)


def check_memory(planner: Planner, workloads: Sequence[StageWorkload]) -> None:
    """Stop a run that the plan is sure will not fit, before its first model is loaded.

    Where the plan is a bound (answers still to be sampled, flex attention), or the rest that it
    leaves to the driver would do, that is a warning.

    Raises:
        UserError: a stage needs more than its device has.
    """
    if not plannable(planner.config):
        return
    for workload in workloads:
        if planner.ceiling(workload) <= planner.limit:
            continue
        budget = planner.stage(workload)
        if budget.memory is None:
            log.warning("plan: %s; going on without it", _unknown(planner))
            return
        sentence = planner.too_large(budget)
        bound = workload.bound or planner.placement.attention == FLEX
        if sentence and not bound and budget.memory.total > planner.machine.memory:
            raise UserError(sentence)
        if sentence:
            log.warning("%s; going on, since that is the most that it may need", sentence)


def budget_table(planner: Planner, budgets: Sequence[StageBudget], *, parts: bool) -> Group:
    """Rows, tokens, operations, hours and memory by part of each stage, below the model's size."""
    machine = planner.machine
    table = Table(box=box.SIMPLE_HEAD, title="plan", title_justify="left", pad_edge=False)
    table.add_column("")
    for budget in budgets:
        table.add_column(budget.workload.title, justify="right")
    for label, cells in _lines(budgets):
        table.add_row(label, *cells)
    if any(budget.memory is None for budget in budgets):
        table.caption, table.caption_justify = _unknown(planner), "left"
    devices = f"{machine.count} x {machine.name}" if machine.count > 1 else machine.name
    spread = ", weights and moments sharded" if machine.sharded and machine.count > 1 else ""
    notes = [
        f"memory: of each device ({devices}{spread}), at the worst moment of a step on the longest "
        "rows, or of taking the reference, which is log-probs on disk and takes none in training",
        _whole(planner, parts=parts),
    ]
    if budgets and budgets[0].hours is not None:
        notes.append(
            f"hours: at {planner.utilisation:.0%} of {machine.peak or 0:.3g} operations a second "
            "and device; measuring and sampling come on top, see the line on measuring"
        )
    return Group(_sizes(planner.parameters), table, *notes)


def _unknown(planner: Planner) -> str:
    kind = planner.config.model_type
    return f"memory unknown: the code of a {kind!r} model cannot be run without data"


def _whole(planner: Planner, *, parts: bool) -> str:
    if parts:
        size = planner.measured / GIB
        return f"whole model: {size:.2f} GiB of weights, on no device; it is measured in parts"
    loaded = planner.sharded and not planner.lends
    return (
        f"whole model: {planner.whole / GIB:.2f} GiB of weights on each device while it is measured"
        f"{', or loaded to be spread' if loaded else ''}"
    )


def _sizes(parameters: Parameters) -> str:
    named = ("embedding", "head", "attention", "mlp", "other", "adapter")
    parts = [f"{n} {getattr(parameters, n):,}" for n in named if getattr(parameters, n)]
    share = parameters.trainable / parameters.total
    reach = ""
    if parameters.adapter:
        reached = parameters.reached / (parameters.total - parameters.adapter)
        reach = f", an adapter that reaches {reached:.1%} of the weights"
    return f"parameters: {parameters.total:,} ({', '.join(parts)}); {share:.2%} are trained{reach}"


def _hours(hours: float | None) -> str:
    if hours is None:
        return ""
    return in_digits(hours, 3) if hours >= 0.01 else "<0.01"


def in_digits(hours: float, digits: int) -> str:
    """Hours with so many digits that count; from 100 on, whole hours and never a power of ten."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.{digits}g}"


def _lines(budgets: Sequence[StageBudget]) -> list[tuple[str, list[str]]]:
    lines = [
        ("rows", [f"{len(b.workload.spans):,}" for b in budgets]),
        ("tokens an epoch", [f"{b.workload.tokens:,}" for b in budgets]),
        ("padding in rows", [f"{b.padding:.1%}" for b in budgets]),
        ("steps", [f"{b.steps:,}" for b in budgets]),
        ("operations", [f"{b.flops:.3g}" for b in budgets]),
    ]
    if any(b.hours is not None for b in budgets):
        hours = [_hours(b.hours) for b in budgets]
        lines.append(("hours", hours))
    for part in PARTS:
        if part == "process" and not any(b.memory and b.memory.process for b in budgets):
            continue
        lines.append((f"{part}, GiB", [_gib(b.memory, part) for b in budgets]))
    lines.append(("reference, GiB", ["0.00" if b.workload.reference else "" for b in budgets]))
    lines.append(("memory, GiB", [_gib(b.memory, "total") for b in budgets]))
    return lines


def _gib(memory: Memory | None, part: str) -> str:
    return "?" if memory is None else f"{getattr(memory, part) / GIB:.2f}"
