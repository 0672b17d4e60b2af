"""Open-ended questions and a model's answers to them: MT-Bench, AlignBench, or any file.

Neither benchmark is shipped; both are read from the files that their authors published.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from accelerate import PartialState
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eval.backends.loading import backend_inputs, loaded
from eval.backends.transformers_backend import backend_of
from eval.generation.generate import GenerationSettings
from eval.generation.thinking import split_generation
from eval.schema import OpenAnswer, OpenTurn
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.config.sections import EvalSection, Source
from sft.context import RunContext
from sft.data.readers import read_records
from sft.data.records import RowError
from sft.distributed.collectives import map_over_ranks, own_share, run_on_main
from sft.errors import UserError
from sft.run.fingerprint import fingerprint
from sft.run.stage_cache import Stage
from sft.system.atomic_files import read_jsonl, write_jsonl
from sft.tokenization.input_hashes import tokenizer_fingerprint

log = logging.getLogger(__name__)

# MT-Bench: FastChat's temperature_config (llm_judge/common.py). AlignBench: the paper's 0.7 for
# role-play, writing and open questions, 0.1 for the rest (arXiv 2401.02954, section 5.2).
TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
    **dict.fromkeys(("角色扮演", "文本写作", "综合问答"), 0.7),
    **dict.fromkeys(("专业能力", "数学计算", "逻辑推理", "基本任务", "中文理解"), 0.1),
}

# Keys that a row may hold; the first one with a value is read.
FIELDS = {
    "question": ("turns", "question", "prompt", "instruction"),
    "reference": (
        *("reference", "references", "reference_answer", "reference_answers", "answer", "answers"),
        *("ground_truth", "gold", "golden", "target"),
    ),
    "category": ("category", "type", "task_type", "topic", "subject", "domain", "kind", "task"),
    "id": ("question_id", "id", "prompt_id", "uid"),
}


@dataclass(frozen=True)
class OpenQuestion:
    """A question of one or more turns, with a reference for each turn ("" if there is none)."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def temperature(self) -> float:
        return TEMPERATURES.get(self.category, 0.0)


def read_questions(path: str, *, references: str | None = None) -> list[OpenQuestion]:
    """Read questions from a file of MT-Bench, of AlignBench, or of another with FIELDS.

    Args:
        references: MT-Bench's file of reference answers; they replace those of the questions.

    Raises:
        UserError: a row has no question, or a reference answer that is not text; an id occurs
            twice; no question has a reference of `references`; or there are no rows.
    """
    given = {} if references is None else _references(references)
    questions: dict[str, OpenQuestion] = {}
    ignored: Counter[str] = Counter()
    for place, fields in _rows(path):
        names = {
            kind: next((n for n in known if fields.get(n) not in (None, "", [])), None)
            for kind, known in FIELDS.items()
        }
        values = {kind: fields[name] for kind, name in names.items() if name is not None}
        turns = _texts(values.get("question"))
        if not turns or not all(text.strip() for text in turns):
            raise UserError(
                f"{place}: no question; a row holds `turns`, {_or(FIELDS['question'][1:])}, a text "
                "or a list of texts, one for each turn"
            )
        identity = str(values.get("id", len(questions)))
        if identity in questions:
            raise UserError(f"{place}: question id {identity} occurs twice; make ids unique")
        own = _own_references(values.get("reference", []), turns=len(turns), place=place)
        padded = [text or "" for text in given.get(identity) or own] + [""] * len(turns)
        questions[identity] = OpenQuestion(
            identity,
            str(values.get("category") or "all"),
            tuple(turns),
            tuple(padded[: len(turns)]),
        )
        ignored.update(n for n, value in fields.items() if value and n not in names.values())
    if not questions:
        raise UserError(f"{path}: no questions; a file holds at least one")
    if given and not given.keys() & questions.keys():
        raise UserError(
            f"{references}: its ids ({next(iter(given))}, ...) are those of no question of {path} "
            f"({next(iter(questions))}, ...); give the references of these questions"
        )
    found = list(questions.values())
    _log_read(path, found, ignored)
    return found


def _log_read(path: str, questions: Sequence[OpenQuestion], ignored: Mapping[str, int]) -> None:
    known = sum(any(question.references) for question in questions)
    categories = {question.category for question in questions}
    log.info(
        "%s: %d questions, %d with a reference answer, %s",
        *(path, len(questions), known),
        "no categories" if categories == {"all"} else f"{len(categories)} categories",
    )
    if ignored:
        named = ", ".join(f"{name} (in {count} rows)" for name, count in ignored.items())
        log.info("%s: not read: %s", path, named)


def _own_references(value: Any, *, turns: int, place: str) -> list[str]:
    """Return a reference for each turn; several for a single turn are alternatives."""
    own = _texts(value)
    if own is None or (turns > 1 and len(own) > turns):
        raise UserError(
            f"{place}: the reference answer is not a text for each of {turns} turns; give a text, "
            "or a list of texts, under " + _or(FIELDS["reference"])
        )
    return own if turns > 1 else ["\nor: ".join(own)]


def _or(names: Sequence[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _texts(value: Any) -> list[str] | None:
    """Return the text of each turn, None if one has no text; turns may be messages (Arena-Hard)."""
    texts = []
    for item in value if isinstance(value, list) else [value]:
        text = item.get("content", item) if isinstance(item, dict) else item
        if isinstance(text, int | float) and not isinstance(text, bool):
            text = str(text)
        if text is not None and not isinstance(text, str):
            return None
        texts.append(text or "")
    return texts


def stored_answers(
    name: str,
    path: str,
    context: RunContext,
    questions: Sequence[OpenQuestion],
    *,
    cap: int,
    engine: EvalSection,
) -> list[OpenAnswer]:
    """Return a model's answers from answers/<name>/answers.jsonl, answering if they are not there.

    They are valid for these weights, questions, cap and backend. All processes call it: they
    divide the questions among them, and the first one writes.
    """
    stage = Stage(
        context.folder / "answers" / name,
        {
            "weights": context.weights_key(path),
            "tokenizer": tokenizer_fingerprint(context.tokenizer),
            "questions": fingerprint([[q.id, q.category, *q.turns] for q in questions]),
            "options": fingerprint([cap, context.seed, TEMPERATURES]),
            **backend_inputs(engine, context),
        },
    )
    if run_on_main(stage.finished) is None:
        run_on_main(stage.begin)
        with (
            loaded(path, context, engine) as backend,
            tqdm(
                total=sum(len(q.turns) for q in own_share(questions)),
                desc=f"{name}: answers",
                unit="answer",
                disable=not PartialState().is_main_process,
            ) as bar,
        ):
            answers = partial(
                answer, backend, context.tokenizer, cap=cap, seed=context.seed, progress=bar.update
            )
            rows = map_over_ranks(questions, answers)

        def keep() -> None:
            write_jsonl(stage.folder / "answers.jsonl", rows)
            stage.finish(outputs=["answers.jsonl"], facts={})

        run_on_main(keep)
    return cast(list[OpenAnswer], read_jsonl(stage.folder / "answers.jsonl"))


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[OpenQuestion],
    *,
    cap: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> list[OpenAnswer]:
    """Answer every turn of every question; the prompt of a turn holds the earlier answers.

    The temperature is that of the category in TEMPERATURES; other categories are greedy.
    """
    given: list[list[OpenTurn]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        for temperature in sorted({question.temperature for question in questions}):
            chosen = [
                i
                for i, question in enumerate(questions)
                if question.temperature == temperature and turn < len(question.turns)
            ]
            backend = backend_of(model, tokenizer)
            settings = GenerationSettings(
                max_new_tokens=cap,
                stop_ids=stop_ids(tokenizer, also=backend.eos_ids),
                temperature=temperature,
                seeds=[int(fingerprint([seed, questions[i].id, turn])[:12], 16) for i in chosen],
            )
            prompts = [encode_prompt(tokenizer, chat(questions[i], given[i])) for i in chosen]
            generations = backend.generate(prompts, settings, progress=progress)
            for i, written in zip(chosen, generations, strict=True):
                split = split_generation(tokenizer, written)
                stored: OpenTurn = {
                    "text": split.answer,
                    "token_ids": written.token_ids,
                    "finish_reason": written.finish_reason,
                }
                if split.thinking is not None:
                    stored["thinking"] = split.thinking
                given[i].append(stored)
    return [
        {"id": question.id, "category": question.category, "turns": turns}
        for question, turns in zip(questions, given, strict=True)
    ]


def chat(question: OpenQuestion, given: Sequence[OpenTurn]) -> list[dict[str, str]]:
    """Return the conversation up to the turn after the answers `given`."""
    messages: list[dict[str, str]] = []
    for text, written in zip(question.turns, given, strict=False):
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": written["text"]},
        ]
    return [*messages, {"role": "user", "content": question.turns[len(given)]}]


def _references(path: str) -> dict[str, list[str]]:
    """Read reference answers by question id from FastChat's reference_answer/*.jsonl."""
    found = {}
    for place, fields in _rows(path):
        try:
            found[str(fields["question_id"])] = list(fields["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{place}: no reference answer; a row holds question_id and choices[0].turns"
            ) from None
    return found


def _rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for record in read_records(Source(path)):
        if isinstance(record, RowError):
            raise record
        rows.append((record.origin, record.fields))
    return rows
