"""Tasks over data files of one's own, read as they are: no conversion, no cache, no import of code.

A task file's `dataset_kwargs` may hold, beside `data_files` (split: file):
    where: a Jinja expression; only rows for which it is true are asked
    join: {field: {file: FILE, key: KEY}}; a row gets, as `field`, the row of FILE with equal KEY
and its `metadata`:
    shots_by: a field; examples are those with the question's own value (MMLU's subject)
    shots: how many examples the question's text itself holds, beside those that are drawn
    cluster: a field, or a template, that questions of one passage, template or subject share;
        a question without a value there stands alone
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

READABLE = ("json", "csv", "parquet")  # dataset_path of tasks whose files are read here


class _Templates(SandboxedEnvironment):
    """Templates over documents that reach nothing but their documents."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise UserError(
            f"a template of a task reaches for {attribute!r} of a {type(obj).__name__}, which "
            "templates may not; write it over the document's fields"
        )


def _sandboxed() -> _Templates:
    """lm-eval's environment (lm_eval/utils.py), which is no sandbox, as one."""
    templates = _Templates(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    templates.filters |= lm_eval.utils.env.filters
    return templates


# A task's templates come with its file, and lm-eval renders them wherever it needs a text.
lm_eval.utils.env = _sandboxed()


class Rows(list[dict[str, Any]]):
    """Rows of a split, with the `features` by which lm-eval tells a field from a template."""

    @property
    def features(self) -> dict[str, None]:
        """Names of all fields."""
        return {name: None for row in self for name in row}


class LocalTask(ConfigurableTask):  # type: ignore[misc]
    """lm-eval's task over files that are read here, each split for itself.

    Splits need not have the same fields, fields not one type, and examples can be those of the
    question's own subject, which lm-eval has only as a task for each subject.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Read the files; a hub dataset, or files of other kinds, are lm-eval's to load.

        Raises:
            UserError: a row cannot be read, or none is left.
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
        """The prompt of one question; examples come from the question's own subject."""
        field = (self.config.metadata or {}).get("shots_by")
        if field is not None and kwargs.get("num_fewshot"):
            examples = self._by_value[doc[field]]
            self.sampler.replace_df(examples)
            kwargs["num_fewshot"] = min(kwargs["num_fewshot"], len(examples))
        return super().fewshot_context(doc, *args, **kwargs)

    @cached_property
    def _by_value(self) -> dict[Any, list[dict[str, Any]]]:
        """Examples by their value of `metadata.shots_by`."""
        grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for row in self.fewshot_docs():
            grouped[row[self.config.metadata["shots_by"]]].append(row)
        return grouped


@dataclass(frozen=True)
class _Join:
    """Rows of another file by the value of their field `key`, added to each row as `field`."""

    field: str
    key: str
    rows: dict[Any, dict[str, Any]]

    @classmethod
    def of(cls, field: str, *, file: str, key: str) -> "_Join":
        return cls(field, key, {row[key]: row for row in _records(file)})

    def added(self, row: dict[str, Any]) -> dict[str, Any]:
        return {self.field: self.rows[row[self.key]]}


def _read_split(names: Any, *, where: str | None, joins: list[_Join]) -> Rows:
    """Rows of the files of one split that `where` lets through, each with its joined rows."""
    holds = _Templates().compile_expression(where) if where else None
    rows = Rows()
    files = names if isinstance(names, list) else [names]
    for row in (row for name in files for row in _records(name)):
        if holds is None or holds(**row):
            for join in joins:
                row = row | join.added(row)
            rows.append(row)
    if not rows:
        rule = f" for which {where} is true" if where else ""
        raise UserError(f"{', '.join(map(str, files))}: no row{rule}; a task asks at least one")
    return rows


def _records(name: str) -> list[dict[str, Any]]:
    rows = []
    for record in read_records(Source(str(name))):
        if isinstance(record, RowError):
            raise record
        rows.append(record.fields)
    return rows
