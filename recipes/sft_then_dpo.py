"""Base model -> SFT on all data -> SFT on dialogue -> DPO, and what each stage did.

    accelerate launch recipes/sft_then_dpo.py                  # the quickstart
    accelerate launch recipes/sft_then_dpo.py PRESET [section.key=value ...]
    python recipes/sft_then_dpo.py PRESET --dry-run            # check and count, train nothing

Start the same command again after an interruption: finished stages are skipped, the others go on.
"""

if __name__ == "__main__":  # while libraries are imported, too
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sft.config.preset import load_preset
from sft.config.sections import Preset
from sft.run.command import run_command

QUICKSTART = Path(__file__).parent / "presets" / "quickstart.yaml"

log = logging.getLogger("truing")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run the chain; the exit codes are those of `run_command`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", nargs="?", default=str(QUICKSTART), help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="check and count, train nothing")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--fresh", action="store_true", help="remove what the run wrote first")
    again.add_argument("--rerun", action="store_true", help="redo what a changed preset touches")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="let code tasks run the programs that the models write, confined",
    )
    parser.add_argument(
        "--allow-unconfined-code",
        action="store_true",
        help="and run them with your rights where nothing on this machine confines them",
    )
    given = parser.parse_intermixed_args(argv)
    if "=" in given.preset:  # overrides alone: they apply to the quickstart
        given.preset, given.overrides = str(QUICKSTART), [given.preset, *given.overrides]
    if given.allow_code_execution:
        given.overrides.append("eval.allow_code_execution=true")
    if given.allow_unconfined_code:
        given.overrides.append("eval.allow_unconfined_code=true")

    def work() -> None:
        preset = load_preset(given.preset, overrides=given.overrides)
        # Imported here, seconds of libraries, so that a mistyped preset is answered at once.
        from sft.distributed.collectives import temporary_folder
        from sft.run.console import start_logging
        from sft.run.run_place import check_run_dir

        start_logging()
        check_run_dir(preset, read=[given.preset])
        if given.dry_run:
            with temporary_folder() as folder:
                chain(replace(preset, run=replace(preset.run, dir=str(folder))), dry_run=True)
        else:
            chain(preset, fresh=given.fresh, rerun=given.rerun)

    return run_command(work, goes_on=not given.dry_run)


def chain(
    preset: Preset, *, dry_run: bool = False, fresh: bool = False, rerun: bool = False
) -> None:
    """The whole road: check, prepare, train and measure stage by stage, report."""
    from dpo.stage import check_dpo, given_pairs, pair_prompts, run_dpo_stage, sampled_pairs
    from dpo.workload import preference_line, preference_work
    from eval.backends.loading import backend_inputs, check_backend
    from eval.backends.sampling import sampler
    from eval.graders.rule_judge import reference_flaw, rule_judge
    from eval.measures.cost import cost_line
    from eval.measures.epoch_eval import check_epochs, epoch_measure
    from eval.measures.loop_probe import loop_probe, starting_at
    from eval.measures.measure import check_measures, check_room, measure
    from eval.measures.measured_inputs import task_inputs, unmeasured_inputs
    from eval.measures.rehearsal import check_questions
    from eval.measures.tracker_metrics import tell_deltas
    from eval.report.tables import console_table
    from eval.results.results import write_results
    from eval.results.stage_gate import check_gates, holds, needed, write_decisions
    from eval.tasks.questions import asked
    from sft.context import RunContext
    from sft.distributed.collectives import from_main
    from sft.model.adapter_checks import check_adapters
    from sft.model.loading import check_model, context_window, load_tokenizer, read_config
    from sft.model.placement import choose_placement
    from sft.model.vocabulary import base_with_tokens
    from sft.planning.budget import Planner, chats_work
    from sft.planning.budget_table import check_memory, show_budget
    from sft.planning.devices import this_machine
    from sft.planning.stages import check_sft, fit_lengths, plan_stages, show_examples, split_length
    from sft.run.console import farewell, show
    from sft.run.directory import open_run
    from sft.run.environment import write_environment
    from sft.run.revisions import pin_revisions
    from sft.run.run_date import with_date
    from sft.run.trackers import check_trackers, reporting
    from sft.system.atomic_files import read_json
    from sft.tokenization.fingerprints import earlier_inputs, run_inputs
    from sft.tokenization.prepare import prepare_chats
    from sft.training.stage import run_sft_stage

    # 1. What can be wrong is found before anything is trained.
    check_trackers(preset.run)
    placement = choose_placement(preset.model)
    preset = with_date(preset, fresh=fresh)
    check_sft(preset, placement)
    check_dpo(preset.dpo, placement)
    keep = not (fresh or rerun)
    preset, revisions = from_main(partial(pin_revisions, preset, keep=keep))
    base = check_model(preset.model)
    window, most = context_window(base, preset.model), preset.model.max_unknown
    preset = fit_lengths(preset, window)
    check_measures(preset.eval)
    check_backend(preset.eval, placement)
    check_gates(preset)
    check_epochs(preset)
    tokenizer = load_tokenizer(
        base, preset.model, date=preset.run.date, system_prompt=preset.data.system_prompt
    )
    check_room(preset.eval, tokenizer, window=window, max_unknown=most)
    config = read_config(base, preset.model)
    check_adapters(preset, base, tokenizer, config=config)
    planner = Planner(config, preset.lora, placement, this_machine(placement))
    parts = planner.in_parts(preset.eval.in_parts, backend=preset.eval.backend)
    planner.refuse_whole()
    benchmarks = asked(preset.eval)
    inputs = run_inputs(preset, base=base, tokenizer=tokenizer, more=task_inputs(preset.eval))
    unread = unmeasured_inputs(preset.eval, folder=Path(preset.run.dir).expanduser())
    held = {name: value for name, value in inputs.items() if name not in unread}

    # No inputs of anything.
    free = (
        *("eval.each_epoch", "eval.in_parts"),
        *("run.report_to", "run.loop_checks", "run.loop_rise", "run.loop_budget"),
        "model.max_unknown",
    )
    with (
        open_run(
            preset,
            inputs=held,
            fresh=fresh,
            rerun=rerun,
            growing=free,
            earlier=earlier_inputs(base),
        ) as folder,
        reporting(preset, folder) as trackers,
    ):
        context = RunContext.of(preset, folder=folder, tokenizer=tokenizer, placement=placement)
        before_this = None if rerun else read_json(folder / "results.json")
        context = replace(
            context,
            trackers=trackers,
            tables=before_this is None,
            parts=parts,
            after_epoch=epoch_measure(preset.eval, context),
            loop_probe=loop_probe(preset, context),
        )
        write_environment(folder, preset, inputs=inputs, revisions=revisions)

        # 2. Rows -> chats -> token rows, none of them with a question that is measured.
        split_at = split_length(preset)
        chats = prepare_chats(preset.data, context, benchmarks=benchmarks, split_at=split_at)
        stages = plan_stages(chats, preset, context)
        pairs = given_pairs(preset, context, benchmarks=benchmarks)
        prompts = pair_prompts(
            preset, context, benchmarks=benchmarks, reference_flaw=reference_flaw
        )
        preferences = preference_work(preset, tokenizer, pairs=pairs, prompts=prompts)
        for work in preferences:
            log.info(preference_line(work))
        if before_this is None:  # as in a dry run, whose folder is new
            tokens = check_questions(
                preset.eval,
                tokenizer,
                window=window,
                seed=preset.run.seed,
                max_unknown=most,
                needs_data=not dry_run,
            )
            works = [chats_work(stage.name, stage.section, stage.rows) for stage in stages]
            works += preferences
            if dry_run:
                show_examples(stages, tokenizer)
                training = show_budget(planner, works, parts=parts)
                if training is not None:
                    cost = cost_line(
                        planner,
                        preset,
                        asked=tokens,
                        models=len(stages) + bool(preset.dpo.enabled),
                        sampled=len(prompts) if pairs is None else 0,
                        training=training,
                    )
                    show(cost or "measuring: nothing is asked")
                return
            from_main(partial(check_memory, planner, works))

        # 3. Train and measure; each stage begins where the one before ended.
        base = base_with_tokens(base, preset.model, tokenizer, run=folder)
        models = {"base": base}
        decisions = []
        measure("base", base, context, preset.eval)
        for stage in stages:
            auto, before = stage.section.enabled == "auto", list(models)[-1]
            if auto:
                above = preset.sft_dialogue.min_repetition
                decisions.append(
                    from_main(partial(needed, folder, stage=stage.name, after=before, above=above))
                )
                if decisions[-1].verdict == "skipped":
                    continue
            at_start = starting_at(context, before)
            trained = run_sft_stage(stage, at_start, start=models[before])
            measure(stage.name, trained, context, preset.eval)
            if auto:
                decisions.append(from_main(partial(holds, folder, stage=stage.name, before=before)))
            if not auto or decisions[-1].verdict == "kept":
                models[stage.name] = trained
        *_, before = models
        start = models[before]
        if preset.dpo.enabled:
            if pairs is None:
                pairs = sampled_pairs(
                    preset,
                    context,
                    start=start,
                    prompts=prompts,
                    sample=sampler(start, context, section=preset.pairs, engine=preset.eval),
                    judge=rule_judge,
                    sampled_by=backend_inputs(preset.eval, context),
                )
            at_start = starting_at(context, before)
            trained = run_dpo_stage(at_start, start=start, section=preset.dpo, rows=pairs)
            measure("dpo", trained, context, preset.eval)
            if preset.dpo.enabled == "auto":
                decisions.append(from_main(partial(holds, folder, stage="dpo", before=before)))
            if preset.dpo.enabled is True or decisions[-1].verdict == "kept":
                models["dpo"] = trained

        # 4. The evidence.
        from_main(lambda: write_decisions(folder, decisions))
        results = from_main(lambda: write_results(folder, list(models)))
        from_main(lambda: tell_deltas(trackers, results))
        same = before_this is not None and results == before_this
        farewell(
            None if same else console_table(results), folder=folder, model=list(models.values())[-1]
        )


if __name__ == "__main__":
    sys.exit(main())
