"""Cache of measures: each task of each model is measured once for the same inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.run.stage_cache import first_altered, matching_record
from sft.system.atomic_files import file_hash, write_record

KEPT = "kept"  # the folder of the records


@dataclass(frozen=True)
class CachedMeasure:
    """One measure of one model: a file of rows and its entry in results.json.

    Attributes:
        folder: eval/<model>.
        name: `protocol/<task>`, `plain/<task>`, `chat/<task>` or `repetition`.
        file: the rows, relative to the folder.
        inputs: hashes of the weights, tokenizer and template, task, and settings.
    """

    folder: Path
    name: str
    file: str
    inputs: dict[str, str]

    @property
    def rows(self) -> Path:
        return self.folder / self.file

    def load(self) -> dict[str, Any] | None:
        """Return the entry if the inputs match and the rows are unchanged; otherwise None."""
        record = matching_record(self._record, self.inputs, "size", "entry")
        if record is None or not self.rows.is_file():
            return None
        # Records of earlier versions have the size of the rows, and no hash.
        hashes = {self.file: record["rows"]} if record.get("rows") is not None else {}
        if self.rows.stat().st_size != record["size"] or first_altered(self.folder, hashes):
            return None
        entry: dict[str, Any] = record["entry"]
        return entry

    def save(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record of rows that are on disk; return `entry`."""
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            size = self.rows.stat().st_size
            facts = {"inputs": self.inputs, "size": size, "rows": file_hash(self.rows)}
            write_record(self._record, facts | {"entry": entry})
        except OSError as error:
            raise not_written(self._record, error) from None
        return dict(entry)

    @property
    def _record(self) -> Path:
        return self.folder / KEPT / f"{self.name}.json"


def not_written(path: Path, error: OSError) -> UserError:
    """Return the error for a full disk or a folder without write permission."""
    return UserError(
        f"{error.filename or path} cannot be written ({error.strerror}); what was measured before "
        "is kept: fix it and start the same command again"
    )
