"""IFEval: whether an answer follows instructions that a program can check, by lm-eval's checkers.

A task file of one's own asks for it in its metadata, with the reading that counts; documents hold
`prompt`, `instruction_id_list` and `kwargs`, as in google/IFEval:

    doc_to_text: "{{prompt}}"
    doc_to_target: ""
    metadata: {version: 4.0, instructions: strict}    # or loose

Three things that lm-eval's checkers fetch or import stand here in an offline form:

- Sentences: nltk's Punkt with the commonest English abbreviations in place of its trained data.
- Words in capitals: nltk's Treebank words without a split into sentences before.
- The language of an answer: langdetect, which draws at random, with a fixed seed
  (`eval.graders.language_id`).

And one is mended: where a document asks for a count of "#" or "!" (two do), lm-eval counts a letter
drawn at random; here it is the character that was asked for. So verdicts can be repeated.

Against the recorded verdicts of the reference on DeepSeek-LLM-7B-chat (541 answers, both readings)
tests/eval/graders/test_ifeval.py counts and names the differences.
"""

import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import nltk
from lm_eval.api.task import Task
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from eval.graders.language_id import language_of
from sft.errors import UserError

READINGS = ("strict", "loose")
FIELDS = ("prompt", "instruction_id_list", "kwargs")
ABBREVIATIONS = frozenset(
    {
        *("dr", "mr", "mrs", "ms", "prof", "st", "jr", "sr", "rev", "hon", "gen", "col", "sgt"),
        *("capt", "lt", "vs", "e.g", "i.e", "etc", "al", "inc", "ltd", "co", "corp", "dept", "est"),
        *("no", "vol", "fig", "approx", "u.s", "u.k", "d.c", "a.m", "p.m", "ph.d", "jan", "feb"),
        *("mar", "apr", "aug", "sept", "oct", "nov", "dec"),
    }
)


def checks_instructions(config: Mapping[str, Any]) -> bool:
    """Whether a task's config asks for these checks.

    Raises:
        UserError: it names a reading that there is not.
    """
    reading = (config.get("metadata") or {}).get("instructions")
    if reading is not None and reading not in READINGS:
        raise UserError(
            f"task {config.get('task')}: metadata.instructions is strict or loose, not {reading!r}"
        )
    return reading is not None


def check_documents(task: Task) -> None:
    """Refuse a loaded task whose documents ask for what cannot be checked.

    Each document's checks are made once, on an answer of one word.

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
        names = [_plain(str(name)) for name in document["instruction_id_list"]]
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
            follow(document, "a")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{where}: the kwargs {document['kwargs']} do not fit {', '.join(names)} "
                f"({error}); give those of google/IFEval"
            ) from None


def scored(task: Task, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's samples, each with the verdicts of both readings; the task's own is its score."""
    reading = task.get_config("metadata")["instructions"]
    metric = f"prompt_level_{reading}_acc"  # lm-eval's name
    rows = []
    for sample in samples:
        followed = follow(sample["doc"], sample["resps"][0][0])
        verdict = {metric: float(all(followed[reading])), "metrics": [metric], "outcome": followed}
        rows.append({**sample, **verdict})
    return rows


def follow(document: Mapping[str, Any], answer: str) -> dict[str, list[bool]]:
    """Reading -> for each instruction of the document, whether the answer follows it."""
    names = [_plain(name) for name in document["instruction_id_list"]]
    verdicts = _checkers().judge({"key": 0, **document, "instruction_id_list": names}, [answer])
    return {reading: verdicts[f"inst_level_{reading}_acc"] for reading in READINGS}


def _plain(name: str) -> str:
    """An instruction's name; M-IFEval's copy of the data has the language before it."""
    return name.removeprefix("en:")


@dataclass(frozen=True)
class _Checkers:
    """lm-eval's `process_results`, and the names of the instructions that it knows."""

    judge: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    known: tuple[str, ...]


@functools.cache
def _checkers() -> _Checkers:
    """Those of lm-eval, on private copies of its modules."""
    stand_ins = {"langdetect": _langdetect(), "immutabledict": ModuleType("immutabledict")}
    vars(stand_ins["immutabledict"])["immutabledict"] = dict
    own = [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]
    # `find` succeeds, so that nothing is downloaded at import.
    with patch.dict(sys.modules, stand_ins), patch.object(nltk.data, "find"):
        for name in own:
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
    registry.INSTRUCTION_DICT["keywords:letter_frequency"] = _of_any_character(counted)
    return _Checkers(utils.process_results, tuple(registry.INSTRUCTION_DICT))


def _of_any_character(checker: Any) -> Any:
    class OfAnyCharacter(checker):  # type: ignore[misc]
        def build_description(self, *, letter: str, **others: Any) -> str:
            description = super().build_description(letter=letter, **others)
            self._letter = letter.lower()
            return str(description)

    return OfAnyCharacter


def _langdetect() -> ModuleType:
    module = ModuleType("langdetect")

    class LangDetectException(Exception):
        """There is nothing to tell by, which the checkers count as followed."""

    def detect(text: str) -> str:
        language = language_of(text)
        if language is None:
            raise LangDetectException("nothing tells")
        return language

    vars(module).update(LangDetectException=LangDetectException, detect=detect)
    return module
