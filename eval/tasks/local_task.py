"""Define lm-eval tasks over local data files, without conversion, cache or import of code.

In addition to `data_files` (split: file), `dataset_kwargs` of a task file may have:
    where: a Jinja expression; only rows for which it is true are used
    join: {field: {file: FILE, key: KEY}}; `field` of a row is the row of FILE with the same KEY
and `metadata`:
    shots_by: a field; few-shot examples have the same value as the question (MMLU's subject)
    shots: number of examples in the text of the question itself
    cluster: a field or template that dependent questions share (passage, template, subject);
        a question without a value is its own cluster
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lm_eval.utils
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.task import ConfigurableTask

from sft.config.sections import Source
from sft.data.readers import read_records
from sft.data.records import RowError
from sft.errors import UserError
from sft.system.hub import reach_hub

READABLE = ("json", "csv", "parquet")  # values of dataset_path whose files are read here


class _Templates(SandboxedEnvironment):
    """Jinja environment whose templates can access only the fields of their document."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise UserError(
            f"a template of a task accesses {attribute!r} of a {type(obj).__name__}, which is not "
            "allowed; use only the fields of the document"
        )


def _sandboxed() -> _Templates:
    """Return a sandboxed version of lm-eval's environment (lm_eval/utils.py)."""
    templates = _Templates(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    templates.filters |= lm_eval.utils.env.filters
    return templates


# lm-eval renders the templates of untrusted task files with this environment.
lm_eval.utils.env = _sandboxed()


class SplitRows(list[dict[str, Any]]):
    """Rows of a split with `features`, by which lm-eval distinguishes fields from templates."""

    @property
    def features(self) -> dict[str, None]:
        """Return the names of all fields."""
        return {name: None for row in self for name in row}


class LocalTask(ConfigurableTask):  # type: ignore[misc]
    """An lm-eval task whose splits are read separately from files.

    Splits may have different fields and fields may have several types. Few-shot examples can be of
    the subject of the question, for which lm-eval needs one task per subject.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Read the files; hub datasets and other file types are loaded by lm-eval.

        Raises:
            UserError: a row cannot be read, or there are none.
        """
        given = dataset_kwargs or {}
        remote = "://" in str(given.get("data_files", "://"))
        if remote or self.config.dataset_path not in READABLE:
            reach_hub()
            super().download(dataset_kwargs, **kwargs)
            return
        files = given["data_files"]
        joins = [_Join.of(field, **how) for field, how in (given.get("join") or {}).items()]
        self.dataset = {
            split: _read_split(names, where=given.get("where"), joins=joins)
            for split, names in (files if isinstance(files, dict) else {"train": files}).items()
        }

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the prompt of one question, with examples of its subject."""
        field = (self.config.metadata or {}).get("shots_by")
        if field is not None and kwargs.get("num_fewshot"):
            examples = self._by_value[doc[field]]
            self.sampler.replace_df(examples)
            kwargs["num_fewshot"] = min(kwargs["num_fewshot"], len(examples))
        return super().fewshot_context(doc, *args, **kwargs)

    @cached_property
    def _by_value(self) -> dict[Any, list[dict[str, Any]]]:
        """Few-shot examples by their value of `metadata.shots_by`."""
        grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in self.fewshot_docs():
            grouped[row[self.config.metadata["shots_by"]]].append(row)
        return grouped


@dataclass(frozen=True)
class _Join:
    """Rows of another file by the value of `key`; each row gets its match as `field`."""

    field: str
    key: str
    rows: dict[Any, dict[str, Any]]

    @classmethod
    def of(cls, field: str, *, file: str, key: str) -> "_Join":
        return cls(field, key, {row[key]: row for row in _records(file)})

    def apply(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {self.field: self.rows[row[self.key]]}


def _read_split(names: Any, *, where: str | None, joins: list[_Join]) -> SplitRows:
    """Return the rows of one split that satisfy `where`, with their joined rows."""
    selects = _Templates().compile_expression(where) if where else None
    rows = SplitRows()
    files = names if isinstance(names, list) else [names]
    for row in (row for name in files for row in _records(name)):
        if selects is None or selects(**row):
            for join in joins:
                row = join.apply(row)
            rows.append(row)
    if not rows:
        rule = f" for which {where} is true" if where else ""
        raise UserError(f"{', '.join(map(str, files))}: no row{rule}; a task needs at least one")
    return rows


def _records(name: str) -> list[dict[str, Any]]:
    rows = []
    for record in read_records(Source(str(name))):
        if isinstance(record, RowError):
            raise record
        rows.append(record.fields)
    return rows
