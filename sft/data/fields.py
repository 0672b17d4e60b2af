"""The fields of a row: which of them a format has read, and whether the others hold content."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

from sft.errors import UserError

REMEDY = (
    "if it belongs to the question, map it (columns={{context: {name}}}; in a file of messages "
    "write it into them), else leave it out by name (ignore=[{names}])"
)
MOST = 0.5  # share of a source's rows from which an unread field with content stops the run
LONG = 12  # words without a mark of punctuation at their end that are more than a label
SENTENCE = re.compile(r"[.?!:。？！：…][\"'”’)\]]*$")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# Names, or last words of names, of fields that describe a row and are no part of what it says.
METADATA = frozenset(
    (
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
        *("types", "kind", "kinds", "class", "domain"),
        *("domains", "level", "difficulty", "skill", "skills", "sentiment", "toxicity"),
        *("moderation", "status", "state", "flag", "flags", "length", "lengths", "count"),
        *("counts", "seed", "fingerprint", "metadata", "meta", "header", "kwargs"),
        *("preference", "preferences", "reference", "references", "feedback"),
    )
)
# Words anywhere in a name that speak of a judgment about the row.
JUDGMENT = frozenset(
    (
        *("annotation", "annotations", "annotator", "annotators", "labelling", "labeling"),
        *("judge", "judgement", "judgment", "critique", "reviewer", "preference", "preferences"),
        *("meta", "metadata", "moderation"),
    )
)
# Texts of well-known data sets from which the question or answer of the row was made.
EARLIER = frozenset(f"original_{name}" for name in ("question", "problem", "answer"))


class Fields(Mapping[str, Any]):
    """The filled fields of a row, which remember which of them were read.

    Args:
        values: by name; None is no value.
        hidden: more fields of the row, which no format sees.
        cells: whether every value is text because the file knows nothing else (CSV).
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        hidden: Mapping[str, Any] | None = None,
        cells: bool = False,
    ) -> None:
        self._seen = {name: value for name, value in values.items() if value is not None}
        self._hidden = dict(hidden or {})
        self._read: set[str] = set()
        self.cells = cells

    def __getitem__(self, name: str) -> Any:
        value = self._seen[name]
        self._read.add(name)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where the row has none."""
        return self[name] if name in self._seen else default

    def __contains__(self, name: object) -> bool:
        return name in self._seen

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def of(self, names: Set[str]) -> Set[str]:
        """Those of the names that the row has a value for."""
        return self._seen.keys() & names

    def peek(self, name: str) -> Any:
        """The value, without counting as a reader of it; None where there is none."""
        return self._seen.get(name)

    def put(self, name: str, value: Any) -> None:
        """Replace a value by what it was decoded to."""
        self._seen[name] = value

    def hide(self, name: str, value: Any) -> None:
        """Count a part of a field, under a name of its own, as unread."""
        self._hidden[name] = value

    def read(self) -> dict[str, Any]:
        """The fields that were read."""
        return {name: value for name, value in self._seen.items() if name in self._read}

    def unread(self) -> dict[str, Any]:
        """The fields that were not, hidden ones among them."""
        unread = {name: value for name, value in self._seen.items() if name not in self._read}
        return unread | self._hidden


def unread_texts(unread: Mapping[str, Any], said: Sequence[str]) -> dict[str, str]:
    """Of fields that nothing read, those that hold text, each with its first text that looks like
    content, or "".

    Left out are fields that only repeat the row: whose texts all stand in one of `said`, or that
    hold all of `said` (a rendered copy of the chat).

    Args:
        said: what the messages of the row say.
    """
    found: dict[str, str] = {}
    squeezed: list[str] = []
    for name, value in unread.items():
        texts = [text for text in nested_texts(value) if text.strip()]
        if not texts:
            continue
        squeezed = squeezed or [strip_whitespace(text) for text in said if text.strip()]
        if squeezed and any(
            all(part in strip_whitespace(text) for part in squeezed) for text in texts
        ):
            continue
        texts = [
            text for text in texts if not any(strip_whitespace(text) in whole for whole in squeezed)
        ]
        if texts:
            content = () if is_metadata(name) else filter(looks_like_content, texts)
            found[str(name)] = next(iter(content), "")
    return found


def strip_whitespace(text: str) -> str:
    """Remove all white space, which exporters and chat templates trim and add."""
    return "".join(text.split())


def nested_texts(value: Any) -> Iterator[str]:
    """The texts in a value, at any depth, but for the roles of messages."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += [v for k, v in reversed(list(value.items())) if k not in ("role", "from")]
        elif isinstance(value, list | tuple):
            waiting += reversed(value)


def is_metadata(name: str) -> bool:
    """Whether a field's name says that it describes the row: `id`, `prompt_id`, `dataSource`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()
    words = re.split(r"[^a-z0-9]+", name.strip("_"))
    return words[-1] in METADATA or not JUDGMENT.isdisjoint(words) or name in EARLIER


def looks_like_content(text: str) -> bool:
    """Whether a text is a sentence or more, not a label, a number, an address or a date."""
    text = text.strip()
    words, characters = len(text.split()), len(CJK.findall(text))
    if characters >= 4:
        return characters >= 2 * LONG or bool(SENTENCE.search(text))
    return words >= LONG or (words >= 3 and ("\n" in text or bool(SENTENCE.search(text))))


class UnreadFields:
    """Counts, over the rows of a source, of the fields with text that nothing read.

    Args:
        ignored: names that may hold content all the same.
    """

    def __init__(self, ignored: Collection[str] = ()) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self._content: Counter[str] = Counter()
        self._first: dict[str, tuple[str, str]] = {}
        self._ignored = frozenset(ignored)

    def add(self, origin: str, unread: Mapping[str, str]) -> None:
        """One more row, with the result of `unread_texts`."""
        self.rows += 1
        for name, content in unread.items():
            self.counts[name] += 1
            if content and name not in self._ignored:
                self._content[name] += 1
                self._first.setdefault(name, (origin, content))

    def lost(self) -> list[str]:
        """The fields that are filled in most rows and mostly look like content."""
        return [
            name
            for name, count in self._content.items()
            if self.counts[name] > MOST * self.rows and count >= MOST * self.counts[name]
        ]

    def check(self, *, remedy: str = REMEDY) -> None:
        """Stop where content would vanish.

        Raises:
            UserError: the first such field with its place, its text and the remedy.
        """
        if not (lost := self.lost()):
            return
        name, more = lost[0], [repr(other) for other in lost[1:]]
        origin, text = self._first[name]
        also = f" (nor {', '.join(more)})" if more else ""
        raise UserError(
            f"{origin}: the field {name!r} ({' '.join(text.split())[:60]!r}) is read by no format"
            f"{also}, and {self.counts[name]:,} of {self.rows:,} rows have it; "
            + remedy.format(name=name, names=", ".join(lost))
        )
