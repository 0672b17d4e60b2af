"""Benchmarks on a backend without a model, which finds errors in the tasks before training."""

from collections.abc import Callable, Iterable, Sequence

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from eval.backends.base import Backend, Scored, ScoreRequest
from eval.generation.generate import Generation, GenerationSettings
from eval.measures.cost import Tokens
from eval.measures.measure import task_format
from eval.tasks.benchmark import check_benchmark
from eval.tasks.lm_eval_model import LmEvalModel
from eval.tasks.task_files import TaskSource
from sft.config.sections import Preset


class SilentBackend(Backend):
    """A backend that computes nothing and counts tokens.

    Every choice is equally likely and every answer is empty.
    """

    eos_ids = ()

    def __init__(self, window: int | None) -> None:
        self.window, self.tokens = window, Tokens()

    def score(
        self, questions: Sequence[ScoreRequest], *, progress: Callable[[int], object] | None = None
    ) -> list[Scored]:
        contexts = {question.context for question in questions}
        choices = sum(len(question.continuation) for question in questions)
        self.tokens += Tokens(sum(map(len, contexts)) + choices)
        return [Scored(0.0, 0) for _ in questions]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[Generation]:
        self.tokens += Tokens(sum(map(len, prompts)), sum(settings.caps(len(prompts))))
        return [Generation(list(prompt), [], "", "stop_id") for prompt in prompts]


def check_questions(
    preset: Preset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    window: int | None,
    formats: Iterable[bool] = (False, True),
    needs_data: bool = True,
) -> dict[bool, Tokens]:
    """Run every task on a `SilentBackend`.

    Args:
        formats: False for plain text, True for the chat template.
        needs_data: refuse a task whose data cannot be loaded; otherwise skip it.

    Returns:
        The most tokens that a model would read and write, by format.

    Raises:
        UserError: a question would stop the run, see `eval.tasks.benchmark.check_benchmark`.
    """
    section, max_unknown = preset.eval, preset.model.max_unknown
    backends = {chat: SilentBackend(window) for chat in formats}
    for task in section.tasks:
        for chat, backend in backends.items():
            check_benchmark(
                LmEvalModel(
                    *(backend, tokenizer),
                    chat=chat,
                    seed=preset.run.seed,
                    max_unknown=max_unknown,
                ),
                task=task,
                source=TaskSource.of(section),
                form=task_format(task, section, chat=chat),
                limit=section.limit,
                needs_data=needs_data,
            )
    processes = PartialState().num_processes  # each has counted its share of the questions
    return {
        chat: Tokens(backend.tokens.read * processes, backend.tokens.written * processes)
        for chat, backend in backends.items()
    }
