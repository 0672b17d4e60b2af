"""Measure whether the quickstart's base model is ready for fine-tuning.

    python recipes/quickstart/generate/readiness.py            # base/; about two minutes

A base is ready if it copies from its context, has learned the facts of its pages, and neither
answers nor stops in the chat format. Exits with code 1 if a measure misses its bound.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below is no traceback either.
    from sft import end_on_interrupt

    end_on_interrupt()

import argparse
import itertools
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.quickstart.generate import stories
from recipes.quickstart.generate.bilingual import LANGUAGES, Text, side
from recipes.quickstart.generate.gazetteer import make_gazetteer
from recipes.quickstart.generate.pages import pages
from sft.chat_template.encoding import encode_prompt
from sft.run.command import run_command

HERE = Path(__file__).parents[1]  # recipes/quickstart
TALES, SEQUENCES, PAGES, CHATS = 200, 64, 200, 100
SHOTS = 5


# Characters that transcribe foreign names.
_SYLLABLES = (
    "阿艾安巴贝波布达德迪多恩法费弗格哈海霍基加卡克拉莱兰雷丽林鲁玛梅米莫娜内尼诺帕佩奇桑塞斯塔泰特"
    "托瓦维沃西雅伊尤泽"
)


@dataclass(frozen=True)
class Measure:
    """A measured value and the bound that a ready base keeps."""

    name: str
    value: float
    bound: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool:
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound


class Base:
    """A causal language model with its tokenizer, in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def costs(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return minus the log-probability of each token of each row, 0 for the first, in nats."""
        found = []
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            width = max(map(len, part))
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in part])
            logits = self.model(input_ids=ids).logits[:, :-1].log_softmax(-1)
            cost = -logits.gather(2, ids[:, 1:, None])[..., 0]
            found += [
                torch.cat([torch.zeros(1), c[: len(row) - 1]])
                for c, row in zip(cost, part, strict=True)
            ]
        return found


def random_name(rng: random.Random) -> Text:
    """Return a name of random syllables; its two languages are unrelated."""
    size = rng.randint(2, 3)
    latin = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(size))
    return latin.capitalize(), "".join(rng.sample(_SYLLABLES, size))


def occurrences(encoded: Any, text: str, word: str) -> list[list[int]]:
    """Return, for each occurrence of `word` in an encoded text, the positions of its tokens."""
    starts = [i for i in range(len(text)) if text.startswith(word, i)]
    return [
        [
            i
            for i, (a, b) in enumerate(encoded.offset_mapping)
            if a < start + len(word) and b > start
        ]
        for start in starts
    ]


def name_costs(base: Base, seed: int, *, tales: int = TALES) -> list[float]:
    """Return the mean cost of a random name at its first, second, third and fourth occurrence.

    The names are those of tales, in both languages; the cost is the sum over the name's tokens.
    """
    rng = random.Random(f"{seed}/readiness")
    towns = tuple(e.name for e in make_gazetteer(seed) if e.kind == "place")
    context = base.model.config.max_position_embeddings
    rows, places = [], []
    for number in range(tales):
        language = LANGUAGES[number % 2]
        cast = (random_name(rng), "f"), (random_name(rng), "m")
        plot = stories.make_plot(rng, cast=cast, places=towns, episodes=(1, 2))
        text = stories.join(stories.tell(rng, plot, language=language), language)
        encoded = base.tokenizer(text, return_offsets_mapping=True, verbose=False)
        for name, _ in cast:
            found = occurrences(encoded, text, side(name, language))[:4]
            if len(found) == 4 and found[3][-1] < context:
                rows.append(encoded.input_ids[:context])
                places.append(found)
    costs = base.costs(rows)
    return [
        sum(float(cost[own[k]].sum()) for cost, own in zip(costs, places, strict=True)) / len(rows)
        for k in range(4)
    ]


def copied_share(base: Base, seed: int) -> float:
    """Return the cost of the second copy of random tokens as a share of that of the first."""
    rng = random.Random(f"{seed}/copies")
    first = len(base.tokenizer.all_special_ids)
    rows = [rng.choices(range(first, len(base.tokenizer)), k=64) * 2 for _ in range(SEQUENCES)]
    costs = torch.stack(base.costs(rows))
    # The first token of a copy cannot be known to begin one.
    return float(costs[:, 65:].sum() / costs[:, 1:64].sum())


def text_cost(base: Base, seed: int) -> float:
    """Return the cost per token of pages that pre-training has not seen, in nats."""
    other = f"{seed}/held-out"
    texts = list(itertools.islice(pages(other, make_gazetteer(seed)), PAGES))
    context = base.model.config.max_position_embeddings
    encoded = base.tokenizer(texts, verbose=False).input_ids
    costs = torch.cat(base.costs([ids[:context] for ids in encoded]))
    return float(costs.sum() / (len(costs) - PAGES))


def facts_score(base: Base) -> float:
    """Return the share of `data/facts.jsonl` that is right, with SHOTS examples."""
    examples, documents = (
        [json.loads(line) for line in (HERE / "data" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("facts_fewshot", "facts")
    )
    head = "\n\n".join(f"{e['prompt']} {e['choices'][e['gold']]}" for e in examples[:SHOTS])
    right = 0
    for document in documents:
        context = base.tokenizer(f"{head}\n\n{document['prompt']}").input_ids
        answers = [base.tokenizer(f" {choice}").input_ids for choice in document["choices"]]
        costs = base.costs([[*context, *answer] for answer in answers])
        totals = [float(cost[len(context) :].sum()) for cost in costs]
        right += totals.index(min(totals)) == document["gold"]
    return right / len(documents)


@torch.no_grad()
def stops_share(base: Base) -> float:
    """Return the share of repetition prompts in the chat format whose answer ends itself."""
    rows = (HERE / "data" / "repetition.jsonl").open(encoding="utf-8")
    base.tokenizer.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    ends = base.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    stopped = 0
    for line in itertools.islice(rows, CHATS):
        prompt = torch.tensor([encode_prompt(base.tokenizer, json.loads(line)["messages"])])
        written = base.model.generate(
            prompt, max_new_tokens=200, do_sample=False, eos_token_id=ends, pad_token_id=ends[1]
        )[0, prompt.shape[1] :]
        stopped += bool(set(ends) & set(written.tolist()))
    return stopped / CHATS


def measures(folder: Path, *, seed: int) -> list[Measure]:
    """Return all measures of the base in `folder`."""
    base = Base(folder)
    first, second, third, fourth = name_costs(base, seed)
    return [
        Measure("a name, first time (nats)", first),
        Measure("a name, second time (nats)", second),
        Measure("a name, third time (nats)", third),
        Measure("a name, fourth time (nats)", fourth, 0.3),
        Measure("random tokens, second copy / first", copied_share(base, seed), 0.1),
        Measure("held-out pages (nats per token)", text_cost(base, seed)),
        Measure("facts, five examples", facts_score(base), 0.8, at_least=True),
        Measure("chats that end", stops_share(base), 0.05),
    ]


def main() -> int:
    """Parse the command line and print the measures; the exit code is 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=HERE / "base")
    parser.add_argument("--seed", type=int, default=0, help="of the pages")
    args = parser.parse_args()
    ready: list[bool] = []

    def work() -> None:
        for measure in measures(args.base, seed=args.seed):
            sign = ">=" if measure.at_least else "<="
            bound = "" if measure.bound is None else f"  {sign} {measure.bound}"
            print(f"{measure.name:36} {measure.value:8.3f}{bound}{'' if measure.kept else '  NO'}")
            ready.append(measure.kept)

    code = run_command(work, resumable=False)
    return code or int(not all(ready))


if __name__ == "__main__":
    sys.exit(main())
