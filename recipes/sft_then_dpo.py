"""Train a base model with SFT on all data, SFT on dialogue and DPO, and measure each stage.

    accelerate launch recipes/sft_then_dpo.py                  # the quickstart
    accelerate launch recipes/sft_then_dpo.py PRESET [section.key=value ...]
    python recipes/sft_then_dpo.py PRESET --dry-run            # check and count, train nothing

After an interruption, the same command skips finished stages and resumes the others.
"""

# Before the imports below, which take seconds: Ctrl-C and a mistyped preset are answered at once.
if __name__ == "__main__":
    from sft import end_on_interrupt

    end_on_interrupt()
    from sft.run.chain_arguments import exit_on_mistakes

    exit_on_mistakes(__doc__)

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo.stage import check_dpo, given_pairs, pair_prompts, run_dpo_stage, sampled_pairs
from dpo.workload import preference_line, preference_workload
from eval.backends.loading import backend_inputs, check_backend
from eval.backends.sampling import sampler
from eval.graders.rule_judge import reference_error, rule_judge
from eval.measures.cost import cost_line
from eval.measures.dry_run import check_questions
from eval.measures.in_training import check_epoch_eval, epoch_eval, loop_check, starting_at
from eval.measures.measure import check_lengths, check_measures, measure
from eval.measures.measured_inputs import task_inputs, unmeasured_inputs
from eval.measures.tracker_metrics import log_deltas
from eval.report.tables import console_table
from eval.results.results import write_results
from eval.results.stage_gate import (
    Decision,
    check_gates,
    no_regression,
    stage_needed,
    write_decisions,
)
from eval.tasks.questions import benchmark_questions
from sft.cleaning.decontamination import Benchmarks
from sft.config.sections import Preset
from sft.context import RunContext
from sft.distributed.collectives import run_on_main, temporary_folder
from sft.model.adapter_checks import check_adapters
from sft.model.loading import check_model, context_window, load_tokenizer, read_config
from sft.model.placement import Placement, choose_placement
from sft.model.vocabulary import base_with_tokens
from sft.planning.budget import Planner, StageWorkload, chats_workload
from sft.planning.budget_table import check_memory, show_budget
from sft.planning.devices import this_machine
from sft.planning.stages import check_sft, fit_lengths, plan_stages, show_examples, split_length
from sft.run.chain_arguments import parse_arguments
from sft.run.command import run_command
from sft.run.console import print_summary, show, start_logging
from sft.run.directory import open_run
from sft.run.directory_checks import check_run_dir
from sft.run.revisions import pin_revisions
from sft.run.run_record import with_date, write_run_record
from sft.run.trackers import check_trackers, open_trackers
from sft.system.atomic_files import read_json
from sft.tokenization.input_hashes import earlier_inputs, run_inputs
from sft.tokenization.prepare import prepare_chats
from sft.training.stage import PlannedStage, run_sft_stage

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("truing")

# Keys that may change between two starts of a run: nothing that is stored depends on them.
MAY_CHANGE = (
    *("eval.each_epoch", "eval.in_parts"),
    *("run.report_to", "run.loop_checks", "run.loop_rise", "run.loop_budget"),
    "model.max_unknown",
)


@dataclass(frozen=True)
class CheckedRun:
    """A preset that passed every check, with the values that the checks resolved."""

    preset: Preset
    placement: Placement
    base: str
    tokenizer: "PreTrainedTokenizerBase"
    window: int | None  # context length of the base model in tokens
    planner: Planner
    in_parts: bool  # whether models are measured with sharded weights
    benchmarks: Benchmarks
    inputs: dict[str, str]  # hashes of everything that the run reads
    revisions: dict[str, str]  # commits of models and datasets on the Hub


@dataclass(frozen=True)
class PreparedRows:
    """Token rows of the SFT stages, and given pairs or the prompts that pairs are sampled from."""

    stages: list[PlannedStage]
    pairs: "Dataset | None"
    prompts: list[dict[str, Any]]
    preferences: list[StageWorkload]  # the workload of DPO, if it is enabled


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the chain; the exit codes are those of `run_command`."""
    given = parse_arguments(argv, description=__doc__)

    def work() -> None:
        preset = given.preset()
        start_logging()
        check_run_dir(preset, read=[given.path])
        if given.dry_run:
            with temporary_folder() as folder:
                chain(replace(preset, run=replace(preset.run, dir=str(folder))), dry_run=True)
        else:
            chain(preset, fresh=given.fresh, rerun=given.rerun)

    return run_command(work, resumable=not given.dry_run)


def chain(
    preset: Preset, *, dry_run: bool = False, fresh: bool = False, rerun: bool = False
) -> None:
    """Check, prepare, train and measure stage by stage, report."""
    checked = check(preset, fresh=fresh, rerun=rerun)
    with open_chain(checked, fresh=fresh, rerun=rerun) as context:
        earlier = None if rerun else read_json(context.folder / "results.json")
        # A finished run that is started again prints neither tables of its data nor its plan.
        context = replace(context, tables=earlier is None)
        rows = prepare(checked, context)
        if earlier is None:  # a dry run's folder is new
            check_plan(checked, rows, dry_run=dry_run)
        if not dry_run:
            models, decisions = train_and_measure(checked, rows, context)
            report(models, decisions, context, earlier=earlier)


def check(preset: Preset, *, fresh: bool, rerun: bool) -> CheckedRun:
    """Check the preset, the machine, the model and the tasks before any training."""
    # The cheapest checks come first: the machine, the Hub, the tasks, the tokenizer, the model.
    check_trackers(preset.run)
    placement = choose_placement(preset.model)
    preset = with_date(preset, fresh=fresh)
    check_sft(preset, placement)
    check_dpo(preset.dpo, placement)
    # A resumed run stays on the commits of its first start, although a branch may have moved.
    keep = not (fresh or rerun)
    preset, revisions = run_on_main(partial(pin_revisions, preset, keep=keep))
    base = check_model(preset.model)
    window = context_window(base, preset.model)
    preset = fit_lengths(preset, window)
    check_measures(preset.eval)
    check_backend(preset.eval, placement)
    check_gates(preset)
    check_epoch_eval(preset)
    tokenizer = load_tokenizer(
        base, preset.model, date=preset.run.date, system_prompt=preset.data.system_prompt
    )
    check_lengths(preset.eval, tokenizer, window=window, max_unknown=preset.model.max_unknown)
    config = read_config(base, preset.model)
    check_adapters(preset, base, tokenizer, config=config)
    # Before rows are prepared: no choice of them makes a model fit that is too large to measure.
    planner = Planner(config, preset.lora, placement, this_machine(placement))
    in_parts = planner.in_parts(preset.eval.in_parts, backend=preset.eval.backend)
    planner.check_full_model()
    benchmarks = benchmark_questions(preset.eval)
    inputs = run_inputs(preset, base=base, tokenizer=tokenizer, more=task_inputs(preset.eval))
    return CheckedRun(
        *(preset, placement, base, tokenizer, window, planner, in_parts),
        *(benchmarks, inputs, revisions),
    )


@contextmanager
def open_chain(checked: CheckedRun, *, fresh: bool, rerun: bool) -> Iterator[RunContext]:
    """Open the run directory and its trackers; yield the context that all stages share."""
    preset = checked.preset
    unmeasured = unmeasured_inputs(preset.eval, folder=Path(preset.run.dir).expanduser())
    # Inputs of measurements that are not done yet may still change.
    held = {name: value for name, value in checked.inputs.items() if name not in unmeasured}
    with (
        open_run(
            preset,
            inputs=held,
            fresh=fresh,
            rerun=rerun,
            growing=MAY_CHANGE,
            earlier=earlier_inputs(checked.base),
        ) as folder,
        open_trackers(preset, folder) as trackers,
    ):
        context = RunContext.of(
            preset, folder=folder, tokenizer=checked.tokenizer, placement=checked.placement
        )
        write_run_record(folder, preset, inputs=checked.inputs, revisions=checked.revisions)
        yield replace(
            context,
            trackers=trackers,
            parts=checked.in_parts,
            epoch_eval=epoch_eval(preset.eval, context),
            loop_check=loop_check(preset, context),
        )


def prepare(checked: CheckedRun, context: RunContext) -> PreparedRows:
    """Read rows into chats and token rows, leaving out those that contain a benchmark question."""
    preset, benchmarks = checked.preset, checked.benchmarks
    chats = prepare_chats(
        preset.data, context, benchmarks=benchmarks, split_at=split_length(preset)
    )
    stages = plan_stages(chats, preset, context)
    pairs = given_pairs(preset, context, benchmarks=benchmarks)
    prompts = pair_prompts(preset, context, benchmarks=benchmarks, reference_error=reference_error)
    preferences = preference_workload(preset, checked.tokenizer, pairs=pairs, prompts=prompts)
    for workload in preferences:
        log.info(preference_line(workload))
    return PreparedRows(stages, pairs, prompts, preferences)


def check_plan(checked: CheckedRun, rows: PreparedRows, *, dry_run: bool) -> None:
    """Check that questions fit the model and stages fit the memory; print it all in a dry run."""
    preset, planner = checked.preset, checked.planner
    asked = check_questions(
        preset, checked.tokenizer, window=checked.window, needs_data=not dry_run
    )
    workloads = [chats_workload(stage.name, stage.section, stage.rows) for stage in rows.stages]
    workloads += rows.preferences
    if not dry_run:
        run_on_main(partial(check_memory, planner, workloads))
        return
    show_examples(rows.stages, checked.tokenizer)
    training = show_budget(planner, workloads, parts=checked.in_parts)
    if training is not None:
        models, sampled = len(workloads), len(rows.prompts)
        show(cost_line(planner, preset, asked, models=models, sampled=sampled, training=training))


def train_and_measure(
    checked: CheckedRun, rows: PreparedRows, context: RunContext
) -> tuple[dict[str, str], list[Decision]]:
    """Train and measure stage by stage; each stage starts from the last model that was kept.

    Returns:
        The folders of the base and of the models that were kept, by name in order; and the
        decisions on stages with `enabled: auto`.
    """
    preset, folder = checked.preset, context.folder
    base = base_with_tokens(checked.base, preset.model, checked.tokenizer, run=folder)
    models: dict[str, str] = {"base": base}  # in order; the last one is where a stage starts
    decisions: list[Decision] = []
    measure("base", base, context, preset.eval)
    stages = {stage.name: stage.section.enabled for stage in rows.stages}
    if preset.dpo.enabled:
        stages["dpo"] = preset.dpo.enabled
    for name, enabled in stages.items():
        before, auto = list(models)[-1], enabled == "auto"
        if auto and name != "dpo":  # for DPO, auto decides only whether its model is kept
            above = preset.sft_dialogue.min_repetition
            decide = partial(stage_needed, folder, stage=name, after=before, above=above)
            decisions.append(run_on_main(decide))
            if decisions[-1].verdict == "skipped":
                continue
        trained = train(name, checked, rows, starting_at(context, before), start=models[before])
        measure(name, trained, context, preset.eval)
        if auto:
            decisions.append(run_on_main(partial(no_regression, folder, stage=name, before=before)))
        if not auto or decisions[-1].verdict == "kept":
            models[name] = trained
    return models, decisions


def train(
    name: str, checked: CheckedRun, rows: PreparedRows, context: RunContext, *, start: str
) -> str:
    """Train one stage from the model at `start`; return the folder of its model."""
    preset = checked.preset
    if name != "dpo":
        (stage,) = (stage for stage in rows.stages if stage.name == name)
        return run_sft_stage(stage, context, start=start)
    pairs = rows.pairs
    if pairs is None:  # from the answers of the model itself, graded by rules
        pairs = sampled_pairs(
            preset,
            context,
            start=start,
            prompts=rows.prompts,
            sample=sampler(start, context, section=preset.pairs, engine=preset.eval),
            score=rule_judge,
            sampled_by=backend_inputs(preset.eval, context),
        )
    return run_dpo_stage(context, start=start, section=preset.dpo, rows=pairs)


def report(
    models: Mapping[str, str],
    decisions: Sequence[Decision],
    context: RunContext,
    *,
    earlier: dict[str, Any] | None,
) -> None:
    """Write results.json and the report; print the table unless it equals that of `earlier`."""
    folder = context.folder
    run_on_main(lambda: write_decisions(folder, list(decisions)))
    results = run_on_main(lambda: write_results(folder, list(models)))
    run_on_main(lambda: log_deltas(context.trackers, results))
    table = None if results == earlier else console_table(results)
    print_summary(table, folder=folder, model=list(models.values())[-1])


if __name__ == "__main__":
    sys.exit(main())
