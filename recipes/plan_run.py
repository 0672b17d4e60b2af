"""Estimate what a preset takes before training: memory by part, operations, hours.

    python recipes/plan_run.py PRESET [section.key=value ...]              # on this machine
    python recipes/plan_run.py PRESET --device h100                        # on another device
    python recipes/plan_run.py PRESET --device h100 --devices 8 --sharded  # FSDP or ZeRO-3

It reads the rows and loads no weights. If a stage does not fit its device, it names the nearest
setting that fits and exits with code 2.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from sft import end_on_interrupt

    end_on_interrupt()

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sft.config.preset import load_preset
from sft.config.sections import Preset
from sft.errors import UserError
from sft.run.command import command_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and plan; the exit codes are those of `run_command`."""
    parser = command_parser(__doc__, preset=True)
    parser.add_argument("--device", help="h200, h100, a100-80, a100-40, l40s, rtx4090; else this")
    parser.add_argument("--devices", type=int, default=1, help="number of devices")
    parser.add_argument("--sharded", action="store_true", help="shard the weights over them")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak (0.4)")
    given = parser.parse_intermixed_args(argv)

    def work() -> None:
        if given.devices < 1:
            raise UserError(f"--devices {given.devices} must be 1 or more")
        if given.sharded and given.devices < 2:
            raise UserError("--sharded shards weights over devices; give --devices 2 or more")
        if not 0 < given.utilisation <= 1:
            raise UserError(f"--utilisation {given.utilisation:g} must be above 0 and at most 1")
        preset = load_preset(given.preset, overrides=given.overrides)
        if given.sharded and preset.model.load_in_4bit:
            raise UserError(
                "--sharded shards weights over devices, and model.load_in_4bit=true keeps them "
                "whole on each; omit --sharded, or set model.load_in_4bit=false"
            )
        # The rows are prepared as in a run, whose directory this one must not touch.
        with tempfile.TemporaryDirectory() as folder:
            plan(
                replace(preset, run=replace(preset.run, dir=folder)),
                device=given.device,
                devices=given.devices,
                sharded=given.sharded,
                utilisation=given.utilisation,
            )

    return run_command(work, resumable=False)


def plan(
    preset: Preset, *, device: str | None, devices: int, sharded: bool, utilisation: float
) -> None:
    """Prepare the rows as a run does, then print and check the budget of its stages."""
    # Imported here, since they take seconds, so that a mistyped preset is answered at once.
    from dpo.stage import check_dpo, given_pairs, pair_prompts
    from dpo.workload import preference_workload
    from eval.graders.rule_judge import reference_error
    from eval.measures.cost import cost_line
    from eval.measures.dry_run import check_questions
    from eval.tasks.questions import benchmark_questions
    from sft.context import RunContext
    from sft.model.adapter_checks import check_adapters
    from sft.model.loading import check_model, context_window, load_tokenizer, read_config
    from sft.model.placement import choose_placement
    from sft.planning.budget import Planner, chats_workload, named_placement
    from sft.planning.budget_table import show_budget
    from sft.planning.devices import named_machine, this_machine
    from sft.planning.stages import check_sft, fit_lengths, plan_stages, split_length
    from sft.run.console import show, start_logging
    from sft.run.run_record import with_date
    from sft.tokenization.prepare import prepare_chats
    from sft.training.trainer import check_batch

    start_logging()
    # For another device this machine only prepares the rows, which does not need 4-bit weights.
    elsewhere = replace(preset.model, load_in_4bit=False)
    here = choose_placement(elsewhere if device else preset.model)
    if device is None:
        machine, placement = this_machine(here), here
    else:
        machine, placement = named_machine(device), named_placement(preset.model)
    if devices > 1:
        machine = replace(machine, count=devices, sharded=sharded)
    base = check_model(preset.model)
    window = context_window(base, preset.model)
    preset = fit_lengths(preset, window)
    check_sft(preset, here)
    check_dpo(preset.dpo, here)
    tokenizer = load_tokenizer(
        base,
        preset.model,
        date=with_date(preset).run.date,
        system_prompt=preset.data.system_prompt,
    )
    config = read_config(base, preset.model)
    check_adapters(preset, base, tokenizer, config=config)
    context = RunContext.of(
        preset, folder=Path(preset.run.dir), tokenizer=tokenizer, placement=here
    )
    benchmarks = benchmark_questions(preset.eval)
    chats = prepare_chats(
        preset.data, context, benchmarks=benchmarks, split_at=split_length(preset)
    )
    workloads = [
        chats_workload(s.name, s.section, s.rows) for s in plan_stages(chats, preset, context)
    ]
    pairs = given_pairs(preset, context, benchmarks=benchmarks)
    prompts = pair_prompts(preset, context, benchmarks=benchmarks, reference_error=reference_error)
    workloads += preference_workload(preset, tokenizer, pairs=pairs, prompts=prompts)
    # check_sft divided the batch over this machine's processes, not over the planned devices.
    for workload in workloads:
        check_batch(workload.name, workload.section, processes=devices)
    planner = Planner(config, preset.lora, placement, machine, utilisation)
    parts = planner.in_parts(preset.eval.in_parts, backend=preset.eval.backend)
    training = show_budget(planner, workloads, parts=parts, errors=False)
    if training is not None:
        asked = check_questions(preset, tokenizer, window=window, needs_data=False)
        models, sampled = len(workloads), len(prompts)
        cost = cost_line(planner, preset, asked, models=models, sampled=sampled, training=training)
        show(cost, errors=False)


if __name__ == "__main__":
    sys.exit(main())
