"""Fields of a row: which of them a format has read, and whether the others hold content."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from sft.errors import UserError

REMEDY = (
    "if it belongs to the question, map it (columns={{context: {name}}}; in a file of messages "
    "write it into them), else leave it out by name (ignore=[{names}])"
)
# Share of a source's rows from which on an unread field with content stops the run: a rarer field
# is an exception in the file, not a part of its format.
MAX_UNREAD = 0.5
LABEL_WORDS = 12  # texts with fewer words and no punctuation at the end are labels
SENTENCE_END = re.compile(r"[.?!:。？！：…][\"'”’)\]]*$")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Names, or last words of names, of fields that describe a row.
METADATA = {
    *("id", "ids", "idx", "index", "uid", "uuid", "guid", "key", "hash", "md5", "sha1"),
    *("sha256", "url", "urls", "uri", "link", "links", "source", "sources", "origin"),
    *("dataset", "datasets", "corpus", "repo", "repository", "file", "filename", "path"),
    *("split", "subset", "config", "license", "licence", "copyright", "lang", "langs"),
    *("language", "languages", "locale", "country", "model", "models", "generator"),
    *("version", "revision", "author", "authors", "user", "username", "annotator"),
    *("annotators", "name", "names", "date", "time", "datetime", "timestamp", "timestamps"),
    *("created", "updated", "year", "score", "scores", "rating", "ratings", "rank", "reward"),
    *("rewards", "quality", "confidence", "similarity", "perplexity", "loss", "weight"),
    *("label", "labels", "tag", "tags", "category", "categories", "subcategory", "type"),
    *("types", "kind", "kinds", "class", "domain", "domains", "level", "difficulty"),
    *("skill", "skills", "sentiment", "toxicity", "moderation", "status", "state", "flag"),
    *("flags", "length", "lengths", "count", "counts", "seed", "fingerprint", "metadata"),
    *("meta", "header", "kwargs", "preference", "preferences", "reference", "references"),
    "feedback",
}
# Words anywhere in the name of a field that judges the row.
JUDGMENT = {
    *("annotation", "annotations", "annotator", "annotators", "labelling", "labeling"),
    *("judge", "judgement", "judgment", "critique", "reviewer", "preference", "preferences"),
    *("meta", "metadata", "moderation"),
}
# Texts from which the row was made, as in MetaMath.
EARLIER = frozenset(f"original_{name}" for name in ("question", "problem", "answer"))


class Fields(dict[str, Any]):
    """The fields of a row that have a value; it records which of them were read.

    Args:
        values: by name; fields that are None are left out.
        hidden: further fields of the row, which no format sees.
        cells: every value is text because the file (CSV) has no other type.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        hidden: Mapping[str, Any] | None = None,
        cells: bool = False,
    ) -> None:
        super().__init__({name: value for name, value in values.items() if value is not None})
        self._hidden = dict(hidden or {})
        self._read: set[str] = set()
        self.cells = cells

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Read a field; return `default` if the row has none of this name."""
        self._read.add(name)
        return super().get(name, default)

    def peek(self, name: str) -> Any:
        """Return a value without marking it as read; None if there is none."""
        return super().get(name)

    def filled(self, names: Set[str]) -> Set[str]:
        """Return those of the names for which the row has a value."""
        return self.keys() & names

    def hide(self, name: str, value: Any) -> None:
        """Add a part of a field as an unread field."""
        self._hidden[name] = value

    def read(self) -> dict[str, Any]:
        """Return the fields that were read."""
        return {name: value for name, value in self.items() if name in self._read}

    def unread(self) -> dict[str, Any]:
        """Return the fields that were not read, including hidden ones."""
        return {n: value for n, value in self.items() if n not in self._read} | self._hidden


def unread_texts(unread: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """Return the unread fields that hold text, each with its first text that looks like content.

    The text is "" if none does. Fields that repeat the row are left out: their texts all occur in
    one of `texts`, the contents of the row's messages, or contain all of these (a rendered chat).
    """
    found: dict[str, str] = {}
    row = [strip_whitespace(text) for text in texts if text.strip()] if unread else []
    for name, value in unread.items():
        stripped = {text: strip_whitespace(text) for text in nested_texts(value) if text.strip()}
        if row and any(all(part in text for part in row) for text in stripped.values()):
            continue
        new = [text for text, short in stripped.items() if not any(short in part for part in row)]
        if new:
            content = () if is_metadata(name) else filter(looks_like_content, new)
            found[str(name)] = next(iter(content), "")
    return found


def strip_whitespace(text: str) -> str:
    """Remove all white space, which exporters and chat templates trim and add."""
    return "".join(text.split())


def nested_texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value, at any depth, except the roles of messages."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            pending += [v for k, v in reversed(list(value.items())) if k not in ("role", "from")]
        elif isinstance(value, list | tuple):
            pending += reversed(value)


def is_metadata(name: str) -> bool:
    """Return whether a field describes the row, by its name: `id`, `prompt_id`, `dataSource`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()
    words = re.split(r"[^a-z0-9]+", name.strip("_"))
    return words[-1] in METADATA or not JUDGMENT.isdisjoint(words) or name in EARLIER


def looks_like_content(text: str) -> bool:
    """Return whether a text is a sentence or more, not a label, a number, an address or a date."""
    text = text.strip()
    words, characters = len(text.split()), len(CJK.findall(text))
    if characters >= 4:  # written without spaces: two characters are about a word
        return characters >= 2 * LABEL_WORDS or bool(SENTENCE_END.search(text))
    ended = "\n" in text or bool(SENTENCE_END.search(text))
    return words >= LABEL_WORDS or (words >= 3 and ended)


class UnreadFields:
    """Counts, over the rows of a source, of unread fields with text, except those to ignore."""

    def __init__(self, ignored: Collection[str] = ()) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self._content: Counter[str] = Counter()
        self._first: dict[str, tuple[str, str]] = {}
        self._ignored = frozenset(ignored)

    def add(self, origin: str, unread: Mapping[str, str]) -> None:
        """Add a row with its `unread_texts`."""
        self.rows += 1
        for name, content in unread.items():
            self.counts[name] += 1
            if content and name not in self._ignored:
                self._content[name] += 1
                self._first.setdefault(name, (origin, content))

    def check(self, *, remedy: str = REMEDY) -> None:
        """Raise a `UserError` for a field that is filled in most rows, mostly with content."""
        lost = [
            name
            for name, count in self._content.items()
            if self.counts[name] > MAX_UNREAD * self.rows
            and count >= MAX_UNREAD * self.counts[name]
        ]
        if not lost:
            return
        name, more = lost[0], [repr(other) for other in lost[1:]]
        origin, text = self._first[name]
        also = f" (nor {', '.join(more)})" if more else ""
        raise UserError(
            f"{origin}: the field {name!r} ({' '.join(text.split())[:60]!r}) is read by no format"
            f"{also}, and {self.counts[name]:,} of {self.rows:,} rows have it; "
            + remedy.format(name=name, names=", ".join(lost))
        )
