"""The interface of a model that scores and continues token ids, on any engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval.generation.generate import Generation, GenerationSettings
from sft.errors import UserError

# Key of scores.json and of a measure's inputs; without it, transformers was the backend.
BACKEND, TRANSFORMERS = "backend", "transformers"


@dataclass(frozen=True)
class ScoreRequest:
    """A context of at least one token, and a continuation to score."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """The score of a continuation.

    Attributes:
        log_prob: of all its tokens given the context, in nats.
        agreed: how many of its first tokens equal greedy decoding.
    """

    log_prob: float
    agreed: int


class Backend(ABC):
    """A model that scores and continues token ids.

    Attributes:
        window: maximum tokens of context and answer together, or None.
        eos_ids: stop ids of the model's generation config.
    """

    window: int | None
    eos_ids: tuple[int, ...]

    @abstractmethod
    def score(
        self, questions: Sequence[ScoreRequest], *, progress: Callable[[int], object] | None = None
    ) -> list[Scored]:
        """Return scores in the order of the questions; `progress` gets the count of new ones."""

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
    """Check that all measures are of one backend; two backends round differently.

    Args:
        measured_by: backend of each model, with or without a version; None if unknown.
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
