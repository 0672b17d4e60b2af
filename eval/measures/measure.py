"""Measures of a model in a run, with its samples on disk."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from eval.backends.base import Backend
from eval.backends.loading import backend_inputs, loaded
from eval.graders.sandbox_command import RunCode
from eval.measures import repetition, safety
from eval.measures.measure_cache import CachedMeasure, not_written
from eval.measures.repetition_breakdown import detail
from eval.measures.tracker_metrics import log_measures
from eval.metrics.paired_comparison import REPETITION
from eval.tasks.answer_length import check_answers
from eval.tasks.benchmark import TaskFormat, run_benchmark, scores_key
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource, check_tasks, tasks_fingerprint
from sft.chat_template.tokenizer_coverage import check_row_coverage
from sft.config.sections import EvalSection, RepetitionSection, TaskOptions
from sft.context import RunContext
from sft.data.prompts import read_repetition_prompts
from sft.distributed.collectives import map_over_ranks, own_share, run_on_main
from sft.errors import UserError
from sft.model.chat_models import is_chat_model
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage
from sft.system.atomic_files import read_jsonl, read_record, write_json, write_jsonl
from sft.tokenization.input_hashes import tokenizer_fingerprint

log = logging.getLogger(__name__)

BASE = "base"

Rows = list[dict[str, Any]]
Progress = Callable[[int], object]


def check_measures(section: EvalSection) -> None:
    """Check the tasks and prompts before a model is loaded.

    Raises:
        UserError: a task is unknown or runs programs that are not allowed, or the prompts for
            repetition or safety cannot be read, or no answer could be counted as repeating.
    """
    check_tasks(
        section.tasks,
        source=TaskSource.of(section),
        options=section.per_task,
        code=RunCode.of(section),
    )
    if section.repetition.prompts:
        repetition.check_cap(section.repetition.cap)
        read_repetition_prompts(section.repetition)
    if section.safety.prompts:
        safety.read_safety_prompts(section.safety.prompts)
    if not (section.tasks or section.repetition.prompts or section.safety.prompts):
        raise UserError(
            "eval names neither tasks nor repetition.prompts nor safety.prompts; name at least "
            "one, or nothing shows what training did"
        )


def check_lengths(
    section: EvalSection, tokenizer: Any, *, window: int | None, max_unknown: float = 0.03
) -> None:
    """Check that prompts and answers fit the context length and the tokenizer's vocabulary.

    Raises:
        UserError: a prompt for repetition or safety leaves less than the cap, or has unknown
            tokens; or the answers of a task alone may fill the context.
    """
    check_answers(
        section.tasks, source=TaskSource.of(section), options=section.per_task, window=window
    )
    if section.repetition.prompts is not None:
        prompts, cap = read_repetition_prompts(section.repetition), section.repetition.cap
        times = _times(section.repetition)
        repetition.check_prompts(tokenizer, prompts, window=window, cap=cap, times=times)
        check_row_coverage(tokenizer, prompts, most=max_unknown, name=section.repetition.prompts)
    if (path := section.safety.prompts) is not None:
        prompts = safety.read_safety_prompts(path, limit=section.safety.limit)
        safety.check_prompts(tokenizer, prompts, window=window, cap=section.safety.cap)
        check_row_coverage(tokenizer, prompts, most=max_unknown, name=path)


def _times(section: RepetitionSection) -> int:
    """Return how long a loop is followed, as a multiple of the cap."""
    return 4 if section.double_cap else 2


def measure(
    name: str, path: str, context: RunContext, section: EvalSection, *, replaces: bool = True
) -> None:
    """Measure a model into eval/<name>/; measures of the same weights and settings are reused.

    The base model gets `base_shots` examples as plain text, chat models `chat_shots` in the chat
    template (see `uses_chat_template`); `same_format` adds formats. Repetition and safety prompts
    always use the template. Processes share the questions, each with the full model.

    Raises:
        UserError: a task cannot be measured, the folder cannot be written, or, unless `replaces`,
            it holds measures of other weights.
    """
    try:
        with ExitStack() as resources:
            measured = _Measured(name, path, context, section, resources)
            if not replaces:
                run_on_main(measured.refuse_other_weights)
            measured.all()
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(context.folder):
            raise
        raise not_written(context.folder, error) from None


@dataclass
class _Measured:
    """The measures of one model; the model is loaded when the first one is missing."""

    name: str
    path: str
    context: RunContext
    section: EvalSection
    resources: ExitStack  # closed when the model is measured
    scores: dict[str, Any] = field(default_factory=lambda: {"benchmarks": {}})
    files: list[str] = field(default_factory=list)
    missing: int = 0

    @property
    def folder(self) -> Path:
        return self.context.folder / "eval" / self.name

    def refuse_other_weights(self) -> None:
        """Raise UserError if the folder holds the measures of another model."""
        done = read_record(self.folder / "done.json", "inputs")
        if done is not None and done["inputs"].get("weights") != self._common["weights"]:
            raise UserError(
                f"{self.folder} holds measures of another model than {self.path}; give it another "
                "name (NAME=PATH), or --to a new folder"
            )

    def all(self) -> None:
        """Run every task in the protocol's format and the others, then repetition and safety."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scores |= backend_inputs(self.section, self.context)
        trust = self.context.trust_remote_code
        chat = uses_chat_template(self.name, self.path, self.section, trust_remote_code=trust)
        if chat and self.name == BASE and self.section.base_format == "auto":
            log.info(
                "%s: a chat model, so it is evaluated with its chat template, as the others are; "
                "eval.base_format=plain uses examples as plain text",
                self.name,
            )
        for task in self.section.tasks:  # first, since a task without data stops the run
            entry = self._benchmark(task, "protocol", chat=chat)
            self.scores.setdefault(scores_key(entry), {})[task] = entry
        for form in self.section.same_format:
            tasks = self.scores["benchmarks"] if (form == "chat") != chat else {}
            others = {task: self._benchmark(task, form, chat=form == "chat") for task in tasks}
            self.scores.setdefault("same_format", {})[form] = others
        if self.section.repetition.prompts:
            self._repetition()
        if self.section.safety.prompts:
            self.scores["safety"] = self._safety(self.section.safety.prompts)
        run_on_main(self._finish)

    def _finish(self) -> None:
        context = self.context
        log_measures(context.trackers, self.name, self.scores, folder=context.folder)
        stage = Stage(self.folder, self._common | {"scores": fingerprint(self.scores)})
        if stage.finished() is not None and not self.missing:
            log.info("%s: measured already, skipped", self.name)
            return
        write_json(self.folder / "scores.json", self.scores)
        stage.finish(outputs=["scores.json", *self.files], facts={})

    @cached_property
    def _common(self) -> dict[str, str]:
        return {
            "weights": self.context.weights_key(self.path),
            "tokenizer": tokenizer_fingerprint(self.context.tokenizer),
            **backend_inputs(self.section, self.context),
        }

    @cached_property
    def _model(self) -> Backend:
        """Load the model, in all processes: also one without a share of the questions."""
        return self.resources.enter_context(loaded(self.path, self.context, self.section))

    def _benchmark(self, task: str, form: str, *, chat: bool) -> dict[str, Any]:
        settings = asdict(task_format(task, self.section, chat=chat))
        suffix = "" if form == "protocol" else f"-{form}"
        unit = self._unit(
            f"{form}/{task}",
            f"samples{suffix}/{task}.jsonl",
            task=tasks_fingerprint([task], source=TaskSource.of(self.section)),
            asked=fingerprint([settings, self.section.limit, self.context.seed]),
        )

        def run() -> dict[str, Any]:
            label = f"{self.name}: {task}" + ("" if form == "protocol" else f", {form}")
            shared = self.context, self.section
            return run_task(self._model, task, *shared, chat=chat, file=unit.rows, label=label)

        return self._cached(unit, run)

    def _repetition(self) -> None:
        """Measure greedy answers and, if configured, the doubled cap and sampled answers."""
        section, tokenizer = self.section.repetition, self.context.tokenizer
        prompts, cap, heat = read_repetition_prompts(section), section.cap, section.temperature
        asked = fingerprint([prompts, cap])

        def greedy(model: Backend, own: Rows, progress: Progress) -> Rows:
            window, times = model.window, _times(section)
            repetition.check_prompts(tokenizer, prompts, window=window, cap=cap, times=times)
            return repetition.greedy_answers(model, tokenizer, own, cap=cap, progress=progress)

        def doubled(model: Backend, own: Rows, progress: Progress) -> Rows:
            begun = [stored[prompt["id"]] for prompt in own]
            return repetition.greedy_answers(
                model, tokenizer, own, cap=2 * cap, begun=begun, progress=progress
            )

        def sampled(model: Backend, own: Rows, progress: Progress) -> Rows:
            return repetition.sampled_answers(
                *(model, tokenizer, own),
                cap=cap,
                temperature=heat,
                seed=self.context.seed,
                progress=progress,
            )

        unit = self._unit(REPETITION, "generations.jsonl", prompts=asked)
        found = self._answers(
            *(unit, prompts, greedy),
            summary=lambda rows: {"rate": repetition.summarize(rows), "detail": detail(rows)},
        )
        self.scores["repetition"] = found["rate"]
        self.scores["repetition_detail"] = more = found["detail"]
        if section.double_cap:
            rows = run_on_main(lambda: read_jsonl(self.folder / "generations.jsonl"))
            stored = {row["id"]: row for row in rows}
            unit = self._unit(
                "repetition-double-cap", "generations-double-cap.jsonl", prompts=asked
            )
            more["double_cap"] = self._answers(unit, prompts, doubled, summary=repetition.summarize)
        if heat > 0:
            drawn = fingerprint([heat, self.context.seed])
            unit = self._unit(
                "repetition-sampled", "generations-sampled.jsonl", prompts=asked, drawn=drawn
            )
            more["sampled"] = self._answers(
                *(unit, prompts, sampled),
                summary=lambda rows: {**repetition.summarize(rows), "temperature": heat},
            )

    def _safety(self, path: str) -> dict[str, Any]:
        cap, tokenizer = self.section.safety.cap, self.context.tokenizer
        prompts = safety.read_safety_prompts(path, limit=self.section.safety.limit)

        def labeled(model: Backend, own: Rows, progress: Progress) -> Rows:
            return safety.labeled_answers(model, tokenizer, own, cap=cap, progress=progress)

        unit = self._unit("safety", "safety.jsonl", prompts=fingerprint([prompts, cap]))
        return self._answers(unit, prompts, labeled, summary=safety.summarize)

    def _answers(
        self,
        unit: CachedMeasure,
        prompts: Rows,
        answer: Callable[[Backend, Rows, Progress], Rows],
        *,
        summary: Callable[[Rows], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the entry of a measure whose prompts the processes share."""

        def run() -> Mapping[str, Any]:
            model = self._model  # outside of map_over_ranks, which skips ranks without prompts
            with tqdm(
                total=len(own_share(prompts)),
                desc=f"{self.name}: {unit.name}",
                unit="answer",
                disable=not PartialState().is_main_process,
            ) as bar:
                rows = map_over_ranks(prompts, lambda own: answer(model, own, bar.update))
            run_on_main(lambda: write_jsonl(unit.rows, rows))
            return summary(rows)

        return self._cached(unit, run)

    def _unit(self, name: str, file: str, **inputs: str) -> CachedMeasure:
        self.files.append(file)
        return CachedMeasure(self.folder, name, file, self._common | inputs)

    def _cached(self, unit: CachedMeasure, run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        entry = run_on_main(unit.load)
        if entry is None:
            self.missing += 1
            measured = run()
            entry = run_on_main(lambda: unit.save(measured))
        return entry


def run_task(
    model: Any,
    task: str,
    context: RunContext,
    section: EvalSection,
    *,
    chat: bool,
    file: Path,
    label: str = "",
) -> dict[str, Any]:
    """Run one benchmark task; write its rows to `file` and return its entry in scores.json."""
    engine = LmEvalModel(
        *(model, context.tokenizer),
        chat=chat,
        seed=context.seed,
        label=label,
        max_unknown=context.max_unknown,
    )
    return run_benchmark(
        engine,
        task=task,
        source=TaskSource.of(section),
        form=task_format(task, section, chat=chat),
        limit=section.limit,
        file=file,
        code=RunCode.of(section),
    )


def uses_chat_template(
    name: str, path: str, section: EvalSection, *, trust_remote_code: bool
) -> bool:
    """Return whether the protocol evaluates a model with its chat template.

    It does so for every model except a base that is no chat model, unless `eval.base_format`
    overrides it.
    """
    if name != BASE or section.base_format == "chat":
        return True
    if section.base_format == "plain" or not section.tasks:
        return False
    return is_chat_model(path, trust_remote_code=trust_remote_code)


def task_format(task: str, section: EvalSection, *, chat: bool) -> TaskFormat:
    """Return the shots, metric and filter of a task; those of `per_task` take precedence."""
    own = section.per_task.get(task, TaskOptions())
    shots = own.chat_shots if chat else own.base_shots
    common = section.chat_shots if chat else section.base_shots
    return TaskFormat(
        chat=chat,
        shots=common if shots is None else shots,
        pinned=shots is None,
        metric=own.metric,
        filter=own.filter,
        max_gen_toks=own.max_gen_toks,
    )
