"""Checks whether an answer follows IFEval's instructions, with lm-eval's checkers.

A local task file enables this in its metadata, with the reading that is scored; documents hold
`prompt`, `instruction_id_list` and `kwargs`, as in google/IFEval:

    doc_to_text: "{{prompt}}"
    doc_to_target: ""
    metadata: {version: 4.0, instructions: strict}    # or loose

lm-eval's checkers download data and draw at random. Replaced here, so that they work offline and
verdicts are reproducible: nltk's trained sentence data by Punkt with common abbreviations, the
sentence split before Treebank words by none, langdetect's random draws by a fixed seed, and the
random letter that is counted if a document asks for "#" or "!" (two do) by that character.
"""

import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import nltk
from lm_eval.api.task import Task
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from sft.errors import UserError

READINGS = ("strict", "loose")
SEED = 0
CHINESE = ("zh-cn", "zh-tw")  # IFEval asks for "zh", whichever script
FIELDS = ("prompt", "instruction_id_list", "kwargs")
# Do not end a sentence; the commonest of those in nltk's trained data.
ABBREVIATIONS = frozenset(
    {
        *("dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "rev", "hon", "gen", "col", "sgt"),
        *("capt", "lt", "vs", "e.g", "i.e", "etc", "al", "inc", "ltd", "co", "corp", "dept", "est"),
        *("no", "vol", "fig", "approx", "u.s", "u.k", "d.c", "a.m", "p.m", "ph.d", "jan", "feb"),
        *("mar", "apr", "aug", "sept", "oct", "nov", "dec"),
    }
)


def checks_instructions(config: Mapping[str, Any]) -> bool:
    """Return whether a task's config enables these checks.

    Raises:
        UserError: the reading is unknown.
    """
    reading = (config.get("metadata") or {}).get("instructions")
    if reading is not None and reading not in READINGS:
        raise UserError(
            f"task {config.get('task')}: metadata.instructions is strict or loose, not {reading!r}"
        )
    return reading is not None


def check_documents(task: Task) -> None:
    """Check that the instructions of all documents can be checked, on an answer of one letter.

    Raises:
        UserError: a field is missing, an instruction is unknown, or its `kwargs` do not fit it.
    """
    missing = [field for field in FIELDS if field not in task.features]
    if missing:
        raise UserError(
            f"task {task.task_name}: its documents lack {', '.join(missing)}, which "
            "metadata.instructions needs; give rows as those of google/IFEval"
        )
    known = _checkers().known
    for number, document in enumerate(task.eval_docs):
        where = f"task {task.task_name}: document {number} ({str(document['prompt'])[:40]!r}...)"
        for field in FIELDS[1:]:
            if not isinstance(document[field], list):
                raise UserError(f"{where}: {field} is {document[field]!r}; give a list")
        names = [_without_language(str(name)) for name in document["instruction_id_list"]]
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown, known, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise UserError(
                f"{where} has the instruction {unknown!r}, which IFEval's checks do not "
                f"know{hint}; correct it or leave the document out"
            )
        if len(names) != len(document["kwargs"]):
            raise UserError(
                f"{where} has {len(names)} instructions and {len(document['kwargs'])} kwargs; give "
                "one of each"
            )
        try:
            check_answer(document, "a")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{where}: the kwargs {document['kwargs']} do not fit {', '.join(names)} "
                f"({error}); give those of google/IFEval"
            ) from None


def score_samples(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return lm-eval's samples with the verdicts of both readings; the task's is the score."""
    reading = task.get_config("metadata")["instructions"]
    metric = f"prompt_level_{reading}_acc"  # lm-eval's name
    rows = []
    for sample in samples:
        followed = check_answer(sample["doc"], sample["resps"][0][0])
        grade = {metric: float(all(followed[reading])), "metrics": [metric], "outcome": followed}
        rows.append({**sample, **grade})
    return rows


def check_answer(document: Mapping[str, Any], answer: str) -> dict[str, list[bool]]:
    """Return by reading, for each instruction of the document, whether the answer follows it."""
    names = [_without_language(name) for name in document["instruction_id_list"]]
    verdicts = _checkers().process_results(
        {"key": 0, **document, "instruction_id_list": names}, [answer]
    )
    return {reading: verdicts[f"inst_level_{reading}_acc"] for reading in READINGS}


def _without_language(name: str) -> str:
    """Return an instruction's name without the language that M-IFEval puts before it."""
    return name.removeprefix("en:")


@dataclass(frozen=True)
class _Checkers:
    """lm-eval's `process_results`, and the names of its instructions."""

    process_results: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    known: tuple[str, ...]


@functools.cache
def _checkers() -> _Checkers:
    """Return lm-eval's checkers, on private copies of its modules."""
    stand_ins: dict[str, Any] = {
        "langdetect": SimpleNamespace(
            detect=detect_language, LangDetectException=_langdetect().LangDetectException
        ),
        "immutabledict": SimpleNamespace(immutabledict=dict),  # which we do not install
    }
    loaded = [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]
    # The import of instructions_util downloads data unless `nltk.data.find` succeeds.
    with patch.dict(sys.modules, stand_ins), patch.object(nltk.data, "find"):
        for name in loaded:
            del sys.modules[name]
        util = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
        registry = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
        utils = importlib.import_module("lm_eval.tasks.ifeval.utils")
    words = nltk.tokenize.NLTKWordTokenizer()
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    sentences = PunktSentenceTokenizer(parameters)
    stand_in = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=words.tokenize)
    vars(util).update(nltk=stand_in, _get_sentence_tokenizer=lambda: sentences)
    counted = registry.INSTRUCTION_DICT["keywords:letter_frequency"]
    registry.INSTRUCTION_DICT["keywords:letter_frequency"] = _counting_any_character(counted)
    return _Checkers(utils.process_results, tuple(registry.INSTRUCTION_DICT))


def _counting_any_character(checker: Any) -> Any:
    """Return lm-eval's LetterFrequencyChecker without its random letter for "#" and "!"."""

    class AnyCharacter(checker):  # type: ignore[misc]
        def build_description(self, *, letter: str, **others: Any) -> str:
            description = super().build_description(letter=letter, **others)
            self._letter = letter.lower()
            return str(description)

    return AnyCharacter


def detect_language(text: str) -> str:
    """Return the two-letter code of a text's language.

    Raises:
        langdetect.LangDetectException: the text has no features, such as one without letters.
    """
    # langdetect skips words in capitals.
    found = str(_langdetect().detect(text.lower() if text.isupper() else text))
    return "zh" if found in CHINESE else found


@functools.cache
def _langdetect() -> Any:
    """Return langdetect with a fixed seed: unseeded, it may give one text two languages."""
    import langdetect  # reads its statistics of 55 languages

    langdetect.DetectorFactory.seed = SEED
    return langdetect
