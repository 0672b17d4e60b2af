"""Measures the text that a tokenizer cannot represent: unknown, byte and lost tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import models
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sft.errors import UserError

UNASSIGNED = "\U0010fffd"  # a character that no vocabulary has
BYTES = {char: byte for byte, char in bytes_to_unicode().items()}  # the alphabet of byte-level BPE


@dataclass(frozen=True)
class CoverageCount:
    """The number of characters of some texts, without white space, and of those that are lost."""

    characters: int = 0
    lost: int = 0

    def __add__(self, other: "CoverageCount") -> "CoverageCount":
        return CoverageCount(self.characters + other.characters, self.lost + other.lost)

    @property
    def share(self) -> float:
        return self.lost / self.characters if self.characters else 0.0


@dataclass(frozen=True)
class Coverage:
    """Which ids of a tokenizer represent text that its vocabulary lacks."""

    tokenizer: PreTrainedTokenizerBase
    unknown: int | None  # id that replaces such text, if any
    byte_ids: frozenset[int]  # ids of single bytes (`<0xE4>`), which keep the text in many tokens
    loses: bool  # text can be lost, to the unknown token or without any token
    written: bytes = b""  # byte-level: the bytes in the vocabulary; SmolLM2's lacks 21

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Coverage":
        model, vocabulary = tokenizer.backend_tokenizer.model, tokenizer.get_vocab()
        named = (vocabulary.get(f"<0x{byte:02X}>") for byte in range(256))
        byte_ids = frozenset(i for i in named if i is not None)
        if isinstance(model, models.BPE | models.Unigram):
            replacements = [token.id for token in model.tokenize(UNASSIGNED)]
        else:
            replacements = [i for i in [vocabulary.get(model.unk_token)] if i is not None]
        if not set(replacements) <= byte_ids:
            byte_ids = frozenset()
        unknown = replacements[0] if replacements and not byte_ids else None
        if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
            written = bytes(b for c, b in BYTES.items() if c in vocabulary)
            return cls(tokenizer, None, byte_ids, loses=len(written) < 256, written=written)
        return cls(tokenizer, unknown, byte_ids, loses=len(byte_ids) < 256)

    def count(self, texts: Sequence[str]) -> CoverageCount:
        """Count the characters of the texts, and those that only the unknown token covers."""
        encoded = "".join(texts).encode("utf-8", "surrogatepass")
        written = self.written and not encoded.translate(None, self.written)
        if not texts or not self.loses or written:
            return CoverageCount(sum(map(_size, texts)))
        found = CoverageCount()
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        tokens = self.tokenizer(list(texts), **options)
        columns = (texts, tokens["input_ids"], tokens["offset_mapping"])
        for text, ids, spans in zip(*columns, strict=True):
            kept = bytearray(len(text))
            for i, (start, end) in zip(ids, spans, strict=True):
                if i != self.unknown:
                    kept[start:end] = b"\x01" * (end - start)
            lost = sum(not (held or c.isspace()) for c, held in zip(text, kept, strict=True))
            found += CoverageCount(_size(text), lost)
        return found

    def altered(self, texts: Sequence[str]) -> CoverageCount:
        """Count the characters of the texts, and those that decoding does not restore."""
        found = CoverageCount()
        if not texts:
            return found
        tokens = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        for text, ids in zip(texts, tokens["input_ids"], strict=True):
            kept = [i for i in ids if i != self.unknown]
            back = self.tokenizer.decode(kept, clean_up_tokenization_spaces=False)
            missing = Counter(text) - Counter(back)
            lost = sum(n for c, n in missing.items() if not c.isspace())
            found += CoverageCount(_size(text), lost)
        return found


def row_texts(row: Mapping[str, Any]) -> list[str]:
    turns = [row.get(part) or [] for part in ("messages", "prompt", "chosen", "rejected")]
    contents = (turn.get("content") for part in turns for turn in part)
    return [text for text in (row.get("text"), *contents) if isinstance(text, str) and text]


def check_coverage(found: Mapping[str, CoverageCount], *, most: float, remedy: str) -> None:
    """Raise UserError if a source loses more than the share `most` (model.max_unknown)."""
    for source, written in found.items():
        if written.share > most:
            raise UserError(
                f"{source}: {written.share:.1%} of the characters ({written.lost:,} of "
                f"{written.characters:,}) are not in the tokenizer's vocabulary, and the model "
                f"would see an unknown token in their place or none (model.max_unknown={most:g}); "
                f"{remedy}"
            )


def check_row_coverage(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    *,
    most: float,
    name: str = "",
) -> None:
    """Apply `check_coverage` to rows, grouped by the path in `origin` or under one `name`."""
    coverage = Coverage.of(tokenizer)
    found: dict[str, CoverageCount] = {}
    for row in rows if coverage.loses else ():
        source = name or str(row["origin"]).rpartition(":")[0]
        found[source] = found.get(source, CoverageCount()) + coverage.count(row_texts(row))
    remedy = "leave it out, or take a model whose tokenizer has this script"
    check_coverage(found, most=most, remedy=remedy)


def check_answer_coverage(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[Sequence[int]], *, most: float
) -> None:
    """Raise UserError if more than a share `most` of generated tokens is the unknown token."""
    unknown = Coverage.of(tokenizer).unknown
    total = sum(map(len, answers))
    count = sum(token == unknown for answer in answers for token in answer)
    if count > most * total:
        raise UserError(
            f"pairs.prompts: {count / total:.1%} of the tokens in the model's own answers "
            f"({count:,} of {total:,}) are the unknown token, so their texts are incomplete "
            f"(model.max_unknown={most:g}); take a model whose tokenizer has this script, or name "
            "preferences of your own (data.preference)"
        )


def _size(text: str) -> int:
    return len("".join(text.split()))
