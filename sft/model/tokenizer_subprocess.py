"""Script that tries a tokenizer, which `sft.model.model_files` runs in a child process.

It prints the name of each part before using it: the last name is the part at which it failed.
"""

import json
import math
import os
import resource
import sys
from typing import Any

MEMORY = 8 << 30  # bytes; the largest published tokenizers take a tenth of it
SECONDS = 20  # of CPU time; large files get more
LONGEST = 1000  # most characters that a normalizer may produce from one

# Every printable ASCII character, single and repeated, and text of other scripts.
PRINTABLE = "".join(map(chr, range(32, 127)))
TEXTS = (
    PRINTABLE,
    "".join(f"{c * 64}!\n" for c in PRINTABLE),
    "The quick brown fox\n\n\t你好,世界 Привет, мир! שלום 🙂 ﬁ Å é \u0301 1234567890 don't",
    " " * 256,
)


def main() -> None:
    # Python puts this file's folder first; its modules must not shadow the libraries'.
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    file = sys.argv[1]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_CPU, SECONDS + (os.path.getsize(file) >> 22))
    from tokenizers import Tokenizer  # the only library, for a start in a tenth of a second

    _at("the file")
    tokenizer = Tokenizer.from_file(file)
    # Callers set both for each call.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    normalizer = tokenizer.normalizer
    if normalizer is not None:
        _at("normalizer")
        if (growth := _growth(json.loads(normalizer.__getstate__()))) > LONGEST:
            sys.exit(f"it makes up to {growth:,.0f} characters of one")
        for text in TEXTS:
            normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is not None:
        _at("pre_tokenizer")
        for text in TEXTS:
            tokenizer.pre_tokenizer.pre_tokenize_str(text)
    _at("model")
    ids = [i for text in TEXTS for i in tokenizer.encode(text).ids]
    tokenizer.encode(TEXTS[0], add_special_tokens=False)
    _at("decoder")
    tokenizer.decode(ids, skip_special_tokens=False)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(kind, (value, hard))
    except (ValueError, OSError):  # macOS does not support RLIMIT_AS
        return


def _at(part: str) -> None:
    print(part, flush=True)


def _growth(content: Any) -> float:
    """Return the number of characters that a normalizer can produce from one."""
    if not isinstance(content, dict):
        return 1.0
    if content.get("type") == "Sequence":
        return math.prod(map(_growth, content.get("normalizers", [])))
    inserted = str(content.get("content", content.get("prepend", "")))
    pattern = content.get("pattern")
    replaced = pattern.get("String", "") if isinstance(pattern, dict) else ""
    return max(1.0, len(inserted) / max(1, len(replaced)))


if __name__ == "__main__":
    main()
