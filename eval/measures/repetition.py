"""Repetition rate: the share of greedy answers that do not end and repeat a sequence.

DeepSeek LLM (arXiv 2401.02954, section 4) counts responses that "fail to terminate and instead
endlessly repeat a sequence of text" at temperature 0; its detector is unpublished. Ours compares
token ids: a loop of two complete copies or more at the cap continues unbroken to twice the cap,
which makes at least four copies. Thinking that loops counts too; text and seq-rep-4 are of the
answer after it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eval.backends.base import Backend, ScoreRequest
from eval.backends.transformers_backend import backend_of
from eval.generation.generate import Generation, GenerationSettings
from eval.generation.stopping import FinishReason
from eval.generation.thinking import split_generation
from eval.metrics.loop_detection import BEGUN_COPIES, MIN_TOKENS, Loop, find_loop, seq_rep_n
from eval.metrics.stats import wilson
from eval.schema import Repetition
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.errors import UserError
from sft.run.fingerprint import fingerprint

# From this cap on, every loop that has begun by the cap and lasts to its double has MIN_TOKENS.
SMALLEST_CAP = MIN_TOKENS


def greedy_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    *,
    cap: int,
    begun: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[int], object] | None = None,
    tick: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    """Answer every prompt greedily; return the rows of generations.jsonl in the same order.

    Args:
        model: a backend or a causal LM (see `backend_of`).
        prompts: {"id", "messages", "category", "language"} each.
        cap: new tokens of an answer; one that loops there is continued while it loops, up to
            2 * cap.
        begun: stored rows of the same prompts at a smaller cap, which are continued.
        progress: called with the number of prompts finished since the last call.
        tick: called before each token; its exceptions end the measure.

    Raises:
        UserError: see `check_prompts`.
    """
    backend = backend_of(model, tokenizer)
    contexts = check_prompts(tokenizer, prompts, window=backend.window, cap=cap)
    decoder = _Decoder(backend, stop_ids(tokenizer, also=backend.eos_ids), tick)
    rows = [_Row(context) for context in contexts]
    for row, stored in zip(rows, begun or [], strict=begun is not None):
        row.tokens, row.reason = list(stored["token_ids"]), stored["finish_reason"]
    going = [row for row in rows if row.reason != "stop_id" and len(row.tokens) < cap]
    decoder.extend(going, to=[cap] * len(going), stop_at_loop=True, progress=progress)
    # Speculative: a loop is drafted and verified in one forward pass instead of token by token.
    early = [(row, find_loop(row.tokens)) for row in going if row.reason == "loop"]
    decoder.extend_loops([(row, loop) for row, loop in early if loop], to=2 * cap)
    short = [row for row, _ in early if len(row.tokens) < cap]
    decoder.extend(short, to=[cap] * len(short))
    running = _running(rows, cap=cap)
    while running:
        decoder.extend_loops(running, to=2 * cap)
        left = [row for row, _ in running if len(row.tokens) < 2 * cap]
        # The token at which a row left its loop may continue a longer loop.
        decoder.extend(left, to=[len(row.tokens) + 1 for row in left])
        running = _running(left, cap=cap)
    return [
        _stored(prompt, row, tokenizer, cap=cap) for prompt, row in zip(prompts, rows, strict=True)
    ]


def at_cap(
    stored: Mapping[str, Any], prompt: Mapping[str, Any], tokenizer: Any, *, cap: int
) -> dict[str, Any]:
    """Return the row that `greedy_answers` would have stored for the answer at a smaller cap.

    It ends at the cap; if it loops there, where it leaves the loop or at twice the cap.
    """
    assert cap <= stored["cap"]
    tokens, reason = list(stored["token_ids"]), stored["finish_reason"]
    end = min(cap, len(tokens))
    while end < min(2 * cap, len(tokens)) and find_loop(tokens[:end], cap=cap) is not None:
        end += 1
    row = _Row(list(stored["prompt_ids"]), tokens[:end], reason if end == len(tokens) else "cap")
    return _stored(prompt, row, tokenizer, cap=cap)


def sampled_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    *,
    cap: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Answer every prompt at `temperature`; return rows with that and their seed.

    Raises:
        UserError: see `check_prompts`.
    """
    backend = backend_of(model, tokenizer)
    contexts = check_prompts(tokenizer, prompts, window=backend.window, cap=cap)
    # Seeds by id, so that an answer does not depend on the other prompts or their order.
    seeds = [int(fingerprint([seed, prompt["id"]])[:12], 16) for prompt in prompts]
    settings = GenerationSettings(
        max_new_tokens=2 * cap,
        stop_ids=stop_ids(tokenizer, also=backend.eos_ids),
        temperature=temperature,
        seeds=seeds,
        # A sampled loop can end at any token, so it is decoded, not drafted.
        stop_when=lambda ids: len(ids) >= cap and find_loop(ids, cap=cap) is None,
    )
    generations = backend.generate(contexts, settings, progress=progress)
    stored = []
    for prompt, generation, own in zip(prompts, generations, seeds, strict=True):
        ended = generation.finish_reason == "stop_id"
        row = _Row(generation.prompt_ids, generation.token_ids, "stop_id" if ended else "cap")
        facts = {"temperature": temperature, "seed": own}
        stored.append(_stored(prompt, row, tokenizer, cap=cap) | facts)
    return stored


def repeats(row: Mapping[str, Any], *, copies: int = BEGUN_COPIES) -> bool:
    """Return whether a stored row is in one loop from before the cap to twice the cap."""
    tokens, cap = row["token_ids"], row["cap"]
    if row["finish_reason"] != "cap" or len(tokens) < 2 * cap:
        return False
    loop = find_loop(tokens[: 2 * cap], cap=cap, copies=copies)
    return loop is not None and 2 * cap - loop.start >= MIN_TOKENS


def unfinished(row: Mapping[str, Any]) -> bool:
    """Return whether a stored row had not ended at its cap."""
    return bool(len(row["token_ids"]) > row["cap"] or row["finish_reason"] == "cap")


def summarize(rows: Sequence[Mapping[str, Any]]) -> Repetition:
    """Compute the `repetition` entry of one model in results.json from its stored rows.

    `rate` is the share of rows that repeat, `truncated` that of the other rows that had not ended
    at the cap. `distinct_loops` counts different loops: many answers may end in the same passage.
    `seq_rep_4` is the mean over answers up to the cap, without stop id and finished thinking.
    """
    n, cap = len(rows), rows[0]["cap"]
    endless = sum(repeats(row) for row in rows)
    running = sum(unfinished(row) for row in rows)
    return {
        "rate": endless / n,
        "ci": list(wilson(endless, n)),
        "n": n,
        "distinct_loops": distinct_loops([row for row in rows if repeats(row)]),
        "truncated": (running - endless) / n,
        "cap": cap,
        "seq_rep_4": sum(seq_rep_n(_answer(row, cap=cap)) for row in rows) / n,
    }


def distinct_loops(rows: Sequence[Mapping[str, Any]]) -> int:
    """Count the different sequences that rows repeat; rotations of a sequence are equal."""
    loops = set()
    for row in rows:
        tokens = row["token_ids"][: 2 * row["cap"]]
        loop = find_loop(tokens, cap=row["cap"])
        assert loop is not None, "the row repeats"
        unit = tuple(tokens[-loop.period :])
        loops.add(min(unit[i:] + unit[:i] for i in range(len(unit))))
    return len(loops)


def _answer(row: Mapping[str, Any], *, cap: int) -> list[int]:
    tokens = row["token_ids"]
    tokens = tokens[:-1] if row["finish_reason"] == "stop_id" else tokens
    return list(tokens[row.get("thinking_tokens", 0) : cap])


@dataclass
class _Row:
    """An answer in progress; `reason` "loop": decoding stopped within a loop."""

    context: list[int]
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason = "loop"


def _running(rows: Sequence[_Row], *, cap: int) -> list[tuple[_Row, Loop]]:
    """Return the unfinished rows below twice the cap that still loop, each with its loop."""
    going = [row for row in rows if row.reason == "cap" and cap <= len(row.tokens) < 2 * cap]
    return [(row, loop) for row in going if (loop := find_loop(row.tokens, cap=cap)) is not None]


@dataclass(frozen=True)
class _Decoder:
    backend: Backend
    stops: list[int]
    tick: Callable[[], object] | None = None

    def extend(
        self,
        rows: Sequence[_Row],
        *,
        to: Sequence[int],
        stop_at_loop: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Decode greedily until each row has `to` tokens, ends, or, with `stop_at_loop`, loops."""

        def stops(ids: list[int]) -> bool:
            if self.tick is not None:
                self.tick()
            return stop_at_loop and find_loop(ids) is not None

        settings = GenerationSettings(
            max_new_tokens=[end - len(row.tokens) for row, end in zip(rows, to, strict=True)],
            stop_ids=self.stops,
            stop_when=stops if stop_at_loop or self.tick is not None else None,
        )
        generations = self.backend.generate(
            [row.context + row.tokens for row in rows], settings, progress=progress
        )
        for row, generation in zip(rows, generations, strict=True):
            row.tokens += generation.token_ids
            row.reason = generation.finish_reason

    def extend_loops(self, looping: Sequence[tuple[_Row, Loop]], *, to: int) -> None:
        """Extend rows by the part of their loops that greedy decoding would generate.

        A draft continues the loop to `to` tokens; the row takes those that are the model's argmax.
        """
        drafts = [_continued(row.tokens, loop, to) for row, loop in looping]
        questions = [
            ScoreRequest((*row.context, *row.tokens), tuple(draft))
            for (row, _), draft in zip(looping, drafts, strict=True)
        ]
        scored = self.backend.score(questions)
        for (row, _), draft, found in zip(looping, drafts, scored, strict=True):
            row.tokens += draft[: found.agreed]
            row.reason = "cap"


def _continued(tokens: Sequence[int], loop: Loop, length: int) -> list[int]:
    """Return the tokens that continue the loop at the end of `tokens` to `length` tokens."""
    unit = list(tokens[-loop.period :])
    missing = max(0, length - len(tokens))
    return (unit * (missing // loop.period + 1))[:missing]


def _stored(prompt: Mapping[str, Any], row: _Row, tokenizer: Any, *, cap: int) -> dict[str, Any]:
    loop = find_loop(row.tokens, cap=cap) or find_loop(row.tokens)
    ids = row.tokens[:-1] if row.reason == "stop_id" else row.tokens
    text = tokenizer.decode(ids, skip_special_tokens=True)
    reply = split_generation(tokenizer, Generation(row.context, row.tokens, text, row.reason))
    stored = {
        "id": prompt["id"],
        "messages": list(prompt["messages"]),
        "category": prompt["category"],
        "language": prompt["language"],
        "prompt_ids": row.context,
        "token_ids": row.tokens,
        "text": reply.answer,
        **reply.facts,
        **({"thinking_tokens": reply.before} if reply.thinking is not None and reply.ended else {}),
        "finish_reason": row.reason,
        "loop": None if loop is None else asdict(loop),
        "cap": cap,
    }
    return stored | {"repeats": repeats(stored)}


def check_cap(cap: int) -> None:
    """Check that a loop which lasts to twice the cap is long enough to count."""
    if cap < SMALLEST_CAP:
        raise UserError(
            f"eval.repetition.cap={cap}: a loop counts from {MIN_TOKENS} tokens on, so a shorter "
            f"cap would miss some; give at least {SMALLEST_CAP}"
        )


def check_prompts(
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    *,
    window: int | None,
    cap: int,
    times: int = 2,
) -> list[list[int]]:
    """Return the prompts as token ids.

    Raises:
        UserError: no prompts, a repeated id, or a prompt that leaves less than `times` * cap tokens
            of the context length `window`.
    """
    if not prompts:
        raise UserError("the repetition rate needs prompts; give eval.repetition.prompts a file")
    seen: set[str] = set()
    for prompt in prompts:
        if prompt["id"] in seen:
            raise UserError(
                f"repetition prompt id {prompt['id']} occurs twice; ids pair models, so make each "
                "one unique"
            )
        seen.add(prompt["id"])
    contexts = [encode_prompt(tokenizer, prompt["messages"]) for prompt in prompts]
    longest = max(range(len(contexts)), key=lambda i: len(contexts[i]))
    largest = None if window is None else (window - len(contexts[longest])) // times
    if largest is not None and largest < cap:
        lowers = largest >= SMALLEST_CAP
        remedy = f"lower the cap to {largest}" if lowers else "shorten or drop the prompt"
        raise UserError(
            f"eval.repetition.cap={cap}: prompt {prompts[longest]['id']} has "
            f"{len(contexts[longest])} tokens and the model's window is {window}, too small for "
            f"{'the doubled cap' if times == 2 else f'{times} times the cap (double_cap)'}; "
            f"{remedy}"
        )
    return contexts
