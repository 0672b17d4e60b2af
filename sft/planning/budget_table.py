"""Show the budget of a run as a table with a column per stage, and check it against the memory."""

import logging
from collections.abc import Iterator, Sequence

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

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "process")


def show_budget(
    planner: Planner, workloads: Sequence[StageWorkload], *, parts: bool, errors: bool = True
) -> float | None:
    """Print the budget of the stages, check that they fit, and return their hours; None if the plan
    does not support the model's layers.

    Args:
        parts: whether models are measured with sharded weights, see `Planner.in_parts`.
        errors: print to stderr instead of stdout.
    """
    if not plannable(planner.config):
        kind = planner.config.model_type
        log.warning("plan: none, it does not know the layers of a %r model", kind)
        return None
    budgets = [planner.stage(workload) for workload in workloads]
    show(budget_table(planner, budgets, parts=parts), errors=errors)
    # After the table, which shows the parts of what does not fit.
    planner.check_full_model()
    for budget in budgets:
        planner.check_fits(budget)
    return sum(budget.hours or 0.0 for budget in budgets)


def check_memory(planner: Planner, workloads: Sequence[StageWorkload]) -> None:
    """Stop a run that certainly does not fit, before its first model is loaded; warn if the plan is
    an upper bound, or if the memory that it reserves for the driver would be enough."""
    if not plannable(planner.config):
        return
    for workload in workloads:
        if planner.ceiling(workload) <= planner.limit:
            continue  # most runs fit by far, and planning a stage takes seconds
        budget = planner.stage(workload)
        if budget.memory is None:
            log.warning("plan: %s; continuing without it", _unknown(planner))
            return
        problem = planner.excess(budget)
        bound = workload.bound or planner.placement.attention == FLEX
        if problem and not bound and budget.memory.total > planner.machine.memory:
            raise UserError(problem)
        if problem:
            log.warning("%s; continuing, since this is an upper bound", problem)


def budget_table(planner: Planner, budgets: Sequence[StageBudget], *, parts: bool) -> Group:
    """Return the model's size and, per stage, rows, tokens, operations, hours and memory."""
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
    sharded = ", weights and moments sharded" if planner.sharded else ""
    notes = [
        f"memory: of each device ({devices}{sharded}), the peak of a step on the longest rows, or "
        "of the reference model's forward passes before training, whose results are on disk",
        _full_model_line(planner, parts=parts),
    ]
    if budgets and budgets[0].hours is not None:
        notes.append(
            f"hours: at {planner.utilization:.0%} of {machine.peak or 0:.3g} operations a second "
            "and device, without measuring and sampling, see the line on measuring"
        )
    return Group(_parameter_line(planner.parameters), table, *notes)


def _unknown(planner: Planner) -> str:
    kind = planner.config.model_type
    return f"memory unknown: the code of a {kind!r} model cannot be run without data"


def _full_model_line(planner: Planner, *, parts: bool) -> str:
    if parts:
        size = planner.measured / GIB
        return f"full model: {size:.2f} GiB of weights, on no device; it is measured in shards"
    loads_full = planner.sharded and not planner.loads_shards
    return (
        f"full model: {planner.full_model / GIB:.2f} GiB of weights on each device while it is "
        f"measured{', or loaded to be sharded' if loads_full else ''}"
    )


def _parameter_line(parameters: Parameters) -> str:
    named = ("embedding", "head", "attention", "mlp", "other", "adapter")
    parts = [f"{name} {count:,}" for name in named if (count := getattr(parameters, name))]
    share = parameters.trainable / parameters.total
    adapter = ""
    if parameters.adapter:
        adapted = parameters.adapted / (parameters.total - parameters.adapter)
        adapter = f", with an adapter on {adapted:.1%} of the weights"
    return (
        f"parameters: {parameters.total:,} ({', '.join(parts)}); {share:.2%} are trained{adapter}"
    )


def format_hours(hours: float, digits: int) -> str:
    """Return hours with so many significant digits; from 100 on, as a whole number."""
    # The format code g alone would write 12345.6 as 1.2e+04.
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.{digits}g}"


def _lines(budgets: Sequence[StageBudget]) -> Iterator[tuple[str, list[str]]]:
    yield "rows", [f"{len(b.workload.spans):,}" for b in budgets]
    yield "tokens an epoch", [f"{b.workload.tokens:,}" for b in budgets]
    yield "padding in rows", [f"{b.padding:.1%}" for b in budgets]
    yield "steps", [f"{b.steps:,}" for b in budgets]
    yield "operations", [f"{b.flops:.3g}" for b in budgets]
    hours = [b.hours for b in budgets if b.hours is not None]
    if hours:
        yield "hours", [format_hours(h, 3) if h >= 0.01 else "<0.01" for h in hours]
    for part in PARTS:
        if part != "process" or any(b.memory and b.memory.process for b in budgets):
            yield f"{part}, GiB", [_gib(b.memory, part) for b in budgets]
    # 0 in training: the reference model's log-probabilities are computed before it and stored.
    yield "reference, GiB", ["0.00" if b.workload.reference else "" for b in budgets]
    yield "memory, GiB", [_gib(b.memory, "total") for b in budgets]


def _gib(memory: Memory | None, part: str) -> str:
    return "?" if memory is None else f"{getattr(memory, part) / GIB:.2f}"
