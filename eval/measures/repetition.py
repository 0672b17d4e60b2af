"""The repetition rate: the share of greedy answers that never end and repeat for ever.

DeepSeek LLM (arXiv 2401.02954, section 4) counts responses that "fail to terminate and instead
endlessly repeat a sequence of text" at temperature 0; its detector is unpublished. Ours, on token
ids: a loop that runs at the cap (two whole copies or more) still runs, unbroken, at twice the cap,
which makes four copies at least. Thinking that loops never ends either, so it counts; text and
seq-rep-4 are of the answer behind it.
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
from sft.chat_template.encoding import encode_prompt, stop_ids
from sft.errors import UserError
from sft.run.fingerprint import fingerprint

# From here on every loop that has begun by the cap and lasts to twice the cap has MIN_TOKENS.
SMALLEST_CAP = MIN_TOKENS


def measure(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    *,
    cap: int,
    begun: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[int], object] | None = None,
    tick: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    """Answer every prompt greedily; returns the rows of generations.jsonl in the order given.

    Args:
        model: a backend or a causal LM (see `backend_of`).
        prompts: {"id", "messages", "category", "language"} each.
        cap: new tokens of an answer; one that loops there is followed as long as it does, to
            2 * cap at most.
        begun: stored rows of the same prompts at a smaller cap, which are carried on.
        progress: called with the number of prompts settled since the last call.
        tick: called before each token; what it raises ends the measure.

    Raises:
        UserError: no prompts, a repeated id, or a prompt that leaves no room for 2 * cap tokens.
    """
    backend = backend_of(model, tokenizer)
    contexts = check_prompts(tokenizer, prompts, window=backend.window, cap=cap)
    decoder = _Decoder(backend, stop_ids(tokenizer, also=backend.eos_ids), tick)
    rows = [_Row(context) for context in contexts]
    for row, stored in zip(rows, begun or [], strict=begun is not None):
        row.tokens, row.reason = list(stored["token_ids"]), stored["finish_reason"]
    going = [row for row in rows if row.reason != "stop_id" and len(row.tokens) < cap]
    decoder.extend(going, to=[cap] * len(going), stop_at_loop=True, progress=progress)
    # A loop need not be decoded token by token: it is drafted and checked in one forward pass.
    early = [(row, find_loop(row.tokens)) for row in going if row.reason == "loop"]
    decoder.follow([(row, loop) for row, loop in early if loop], to=2 * cap)
    short = [row for row, _ in early if len(row.tokens) < cap]
    decoder.extend(short, to=[cap] * len(short))
    running = _running(rows, cap=cap)
    while running:
        decoder.follow(running, to=2 * cap)
        left = [row for row, _ in running if len(row.tokens) < 2 * cap]
        # The token at which a row left the loop; a longer loop may go on with it.
        decoder.extend(left, to=[len(row.tokens) + 1 for row in left])
        running = _running(left, cap=cap)
    return [
        _stored(prompt, row, tokenizer, cap=cap) for prompt, row in zip(prompts, rows, strict=True)
    ]


def at_cap(
    stored: Mapping[str, Any], prompt: Mapping[str, Any], tokenizer: Any, *, cap: int
) -> dict[str, Any]:
    """The row that `measure` at a smaller cap would have stored for the same answer.

    It ends at the cap, or where it leaves the loop that it is in at the cap, or at twice the cap.
    """
    assert cap <= stored["cap"]
    tokens, reason = list(stored["token_ids"]), stored["finish_reason"]
    end = min(cap, len(tokens))
    while end < min(2 * cap, len(tokens)) and find_loop(tokens[:end], cap=cap) is not None:
        end += 1
    row = _Row(list(stored["prompt_ids"]), tokens[:end], reason if end == len(tokens) else "cap")
    return _stored(prompt, row, tokenizer, cap=cap)


def measure_sampled(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Mapping[str, Any]],
    *,
    cap: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """The same measure on answers sampled at `temperature`; rows with that and their seed.

    A sampled loop can be left at any token, so nothing is drafted: an answer that loops at the cap
    is decoded on, and one that does not loop there, or no longer does, ends within a few tokens.

    Raises:
        UserError: as `measure`.
    """
    backend = backend_of(model, tokenizer)
    contexts = check_prompts(tokenizer, prompts, window=backend.window, cap=cap)
    # By the prompt's id: neither order nor company of the prompts moves an answer.
    seeds = [int(fingerprint([seed, prompt["id"]])[:12], 16) for prompt in prompts]
    settings = GenerationSettings(
        max_new_tokens=2 * cap,
        stop_ids=stop_ids(tokenizer, also=backend.eos_ids),
        temperature=temperature,
        seeds=seeds,
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
    """Whether a stored row is endless: in one loop from before the cap to twice the cap."""
    tokens, cap = row["token_ids"], row["cap"]
    if row["finish_reason"] != "cap" or len(tokens) < 2 * cap:
        return False
    loop = find_loop(tokens[: 2 * cap], cap=cap, copies=copies)
    return loop is not None and 2 * cap - loop.start >= MIN_TOKENS


def unfinished(row: Mapping[str, Any]) -> bool:
    """Whether a stored row had not ended at its cap."""
    return bool(len(row["token_ids"]) > row["cap"] or row["finish_reason"] == "cap")


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results.json entry of one model, from its stored rows alone.

    `rate` counts rows that repeat, `truncated` the other rows that had not ended at the cap; both
    are shares of n. `distinct_loops` counts different loops among those that repeat: many answers
    may end in one and the same passage. `seq_rep_4` is the mean over answers cut at the cap,
    without their stop id and without thinking that ended before them.
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
    """How many different sequences stored rows repeat, wherever in a sequence they enter it."""
    return len({_smallest_rotation(_unit(row)) for row in rows})


def _unit(row: Mapping[str, Any]) -> tuple[int, ...]:
    """One copy of the loop that a row repeats."""
    tokens = row["token_ids"][: 2 * row["cap"]]
    loop = find_loop(tokens, cap=row["cap"])
    assert loop is not None, "the row repeats"
    return tuple(tokens[-loop.period :])


def _smallest_rotation(unit: tuple[int, ...]) -> tuple[int, ...]:
    return min(unit[i:] + unit[:i] for i in range(len(unit)))


def _answer(row: Mapping[str, Any], *, cap: int) -> list[int]:
    tokens = row["token_ids"]
    tokens = tokens[:-1] if row["finish_reason"] == "stop_id" else tokens
    return list(tokens[row.get("thinking_tokens", 0) : cap])


@dataclass
class _Row:
    """One answer in progress; `reason` "loop" marks one that was left while it looped."""

    context: list[int]
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason = "loop"


def _running(rows: Sequence[_Row], *, cap: int) -> list[tuple[_Row, Loop]]:
    """The rows neither over, nor at twice the cap, nor out of the loop they had at the cap, each
    with that loop."""
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
        """Decode greedily until each row has its `to` tokens, ends, or (if asked) loops."""

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

    def follow(self, looping: Sequence[tuple[_Row, Loop]], *, to: int) -> None:
        """Extend rows by as much of their loops as greedy decoding would write.

        A loop is written out to `to` tokens, and scoring tells how many of them are the model's own
        choice: a row ends where it leaves its loop, or at `to`.
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
    """The tokens that a loop at the tail would add up to `length` in all."""
    unit = list(tokens[-loop.period :])
    missing = max(0, length - len(tokens))
    return (unit * (missing // loop.period + 1))[:missing]


def _stored(prompt: Mapping[str, Any], row: _Row, tokenizer: Any, *, cap: int) -> dict[str, Any]:
    loop = find_loop(row.tokens, cap=cap) or find_loop(row.tokens)
    ids = row.tokens[:-1] if row.reason == "stop_id" else row.tokens
    text = tokenizer.decode(ids, skip_special_tokens=True)
    said = split_generation(tokenizer, Generation(row.context, row.tokens, text, row.reason))
    stored = {
        "id": prompt["id"],
        "messages": list(prompt["messages"]),
        "category": prompt["category"],
        "language": prompt["language"],
        "prompt_ids": row.context,
        "token_ids": row.tokens,
        "text": said.answer,
        **said.facts,
        **({"thinking_tokens": said.before} if said.thinking is not None and said.ended else {}),
        "finish_reason": row.reason,
        "loop": None if loop is None else asdict(loop),
        "cap": cap,
    }
    return stored | {"repeats": repeats(stored)}


def check_cap(cap: int) -> None:
    """Refuse a cap at which loops that last to its double could be too short to count.

    Raises:
        UserError: the cap is shorter than the shortest loop that counts.
    """
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
    """The prompts as token ids, each with room for `times` * cap tokens (4: the cap doubled).

    Raises:
        UserError: no prompts, a repeated id, or a prompt that leaves too little room.
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
    room = None if window is None else (window - len(contexts[longest])) // times
    if room is not None and room < cap:
        enough = room >= SMALLEST_CAP
        remedy = f"lower the cap to {room}" if enough else "shorten or drop the prompt"
        raise UserError(
            f"eval.repetition.cap={cap}: prompt {prompts[longest]['id']} has "
            f"{len(contexts[longest])} tokens and the model's window is {window}, too small for "
            f"{'the doubled cap' if times == 2 else f'{times} times the cap (double_cap)'}; "
            f"{remedy}"
        )
    return contexts
