"""What is measured stays: each task of each model is a unit that a later start does not redo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.errors import UserError
from sft.system.atomic_files import file_hash, read_record, write_record

KEPT = "kept"  # the folder of the records


@dataclass(frozen=True)
class Unit:
    """One measure of one model: a file of rows and its entry in results.json.

    Attributes:
        folder: eval/<model>.
        name: what is measured, `protocol/<task>`, `plain/<task>`, `chat/<task>` or `repetition`.
        file: its rows, relative to the folder.
        inputs: hashes of all it read: weights, tokenizer and template, task, settings.
    """

    folder: Path
    name: str
    file: str
    inputs: dict[str, str]

    @property
    def rows(self) -> Path:
        return self.folder / self.file

    def kept(self) -> dict[str, Any] | None:
        """The entry, if it was measured from the same inputs and its rows are as they were."""
        record = read_record(self._record, "inputs", "size", "entry")
        if record is None or record["inputs"] != self.inputs or not self.rows.is_file():
            return None
        if self.rows.stat().st_size != record["size"]:
            return None
        # Records of before say nothing of what the rows hold.
        same = record.get("rows") in (None, file_hash(self.rows))
        return record["entry"] if same else None

    def keep(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Record the entry of rows that were written; the record comes last, and whole.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            size = self.rows.stat().st_size
            facts = {"inputs": self.inputs, "size": size, "rows": file_hash(self.rows)}
            write_record(self._record, facts | {"entry": entry})
        except OSError as error:
            raise not_written(self._record, error) from None
        return entry

    @property
    def _record(self) -> Path:
        return self.folder / KEPT / f"{self.name}.json"


def not_written(path: Path, error: OSError) -> UserError:
    """The sentence for a disk that is full or a folder that may not be written."""
    return UserError(
        f"{error.filename or path} cannot be written ({error.strerror}); what was measured before "
        "is kept: mend it and start the same command again"
    )
