"""Text that a tokenizer cannot write: unknown tokens, byte tokens, and characters that are lost."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import models

from sft.errors import UserError

UNASSIGNED = "\U0010fffd"  # a character that no vocabulary has


@dataclass(frozen=True)
class CoverageCount:
    """How many characters some texts have, without white space, and how many of them are lost."""

    characters: int = 0
    lost: int = 0

    def __add__(self, other: "CoverageCount") -> "CoverageCount":
        return CoverageCount(self.characters + other.characters, self.lost + other.lost)

    @property
    def share(self) -> float:
        """The share of characters that are lost."""
        return self.lost / self.characters if self.characters else 0.0


@dataclass(frozen=True)
class Coverage:
    """Which ids of a tokenizer stand for text that its vocabulary does not have.

    Attributes:
        unknown: the id that replaces such text; None for a tokenizer that writes every text, or
            that leaves such text out.
        byte_ids: ids of single bytes (`<0xE4>`), which keep the text at the price of many tokens.
        loses: whether text may be lost, to the unknown token or without any token.
        written: of a byte-level tokenizer, the bytes that its vocabulary has; SmolLM2's lacks 21.
    """

    tokenizer: Any
    unknown: int | None
    byte_ids: frozenset[int]
    loses: bool
    written: bytes = b""

    @classmethod
    def of(cls, tokenizer: Any) -> "Coverage":
        """What the tokenizer's own model says, not its configuration: GPT-2's names its end of text
        as its unknown token and never writes it for text."""
        model, vocabulary = tokenizer.backend_tokenizer.model, tokenizer.get_vocab()
        named = (vocabulary.get(f"<0x{byte:02X}>") for byte in range(256))
        byte_ids = frozenset(i for i in named if i is not None)
        if isinstance(model, models.BPE | models.Unigram):
            stands = [token.id for token in model.tokenize(UNASSIGNED)]
        else:
            stands = [i for i in [vocabulary.get(model.unk_token)] if i is not None]
        if not set(stands) <= byte_ids:
            byte_ids = frozenset()
        unknown = stands[0] if stands and not byte_ids else None
        if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
            written = bytes(b for c, b in BYTES.items() if c in vocabulary)
            return cls(tokenizer, None, byte_ids, loses=len(written) < 256, written=written)
        return cls(tokenizer, unknown, byte_ids, loses=len(byte_ids) < 256)

    def count(self, texts: Sequence[str]) -> CoverageCount:
        """The characters of the texts, and those that no token but the unknown one covers."""
        encoded = "".join(texts).encode("utf-8", "surrogatepass")
        written = self.written and not encoded.translate(None, self.written)
        if not texts or not self.loses or written:
            return CoverageCount(sum(map(_size, texts)))
        found = CoverageCount()
        tokens = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for text, ids, spans in zip(
            texts, tokens["input_ids"], tokens["offset_mapping"], strict=True
        ):
            kept = bytearray(len(text))
            for i, (start, end) in zip(ids, spans, strict=True):
                if i != self.unknown:
                    kept[start:end] = b"\x01" * (end - start)
            lost = sum(not (held or c.isspace()) for c, held in zip(text, kept, strict=True))
            found += CoverageCount(_size(text), lost)
        return found

    def altered(self, texts: Sequence[str]) -> CoverageCount:
        """The characters of the texts, and those that decoding their tokens does not return, for a
        normalizer that changes text too."""
        found = CoverageCount()
        if not texts:
            return found
        tokens = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        for text, ids in zip(texts, tokens["input_ids"], strict=True):
            back = self.tokenizer.decode(
                [i for i in ids if i != self.unknown], clean_up_tokenization_spaces=False
            )
            missing = Counter(text) - Counter(back)
            lost = sum(n for c, n in missing.items() if not c.isspace())
            found += CoverageCount(_size(text), lost)
        return found


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: the character that stands for each byte (its `bytes_to_unicode`)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = _byte_alphabet()


def row_texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row: of a plain text, of a chat's messages, or of a pair's three parts."""
    turns = [row.get(part) or [] for part in ("messages", "prompt", "chosen", "rejected")]
    said = (turn.get("content") for part in turns for turn in part)
    return [text for text in (row.get("text"), *said) if isinstance(text, str) and text]


def check_coverage(found: Mapping[str, CoverageCount], *, most: float, remedy: str) -> None:
    """Stop where a source has too much text that the tokenizer cannot write.

    Args:
        found: by source.
        most: the share of characters that may be lost (model.max_unknown).

    Raises:
        UserError: naming the source, the share and what to do.
    """
    for source, written in found.items():
        if written.share > most:
            raise UserError(
                f"{source}: {written.share:.1%} of the characters ({written.lost:,} of "
                f"{written.characters:,}) are not in the tokenizer's vocabulary, and the model "
                f"would see an unknown token in their place or none (model.max_unknown={most:g}); "
                f"{remedy}"
            )


def check_row_coverage(
    tokenizer: Any, rows: Iterable[Mapping[str, Any]], *, most: float, name: str = ""
) -> None:
    """Run `check_coverage` on rows of texts, chats or pairs, grouped by the path in their `origin`
    (path:line) or under one name.

    Raises:
        UserError: see `check_coverage`.
    """
    coverage = Coverage.of(tokenizer)
    found: dict[str, CoverageCount] = {}
    for row in rows if coverage.loses else ():
        source = name or str(row["origin"]).rpartition(":")[0]
        found[source] = found.get(source, CoverageCount()) + coverage.count(row_texts(row))
    remedy = "leave it out, or take a model whose tokenizer has this script"
    check_coverage(found, most=most, remedy=remedy)


def check_answer_coverage(tokenizer: Any, answers: Sequence[Sequence[int]], *, most: float) -> None:
    """Stop where a model writes the unknown token itself, which the texts of its answers leave out.

    Args:
        answers: token ids of each answer.
        most: the share of tokens that may be unknown (model.max_unknown).

    Raises:
        UserError: the share is larger.
    """
    unknown = Coverage.of(tokenizer).unknown
    total = sum(map(len, answers))
    count = sum(token == unknown for answer in answers for token in answer)
    if count > most * total:
        raise UserError(
            f"pairs.prompts: {count / total:.1%} of the tokens in the model's own answers "
            f"({count:,} of {total:,}) are the unknown token, so their texts are not whole "
            f"(model.max_unknown={most:g}); take a model whose tokenizer has this script, or name "
            "preferences of your own (data.preference)"
        )


def _size(text: str) -> int:
    return len("".join(text.split()))
