"""The interface of a model that scores and continues token ids, on any engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval.generation.generate import Generation, GenerationSettings
from sft.errors import UserError

# Under which name scores.json and the inputs of a measure say what measured; without it, this did.
BACKEND, TRANSFORMERS = "backend", "transformers"


@dataclass(frozen=True)
class ScoreRequest:
    """A context, one token at least, and a continuation whose probability is asked for."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """What a model makes of a continuation.

    Attributes:
        log_prob: of the whole continuation given its context, in nats.
        agreed: how many of its first tokens greedy decoding would have written.
    """

    log_prob: float
    agreed: int


class Backend(ABC):
    """A model that scores and continues token ids.

    Attributes:
        window: tokens that a context and an answer may have together, where there is a limit.
        eos_ids: what the model's own generation settings end an answer with.
    """

    window: int | None
    eos_ids: tuple[int, ...]

    @abstractmethod
    def score(
        self, questions: Sequence[ScoreRequest], *, progress: Callable[[int], object] | None = None
    ) -> list[Scored]:
        """Scores in the order of the questions; `progress` hears how many were added."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings,
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[Generation]:
        """Continue each prompt as `eval.generation.generate.generate` does, with its errors."""


def check_one_backend(measured_by: Mapping[str, str | None]) -> None:
    """Refuse to compare measures of two backends: each rounds its own way, in all its answers.

    Args:
        measured_by: by what is compared its backend, with or without a version behind the name;
            None where that is not known, which is not asked.

    Raises:
        UserError: two of them differ.
    """
    found: dict[str, str] = {}
    for name, backend in measured_by.items():
        if backend is not None:
            found.setdefault(backend.split()[0], f"{name} by {backend}")
    if len(found) > 1:
        raise UserError(
            f"measured by different backends, which round differently: {', '.join(found.values())};"
            " measure all that is compared by one (eval.backend, or --vllm PYTHON)"
        )
