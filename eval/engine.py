"""lm-eval's model interface on shared-prefix scoring and row-wise generation.

Same answers as lm-eval's own Hugging Face backend in float32, with less work: a context that
several choices share is computed once, log-probabilities are taken of scored tokens only and in
float32, and a generated row stops at its own stop string.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from eval.generate import MIN_SHARED, FinishReason, Generation, generate, shared_length
from sft.chat import stop_ids
from sft.config import UserError
from sft.packing import Document, Segment
from sft.prefix import Prefix, read_prefix, takes_prefix
from sft.scoring import batch_tokens, rows_of, score, scoring_batch, sequence_sums
from sft.shares import own_share, split

log = logging.getLogger(__name__)

# lm-eval's limits where task and model name none (huggingface.py, max_gen_toks and max_length).
DEFAULT_NEW_TOKENS = 256
DEFAULT_WINDOW = 2048
# Prompts that are cut to fit the model's window change the question; more than this is refused.
CUT_SHARE = 0.1

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")


@dataclass(frozen=True)
class _Question:
    """A context and a continuation as token ids, and the place of the request they came from."""

    place: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Engine(LM):
    """An `lm_eval.api.model.LM` over a causal LM that `sft.scoring.enable_scoring` has seen.

    Args:
        chat: prompts come from the chat template, which writes its own special tokens, and answers
            end with the template's end of turn; otherwise plain text, which gets a BOS where the
            tokenizer adds one.
        seed: decides the draws of tasks that sample.
        label: names the progress bars; without one there are none.

    Attributes:
        finish_reasons: by task and document, what ended a generated answer.
        lengths: by task, document and place, tokens of a continuation that was scored.
        bare: log-probabilities of continuations without a context, see `score_bare`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, chat: bool, seed: int = 0, label: str | None = None
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.chat, self.seed, self.label = chat, seed, label
        self.finish_reasons: dict[tuple[str, int], FinishReason] = {}
        self.lengths: dict[tuple[str, int, int], int] = {}
        self.bare: dict[str, float] = {}
        self._device = next(model.parameters()).device
        self._budget = batch_tokens(self._device)
        self.window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        bos = tokenizer.bos_token_id
        probe = tokenizer("a")["input_ids"]
        self.adds_bos = bos is not None and not chat and probe[0] == bos

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's cache key; nothing is cached here."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text; without a generation prompt its last turn is left open."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would write it) of each continuation."""
        task = str(requests[0].task_name)
        questions = self._split([request.args for request in requests], task=task)
        for request, question in zip(requests, questions, strict=True):
            place = (str(request.task_name), int(request.doc_id or 0), request.idx)
            self.lengths[place] = len(question.continuation)
        return self._score(questions, count=len(requests), unit="choice")

    def score_bare(self, continuations: Iterable[str]) -> None:
        """Fill `bare` with what lm-eval's acc_mutual_info subtracts: given BOS (or eos) alone."""
        texts = list(dict.fromkeys(continuations))
        if not texts:
            return
        questions = self._split([("", text) for text in texts], task="")
        scored = self._score(questions, count=len(texts), unit="choice")
        self.bare |= {text: total for text, (total, _) in zip(texts, scored, strict=True)}

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each text, given BOS (or eos), in windows of the model's length.

        The text's own tokens alone: lm-eval scores the BOS too that a tokenizer adds, behind a
        first one.
        """
        questions = []
        texts = [request.args[0] for request in requests]
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for place, ids in enumerate(encoded):
            windows = get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._prefix,
                max_seq_len=self.window or DEFAULT_WINDOW,
                context_len=1,
            )
            for window in windows:
                context, continuation = make_disjoint_window(window)
                questions.append(_Question(place, tuple(context), tuple(continuation)))
        return [total for total, _ in self._score(questions, count=len(texts), unit="text")]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Each context continued to a stop string, a stop id or the task's limit of tokens.

        Raises:
            UserError: a task asks for a decoding method that is not offered here.
        """
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            # Prompts of one task share their examples, which `generate` computes once a batch.
            key = json.dumps([request.task_name, request.args[1]], sort_keys=True, default=str)
            groups.setdefault(key, []).append(place)
        answers = [""] * len(requests)
        with self._bar(len(own_share(requests)), unit="answer") as bar:
            for places in groups.values():
                own = [requests[place] for place in places]
                generations = self._generate(own, places, progress=bar.update)
                for place, generation in zip(places, generations, strict=True):
                    answers[place] = generation.text
                    where = (str(requests[place].task_name), int(requests[place].doc_id or 0))
                    self.finish_reasons[where] = generation.finish_reason
        return answers

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with exactly one BOS where one belongs, whether or not the text brings it."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        if not self.adds_bos:
            return encoded
        bos = self.tokenizer.bos_token_id
        return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]

    @property
    def _prefix(self) -> int:
        """What stands in for an empty context: BOS, or eos where there is none."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return bos if bos is not None else eos

    def _split(self, pairs: Sequence[tuple[str, str]], *, task: str) -> list[_Question]:
        """Contexts and continuations as lm-eval's `TemplateLM._encode_pair` divides them.

        Spaces at a context's end belong to the continuation, and the continuation is what the
        whole text has beyond as many tokens as the context alone.
        """
        moved = [(c.rstrip(), c[len(c.rstrip()) :] + more) for c, more in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved))
        known = dict(zip(contexts, self.encode(contexts), strict=True))
        wholes = self.encode([context + more for context, more in moved])
        questions = []
        for place, ((context, _), whole) in enumerate(zip(moved, wholes, strict=True)):
            if context:
                head = known[context]
                # A merge over the border can leave nothing behind it; score the last token then.
                if len(whole) <= len(head):
                    head = whole[:-1] or [self._prefix]
                tail = whole[len(head) :] or whole[-1:]
            else:
                # lm-eval conditions on BOS or eos, once.
                whole = whole if whole[:1] == [self._prefix] else [self._prefix, *whole]
                head, tail = whole[:1], whole[1:]
            questions.append(_Question(place, tuple(head), tuple(tail)))
        return self._fit(questions, task=task)

    def _fit(self, questions: list[_Question], *, task: str) -> list[_Question]:
        """Contexts cut from the left where the window is too small; counted, and said."""
        fitted = []
        for question in questions:
            room = (self.window or DEFAULT_WINDOW) + 1 - len(question.continuation)
            context = question.context[-room:] if room > 0 else ()
            if not context:
                raise UserError(
                    f"{task}: a choice of {len(question.continuation)} tokens does not fit the "
                    f"model's window of {self.window}; leave the task out"
                )
            fitted.append(_Question(question.place, context, question.continuation))
        self._report_cuts(
            sum(a.context != b.context for a, b in zip(fitted, questions, strict=True)),
            len(questions),
            task=task,
        )
        return fitted

    def _report_cuts(self, cut: int, total: int, *, task: str) -> None:
        if cut > CUT_SHARE * total:
            raise UserError(
                f"{task}: {cut} of {total} prompts are longer than the model's window of "
                f"{self.window} tokens; lower the number of shots or leave the task out"
            )
        if cut:
            log.warning(
                "%s: %d of %d prompts cut from the left to the window of %d tokens",
                task,
                cut,
                total,
                self.window,
            )

    def _score(
        self, questions: Sequence[_Question], *, count: int, unit: str
    ) -> list[tuple[float, bool]]:
        """Sums over the questions of each place; questions of equal context share its pass, and
        contexts that begin alike (few-shot examples) share that of their beginning."""
        trunks: dict[tuple[int, ...], list[_Question]] = {}
        for question in questions:
            trunks.setdefault(question.context, []).append(question)
        totals, greedy = [0.0] * count, [True] * count
        groups = list(trunks.values())
        scored = split(groups, partial(self._score_groups, unit=unit))
        for group, found in zip(groups, scored, strict=True):
            for question, (total, hit) in zip(group, found, strict=True):
                totals[question.place] += total
                greedy[question.place] &= hit
        return list(zip(totals, greedy, strict=True))

    @torch.inference_mode()
    def _score_groups(
        self, trunks: Sequence[list[_Question]], *, unit: str
    ) -> list[list[tuple[float, bool]]]:
        """What `_score` sums, for each question of each group."""
        scored: dict[_Question, tuple[float, bool]] = {}
        was_training = self.model.training
        self.model.eval()
        shares = rows_of(self.model) != "apart" and takes_prefix(self.model)
        with self._bar(sum(map(len, trunks)), unit=unit) as bar:
            for shared, groups in _families(list(trunks), shares=shares):
                prefix = None
                if shared:
                    prefix = read_prefix(self.model, groups[0][0].context[:shared])
                groups.sort(key=_size, reverse=True)
                for batch in _batches(groups, budget=self._budget, shared=shared):
                    asked = [question for group in batch for question in group]
                    scored |= zip(asked, self._forward(batch, prefix=prefix), strict=True)
                    bar.update(len(asked))
        self.model.train(was_training)
        return [[scored[question] for question in group] for group in trunks]

    def _forward(
        self, groups: Sequence[Sequence[_Question]], *, prefix: Prefix | None
    ) -> Iterable[tuple[float, bool]]:
        """One packed forward: a row each for the groups, in their order."""
        documents = []
        before = prefix.length if prefix else 0
        for group in groups:
            context = group[0].context[before:]
            branches = tuple(Segment(q.continuation, [True] * len(q.continuation)) for q in group)
            documents.append(Document(Segment(context, [False] * len(context)), branches))
        batch = scoring_batch(self.model, documents)
        if self.window is not None:
            # A full window's last token is scored but predicts nothing: any position does for it.
            batch.position_ids.clamp_(max=self.window - 1 - before)
        scores = score(self.model, batch, prefix=prefix)
        totals = sequence_sums(scores.log_probs, batch)
        misses = sequence_sums((~scores.is_argmax).float(), batch)
        both = torch.stack([totals.float(), misses]).tolist()  # the batch's only sync
        return ((total, miss == 0) for total, miss in zip(*both, strict=True))

    def _generate(
        self, requests: Sequence[Instance], places: Sequence[int], *, progress: Callable[[int], Any]
    ) -> list[Generation]:
        """Generations for requests that share their settings."""
        task, settings = requests[0].task_name, requests[0].args[1]
        given = normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS)
        options: dict[str, Any] = {**given}
        until = [stop for stop in options.pop("until") if stop]
        cap = options.pop("max_gen_toks")
        sampled = options["do_sample"]
        extra = [k for k in options if k not in _SAMPLING or (k == "top_k" and sampled)]
        if extra:
            raise UserError(
                f"{task}: generation_kwargs.{extra[0]} is not offered; use greedy decoding or "
                "temperature and top_p"
            )
        prompts = self.encode([request.args[0] for request in requests])
        room = (self.window or DEFAULT_WINDOW) - cap
        if room <= 0:
            raise UserError(
                f"{task}: {cap} new tokens do not fit the model's window of {self.window}; set "
                "max_gen_toks lower in the task"
            )
        self._report_cuts(
            sum(len(prompt) > room for prompt in prompts), len(prompts), task=str(task)
        )

        def answers(asked: list[tuple[list[int], int]]) -> list[Generation]:
            return generate(
                self.model,
                self.tokenizer,
                [prompt[-room:] for prompt, _ in asked],
                max_new_tokens=cap,
                stop_ids=self._stop_ids(),
                stop_strings=until,
                temperature=float(options.get("temperature") or 0.0) if sampled else 0.0,
                top_p=float(options.get("top_p") or 1.0) if sampled else 1.0,
                seeds=[self.seed * 1_000_003 + place for _, place in asked],
                progress=progress,
            )

        return split(list(zip(prompts, places, strict=True)), answers)

    def _stop_ids(self) -> list[int]:
        """What ends an answer: the template's end of turn in a chat, and what the model names."""
        named = self.model.generation_config.eos_token_id
        ids = [self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
        if self.chat:
            ids += stop_ids(self.tokenizer)
        return sorted({i for i in ids if i is not None})

    def _bar(self, total: int, *, unit: str) -> Any:
        silent = self.label is None or not PartialState().is_main_process
        return tqdm(total=total, desc=self.label, unit=unit, disable=silent)


def _size(group: Sequence[_Question]) -> int:
    return len(group[0].context) + sum(len(q.continuation) for q in group)


def _families(
    groups: Sequence[list[_Question]], *, shares: bool
) -> Iterable[tuple[int, list[list[_Question]]]]:
    """Groups whose contexts begin alike, with the number of tokens that they share; 0 for those
    that stand alone, and for all where a model cannot share."""
    starts: dict[tuple[int, ...], list[list[_Question]]] = {}
    for group in groups:
        starts.setdefault(group[0].context[:MIN_SHARED] if shares else (), []).append(group)
    alone = []
    for family in starts.values():
        shared = shared_length([group[0].context for group in family]) if shares else 0
        if shared:
            yield shared, family
        else:
            alone += family
    if alone:
        yield 0, alone


def _batches(
    groups: Sequence[Sequence[_Question]], *, budget: int, shared: int
) -> Iterable[list[Sequence[_Question]]]:
    """Groups, longest first, so that rows times the longest stays within `budget` tokens."""
    batch: list[Sequence[_Question]] = []
    for group in groups:
        if batch and (len(batch) + 1) * (_size(batch[0]) - shared) > budget:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
