"""The preference stage: given or sampled pairs, then DPO against the model that it starts from."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig

from dpo.data import read_preferences
from dpo.encode import encode_pairs
from dpo.loss import check_loss
from dpo.pair_checks import PairFacts, pairs_table
from dpo.pairs import SampledAnswer, Sampler, Scorer, build_pairs
from dpo.trainer import train_dpo
from sft.chat_template.tokenizer_coverage import check_answer_coverage, check_row_coverage
from sft.cleaning.decontamination import Benchmarks
from sft.cleaning.filters import CONTAMINATED, check_contamination, drop_rows
from sft.config.sections import DpoStage, Preset
from sft.context import RunContext
from sft.data.mixture import mix
from sft.data.prompts import read_prompts
from sft.data.sources import source_table
from sft.distributed.collectives import run_on_main
from sft.errors import UserError
from sft.export.merge import MERGE_ROWS
from sft.model.placement import Placement
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage
from sft.run.stage_folders import STAGE_FOLDERS
from sft.run.stage_summary import StageFacts
from sft.system.atomic_files import read_jsonl, write_json, write_jsonl, writing
from sft.tokenization.input_hashes import rows_fingerprint, tokenizer_fingerprint
from sft.tokenization.prepare import read_shared_rows
from sft.training.stage import run_stage
from sft.training.trainer import training_arguments

log = logging.getLogger(__name__)

ROWS, FILE = "rows", "rows.parquet"


def check_dpo(section: DpoStage, placement: Placement) -> None:
    """Check the settings of the stage before anything is loaded.

    Raises:
        UserError: a loss that is not implemented, or arguments that trl rejects.
    """
    if section.enabled:
        check_loss(section)
        training_arguments(DPOConfig, section, folder=Path("dpo"), placement=placement)


def given_pairs(preset: Preset, context: RunContext, *, benchmarks: Benchmarks) -> Dataset | None:
    """Return token rows of the preferences in `data.preference`, or None if it is empty.

    Raises:
        UserError: a row breaks a rule or holds a question of a benchmark and `data.on_error` is
            stop; or no pair is left.
    """
    data = preset.data
    if not (data.preference and preset.dpo.enabled):
        return None
    folder = context.folder / "data" / "preference"

    def prepare() -> None:
        read = read_preferences(data.preference, on_error=data.on_error)
        found = check_contamination(read.rows, data, benchmarks=benchmarks, folder=folder)
        read = drop_rows(read, found, rule=CONTAMINATED)
        check_row_coverage(context.tokenizer, read.rows, most=context.max_unknown)
        mixed = mix(read, data.preference, seed=context.seed)
        counted = _encode(mixed, preset, context, folder=folder / ROWS)
        facts = {"sources": [asdict(count) for count in read.counts], **asdict(counted)}
        title = "data.preference: rows of each source"
        context.show(source_table(facts["sources"], title=title))
        write_json(context.folder / "data" / "preference.json", facts)

    run_on_main(prepare)
    return read_shared_rows(folder / ROWS / FILE)


def _encode(
    pairs: Sequence[dict[str, Any]], preset: Preset, context: RunContext, *, folder: Path
) -> PairFacts:
    """Write token rows of pairs unless they are stored; call it in one process."""
    max_length = preset.dpo.trl["max_length"]
    stage = Stage(
        folder,
        {
            "pairs": fingerprint(list(pairs)),
            "tokenizer": tokenizer_fingerprint(context.tokenizer),
            "max_length": str(max_length),
        },
    )
    facts = stage.finished()
    if facts is None:
        stage.begin()
        rows, counted = encode_pairs(pairs, context.tokenizer, max_length=max_length)
        with writing(folder / FILE):
            rows.to_parquet(folder / FILE)
        facts = stage.finish(outputs=[FILE], facts=asdict(counted))
    counted = PairFacts(**facts)
    context.show(pairs_table(counted))
    return counted


def pair_prompts(
    preset: Preset,
    context: RunContext,
    *,
    benchmarks: Benchmarks,
    reference_error: Callable[[Any], str | None],
) -> list[dict[str, Any]]:
    """Return the prompts that pairs are sampled from; none if the preset gives pairs or no DPO.

    Args:
        reference_error: returns how a reference breaks the rules of the scorer, or None.

    Raises:
        UserError: a row is not a prompt, or its reference is invalid; or it contains a question of
            a benchmark and `data.on_error` is stop.
    """
    if preset.data.preference or not preset.dpo.enabled:
        return []
    prompts = read_prompts(preset.pairs.prompts, reference_error=reference_error)
    check_row_coverage(context.tokenizer, prompts, most=context.max_unknown, name="pairs.prompts")
    folder = context.folder / "data" / "prompts"
    found = run_on_main(
        lambda: check_contamination(prompts, preset.data, benchmarks=benchmarks, folder=folder)
    )
    if prompts and len(found) == len(prompts):
        raise UserError("pairs.prompts: every prompt contains a benchmark question; give others")
    kept = [prompt for i, prompt in enumerate(prompts) if i not in found]
    log.info(
        "dpo: pairs are built from the model's own answers, %d to each of %d prompts of %s",
        preset.pairs.samples_per_prompt,
        len(kept),
        ", ".join(source.path for source in preset.pairs.prompts),
    )
    return kept


def sampled_pairs(
    preset: Preset,
    context: RunContext,
    *,
    start: str,
    prompts: Sequence[dict[str, Any]],
    sample: Sampler,
    score: Scorer,
    sampled_by: Mapping[str, str],
) -> Dataset:
    """Return token rows of pairs sampled from the start model; 3-dpo/pairs.jsonl stores the pairs.

    Processes share the sampling; the main one writes. `sample` is called only if no pairs are
    stored for the same weights, prompts, options and `sampled_by`.

    Raises:
        UserError: all answers to each prompt have about the same score, or too many of their tokens
            are unknown.
    """
    section = preset.pairs
    stage = Stage(
        context.folder / STAGE_FOLDERS["dpo"] / "pairs",
        {
            "weights": context.weights_key(start),
            "prompts": fingerprint(list(prompts)),
            "options": fingerprint([asdict(section), context.seed]),
            "tokenizer": tokenizer_fingerprint(context.tokenizer),
            **sampled_by,
        },
    )
    file = "../pairs.jsonl"
    if run_on_main(stage.finished) is None:
        run_on_main(stage.begin)

        def sampled(
            conversations: Sequence[list[dict[str, Any]]], seeds: Sequence[int]
        ) -> Sequence[SampledAnswer]:
            answers = sample(conversations, seeds)
            written = [answer.token_ids for answer in answers]
            check_answer_coverage(context.tokenizer, written, most=context.max_unknown)
            return answers

        pairs, counts = build_pairs(
            prompts,
            sample=sampled,
            score=score,
            samples_per_prompt=section.samples_per_prompt,
            min_score_gap=section.min_score_gap,
            seed=context.seed,
        )

        def keep() -> None:
            write_jsonl(stage.folder / file, pairs)
            stage.finish(outputs=[file], facts=asdict(counts))

        run_on_main(keep)

    def encode() -> None:
        pairs = read_jsonl(stage.folder / file)
        if not pairs:
            raise UserError(
                f"no pair could be built from {len(prompts)} prompts: no answer is "
                "better than another; raise pairs.samples_per_prompt, pairs.temperature or, where "
                "answers are cut, pairs.max_new_tokens, name preferences of your own "
                "(data.preference), or end without DPO (dpo.enabled=false), and add --rerun"
            )
        _encode(pairs, preset, context, folder=stage.folder / ROWS)

    run_on_main(encode)
    return read_shared_rows(stage.folder / ROWS / FILE)


def run_dpo_stage(context: RunContext, *, start: str, section: DpoStage, rows: Dataset) -> str:
    """Run DPO on token rows of pairs (see `dpo.encode`) and return the directory of its model."""
    rows_key = rows_fingerprint(rows)
    # Weights, rows and precision decide the reference; beta and the schedule do not. Merging an
    # adapter rounds the weights, so it makes another reference.
    dtype, merging = str(context.placement.compute), context.lora.between_stages
    key = fingerprint([context.weights_key(start), rows_key, dtype, merging])

    shown = rows[:MERGE_ROWS]

    def train(model: Any, folder: Path) -> StageFacts:
        cache = folder / "reference" / key[:16]
        return train_dpo(model, rows, section=section, context=context, folder=folder, cache=cache)

    return run_stage(
        context,
        STAGE_FOLDERS["dpo"],
        start=start,
        inputs={"section": asdict(section), "rows": rows_key},
        train=train,
        texts=[[*p, *c] for p, c in zip(shown["prompt_ids"], shown["chosen_ids"], strict=True)],
        keep=("reference", "pairs", "pairs.jsonl"),
    )
