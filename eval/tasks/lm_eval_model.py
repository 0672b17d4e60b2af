"""Implement lm-eval's model interface on a backend that scores and continues token ids.

Texts are tokenized exactly as in lm-eval's Hugging Face backend. With the transformers backend the
results equal those of lm-eval in float32.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from accelerate import PartialState
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eval.backends.base import Scored, ScoreRequest
from eval.backends.transformers_backend import backend_of
from eval.generation.generate import Generation, GenerationSettings
from eval.generation.stopping import FinishReason
from eval.generation.thinking import split_generation
from eval.tasks.answer_length import DEFAULT_NEW_TOKENS, cap_too_large
from eval.tasks.chat_history import IN_USER_TURN, render_history
from sft.chat_template.encoding import stop_ids
from sft.chat_template.tokenizer_coverage import Coverage, check_coverage
from sft.distributed.collectives import map_over_ranks, own_share
from sft.errors import UserError

log = logging.getLogger(__name__)

# lm-eval's default for models without a maximum length (huggingface.py, max_length).
DEFAULT_WINDOW = 2048
# A prompt that is cut to fit the context window changes the question; a larger fraction is refused.
CUT_SHARE = 0.1
# Largest fraction of characters that tokenization may lose when bits per byte are measured: lost
# characters count as bytes but have no bits, so more would change the third digit.
ALTERED = 0.001

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


class LmEvalModel(LM):  # type: ignore[misc]
    """An `lm_eval.api.model.LM` on a backend or a causal LM (see `backend_of`).

    Args:
        chat: prompts are rendered by the chat template with its own special tokens, and answers end
            with its end of turn; otherwise plain text, with a BOS if the tokenizer adds one.
        seed: of tasks that sample.
        label: of the progress bars; without one there are none.
        max_unknown: largest fraction of a task's characters that the tokenizer cannot encode.

    Attributes:
        finish_reasons: (task, document) -> why a generated answer ended.
        thinking: (task, document) -> the reasoning before the answer (`eval.generation.thinking`).
        lengths: (task, document, choice) -> number of tokens of a scored continuation.
        unfit: (task, document) of each question with a choice longer than the window; not scored.
        bare: log-probabilities of continuations without a context, see `score_bare`.
        system_merged: whether a system turn was merged into the first user turn.
        cut: number of prompts (multiple choice: choices) that were cut to fit the window.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool,
        seed: int = 0,
        label: str | None = None,
        max_unknown: float = 0.03,
    ) -> None:
        super().__init__()
        self.backend, self.tokenizer = backend_of(model, tokenizer), tokenizer
        self.chat, self.seed, self.label = chat, seed, label
        self.max_unknown, self._coverage = max_unknown, Coverage.of(tokenizer)
        self.finish_reasons: dict[tuple[str, int], FinishReason] = {}
        self.thinking: dict[tuple[str, int], str] = {}
        self.lengths: dict[tuple[str, int, int], int] = {}
        self.unfit: set[tuple[str, int]] = set()
        self.bare: dict[str, float] = {}
        self.system_merged, self.cut = False, 0
        self.window = self.backend.window
        bos = tokenizer.bos_token_id
        probe = tokenizer("a")["input_ids"]
        self._brings_bos = bos is not None and probe[0] == bos
        self.adds_bos = self._brings_bos and not chat

    @property
    def tokenizer_name(self) -> str:
        """Name for lm-eval's cache key; nothing is cached here."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the conversation as text, see `eval.tasks.chat_history.render_history`."""
        text, reason = render_history(
            self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt
        )
        if reason and not self.system_merged:
            log.warning(
                "%s: the chat template %s, so the task's description is at the start of the first "
                "user turn",
                *(self.label or self.tokenizer_name, reason),
            )
        self.system_merged |= reason is not None
        return text

    @property
    def prompt_changes(self) -> dict[str, Any]:
        """Keys of an entry of results.json that record how prompts were changed."""
        changes = {"description": IN_USER_TURN if self.system_merged else ""}
        counts = {"left_out": len(self.unfit), "cut_prompts": self.cut}
        return {key: value for key, value in (changes | counts).items() if value}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return (log-probability, whether greedy decoding gives it) of each continuation."""
        task = str(requests[0].task_name)
        self._check_coverage(task, ["".join(request.args) for request in requests])
        questions = self._split([request.args for request in requests], task=task)
        for request, question in zip(requests, questions, strict=True):
            place = (str(request.task_name), int(request.doc_id or 0), request.idx)
            self.lengths[place] = len(question.continuation)
            if not question.context:
                self.unfit.add(place[:2])
        self._report_unfit(task)
        return self._score(questions, unit="choice")

    def score_bare(self, continuations: Iterable[str]) -> None:
        """Fill `bare` with the log-probabilities after BOS (or eos) only, for acc_mutual_info."""
        texts = list(dict.fromkeys(continuations))
        if not texts:
            return
        questions = self._split([("", text) for text in texts], task="")
        scored = self._score(questions, unit="choice")
        self.bare |= {text: total for text, (total, _) in zip(texts, scored, strict=True)}

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of each text after BOS (or eos), in windows of the model.

        As in lm-eval, a BOS that the tokenizer adds is part of the text and is scored after another
        BOS, in both formats.
        """
        questions, places = [], []
        texts = [request.args[0] for request in requests]
        self._refuse_altered(str(requests[0].task_name), texts)
        for place, ids in enumerate(self._encode(texts, bos=self._brings_bos)):
            windows = get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._prefix,
                max_seq_len=self.window or DEFAULT_WINDOW,
                context_len=1,
            )
            for window in windows:
                context, continuation = make_disjoint_window(window)
                questions.append(ScoreRequest(tuple(context), tuple(continuation)))
                places.append(place)
        totals = [0.0] * len(texts)
        for place, (total, _) in zip(places, self._score(questions, unit="window"), strict=True):
            totals[place] += total
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generate until a stop string, a stop id or the cap of the task.

        Filters and metrics get the answer without the reasoning, which is kept in `thinking`.

        Raises:
            UserError: a task uses a decoding method that is not supported.
        """
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            # Prompts of one task share their examples, which `generate` computes once per batch.
            key = json.dumps([request.task_name, request.args[1]], sort_keys=True, default=str)
            groups.setdefault(key, []).append(place)
        answers = [""] * len(requests)
        with self._bar(len(own_share(requests)), unit="answer") as bar:
            for places in groups.values():
                own = [requests[place] for place in places]
                generations = self._generate(own, places, progress=bar.update)
                for place, generation in zip(places, generations, strict=True):
                    where = (str(requests[place].task_name), int(requests[place].doc_id or 0))
                    self.finish_reasons[where] = generation.finish_reason
                    written = split_generation(self.tokenizer, generation)
                    answers[place] = written.answer
                    if written.thinking is not None:
                        self.thinking[where] = written.thinking
        return answers

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids with exactly one BOS if the format has one."""
        return self._encode(texts, bos=self.adds_bos)

    def _encode(self, texts: Sequence[str], *, bos: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, verbose=False
        )["input_ids"]
        if not bos:
            return encoded
        first = self.tokenizer.bos_token_id
        return [ids if ids[:1] == [first] else [first, *ids] for ids in encoded]

    def _check_coverage(self, task: str, texts: Sequence[str]) -> None:
        """Raise if the tokenizer cannot encode the texts of a task (`check_coverage`)."""
        found = {f"task {task}": self._coverage.count(list(dict.fromkeys(texts)))}
        check_coverage(found, most=self.max_unknown, remedy="leave the task out")

    def _refuse_altered(self, task: str, texts: Sequence[str]) -> None:
        """Raise if tokens do not decode to their texts, which would bias bits per byte."""
        found = self._coverage.altered(texts)
        if found.share > ALTERED:
            raise UserError(
                f"task {task}: {found.share:.1%} of the characters ({found.lost:,} of "
                f"{found.characters:,}) are lost when the tokenizer encodes its texts, so bits per "
                "byte would be too low; leave the task out"
            )

    @property
    def _prefix(self) -> int:
        """Token that replaces an empty context: BOS, or eos if there is none."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return int(bos if bos is not None else eos)

    def _split(self, pairs: Sequence[tuple[str, str]], *, task: str) -> list[ScoreRequest]:
        """Tokenize contexts and continuations as lm-eval's `TemplateLM._encode_pair`.

        Trailing spaces of a context are moved to the continuation. Its tokens are those of the full
        text from position n on, where n is the number of tokens of the context alone.
        """
        moved = [(c.rstrip(), c[len(c.rstrip()) :] + more) for c, more in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved))
        known = dict(zip(contexts, self.encode(contexts), strict=True))
        wholes = self.encode([context + more for context, more in moved])
        questions = []
        for (context, _), whole in zip(moved, wholes, strict=True):
            if context:
                head = known[context]
                # A merge across the border can leave no continuation; score the last token then.
                if len(whole) <= len(head):
                    head = whole[:-1] or [self._prefix]
                tail = whole[len(head) :] or whole[-1:]
            else:
                # lm-eval conditions on BOS or eos, once.
                whole = whole if whole[:1] == [self._prefix] else [self._prefix, *whole]
                head, tail = whole[:1], whole[1:]
            questions.append(ScoreRequest(tuple(head), tuple(tail)))
        return self._fit(questions, task=task)

    def _fit(self, questions: list[ScoreRequest], *, task: str) -> list[ScoreRequest]:
        """Cut contexts on the left to fit the window; a context is empty if the continuation alone
        fills it."""
        fitted = []
        for question in questions:
            space = (self.window or DEFAULT_WINDOW) + 1 - len(question.continuation)
            context = question.context[-space:] if space > 0 else ()
            fitted.append(replace(question, context=context))
        pairs = zip(fitted, questions, strict=True)
        cut = sum(bool(a.context) and a.context != b.context for a, b in pairs)
        self._report_cuts(cut, len(questions), task=task)
        return fitted

    def _report_unfit(self, task: str) -> None:
        """Log how many questions have a choice that fills the window, or raise if many do."""
        count, total = len(self.unfit), len({place[:2] for place in self.lengths})
        rest = f"have a choice that alone fills the context window of {self.window} tokens"
        if count > CUT_SHARE * total:
            raise UserError(f"{task}: {count} of {total} questions {rest}; leave the task out")
        if count:
            log.warning("%s: %d of %d questions %s and are left out", task, count, total, rest)

    def _report_cuts(self, cut: int, total: int, *, task: str) -> None:
        self.cut += cut
        if cut > CUT_SHARE * total:
            raise UserError(
                f"{task}: {cut} of {total} prompts are longer than the context window of "
                f"{self.window} tokens; use fewer shots, if it has any, or leave the task out"
            )
        if cut:
            log.warning(
                "%s: %d of %d prompts cut on the left to the context window of %d tokens",
                *(task, cut, total, self.window),
            )

    def _score(self, questions: Sequence[ScoreRequest], *, unit: str) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation and whether greedy decoding gives it.

        Processes share the work by context, so that continuations of one context stay together.
        """
        groups: dict[tuple[int, ...], list[ScoreRequest]] = {}
        for question in questions:
            if question.context:
                groups.setdefault(question.context, []).append(question)
        scored = map_over_ranks(list(groups.values()), partial(self._score_groups, unit=unit))
        found = {
            question: one
            for group, ones in zip(groups.values(), scored, strict=True)
            for question, one in zip(group, ones, strict=True)
        }
        unscored = Scored(-math.inf, 0)
        found |= {question: unscored for question in questions if not question.context}
        return [(found[q].log_prob, found[q].agreed == len(q.continuation)) for q in questions]

    def _score_groups(
        self, groups: Sequence[Sequence[ScoreRequest]], *, unit: str
    ) -> list[list[Scored]]:
        questions = [question for group in groups for question in group]
        with self._bar(len(questions), unit=unit) as bar:
            scored = iter(self.backend.score(questions, progress=bar.update))
        return [[next(scored) for _ in group] for group in groups]

    def _generate(
        self, requests: Sequence[Instance], places: Sequence[int], *, progress: Callable[[int], Any]
    ) -> list[Generation]:
        """Generate answers to requests that share their settings."""
        task, settings = requests[0].task_name, requests[0].args[1]
        given = normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS)
        options: dict[str, Any] = {**given}
        until = [stop for stop in options.pop("until") if stop]
        cap = options.pop("max_gen_toks")
        sampled = options["do_sample"]
        extra = [k for k in options if k not in _SAMPLING or (k == "top_k" and sampled)]
        if extra:
            raise UserError(
                f"{task}: generation_kwargs.{extra[0]} is not supported; use greedy decoding or "
                "temperature and top_p"
            )
        self._check_coverage(str(task), [request.args[0] for request in requests])
        prompts = self.encode([request.args[0] for request in requests])
        space = (self.window or DEFAULT_WINDOW) - cap
        if space <= 0:
            raise UserError(cap_too_large(str(task), cap, window=self.window))
        self._report_cuts(sum(len(p) > space for p in prompts), len(prompts), task=str(task))

        def answers(numbered: list[tuple[list[int], int]]) -> list[Generation]:
            settings = GenerationSettings(
                max_new_tokens=cap,
                stop_ids=self._stop_ids(),
                stop_strings=until,
                temperature=float(options.get("temperature") or 0.0) if sampled else 0.0,
                top_p=float(options.get("top_p") or 1.0) if sampled else 1.0,
                seeds=[self.seed * 1_000_003 + place for _, place in numbered],
            )
            kept = [prompt[-space:] for prompt, _ in numbered]
            return self.backend.generate(kept, settings, progress=progress)

        return map_over_ranks(list(zip(prompts, places, strict=True)), answers)

    def _stop_ids(self) -> list[int]:
        """Return the ids that end an answer: those of the model, and in a chat the end of turn."""
        ids = [self.tokenizer.eos_token_id, *self.backend.eos_ids]
        if self.chat:
            ids += stop_ids(self.tokenizer)
        return sorted({i for i in ids if i is not None})

    def _bar(self, total: int, *, unit: str) -> Any:
        silent = self.label is None or not PartialState().is_main_process
        return tqdm(total=total, desc=self.label, unit=unit, disable=silent)
