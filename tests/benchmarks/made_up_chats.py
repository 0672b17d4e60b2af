"""Generate short chats for timings: words of syllables, one chat in twenty a near-duplicate."""

import itertools
import json
import random
from pathlib import Path

WORDS = ["".join(p) for p in itertools.product("bdgklmnprstv", "aeiou", ("m", "n", "rs", "lt"))]


def write_chats(path: Path, *, rows: int, seed: int = 0) -> None:
    """Write questions of 8 to 30 words and answers of 15 to 60: about 130 tokens per chat."""
    lot = random.Random(seed)
    earlier: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            if earlier and lot.random() < 0.05:
                words = list(lot.choice(earlier))
                words[lot.randrange(len(words))] = lot.choice(WORDS)
            else:
                words = lot.choices(WORDS, k=lot.randint(23, 90))
            if len(earlier) < 10_000:
                earlier.append(words)
            cut = len(words) // 3
            turns = [
                {"role": "user", "content": " ".join(words[:cut]) + "?"},
                {"role": "assistant", "content": " ".join(words[cut:]) + "."},
            ]
            file.write(json.dumps({"messages": turns, "kind": "dialogue"}) + "\n")
