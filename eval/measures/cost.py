"""Upper bound of the hours that measuring a run's models takes, from its questions and caps."""

from collections.abc import Mapping
from dataclasses import dataclass

from sft.config.sections import EvalSection, Preset, Source
from sft.data.prompts import read_prompts, read_repetition_prompts
from sft.planning.budget import Planner
from sft.planning.budget_table import format_hours

# Tokens per second in generation as a share of those in scoring. On a CPU it was measured with
# SmolLM2-135M in batches of 24 answers; for other devices it is a guess for small batches.
WRITING = {"cpu": 0.3}
WRITING_ELSEWHERE = 0.02


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens: those that a model reads, and the most that it writes."""

    read: int = 0
    written: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.read + other.read, self.written + other.written)


def answers_cost(section: EvalSection) -> Tokens:
    """Return the most tokens that a model writes to the prompts for repetition and safety."""
    repetition, safety = section.repetition, section.safety
    written = 0
    if repetition.prompts:
        # A greedy loop is not decoded up to twice the cap but checked in one forward pass, so it
        # counts once; a sampled one is decoded.
        each = 1 + repetition.double_cap + 2 * (repetition.temperature > 0)
        written += len(read_repetition_prompts(repetition)) * repetition.cap * each
    if safety.prompts:
        count = len(read_prompts([Source(safety.prompts)]))
        written += min(count, safety.limit or count) * safety.cap
    return Tokens(0, written)


def cost_line(
    planner: Planner,
    preset: Preset,
    asked: Mapping[bool, Tokens],
    *,
    models: int,
    sampled: int,
    training: float,
) -> str:
    """Return a line with the most hours that measuring takes, and their share of the run.

    Args:
        asked: tokens of the tasks as plain text (False) and in the chat template (True).
        models: how many trained models are measured, besides the base.
        sampled: prompts whose answers are sampled for pairs.
        training: hours of all stages.
    """
    machine = planner.machine
    if machine.peak is None:
        return "measuring: hours unknown, since the device's speed is"
    rate = machine.peak * machine.count * planner.utilization
    share = WRITING.get(planner.placement.device.type, WRITING_ELSEWHERE)

    def hours(tokens: Tokens) -> float:
        work = 2 * planner.parameters.total * (tokens.read + tokens.written / share)
        return work / rate / 3600

    section, pairs = preset.eval, preset.pairs
    others = Tokens()
    for form in section.same_format:
        others += asked[form == "chat"]
    base = hours(asked[False] + others + answers_cost(section))
    chat = hours(asked[True] + others + answers_cost(section))
    answers = hours(Tokens(0, sampled * pairs.samples_per_prompt * pairs.max_new_tokens))
    total = base + models * chat + answers
    parts = [f"base {format_hours(base, 2)}", f"{models} trained {format_hours(models * chat, 2)}"]
    parts += [f"answers for pairs {format_hours(answers, 2)}"] if sampled else []
    if not total:
        return "measuring: nothing is asked"
    line = f"measuring, at most: {format_hours(total, 2)} hours ({', '.join(parts)})"
    return f"{line}, {total / (total + training):.0%} of the run"
