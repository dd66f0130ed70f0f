"""Corrected labels of a table, in a file of their own: the table stays as it is, and every correction is kept.

A line is {"record": id, "label": "left", "editor": "ada", "at": 1700000000.0}; the label is null where it was removed. Of several lines
about a record the last one counts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diffalign.core.errors import RecordError, shortened
from diffalign.data.questions import PROBABILITIES
from diffalign.data.records import Record


@dataclass(frozen=True, slots=True)
class Corrections:
    """The file of a table's corrections, which need not be there yet."""

    file: Path

    def add(self, record: str, editor: str, label: str | None) -> None:
        """Append a correction; it is on the disk afterwards. Raises RecordError for a label that is none of a pair."""
        line = json.dumps({"record": record, "label": self._checked(label, f"record {record}"), "editor": editor, "at": time.time()})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def labels(self) -> dict[str, str | None]:
        """Return the label that counts of each corrected record, None where it was removed; of no file, nothing.

        Raises RecordError for a line that is no correction.
        """
        labels = {}
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else (), start=1):
            where = f"{self.file} line {number}"
            try:
                row = json.loads(line)
                record, label = str(row["record"]), row["label"]
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(f'{where}: {shortened(repr(line))}; expected {{"record": "id", "label": "left"}}') from error
            labels[record] = self._checked(label, where)
        return labels

    def apply(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield records with their corrected labels; those whose label was removed are left out.

        Raises RecordError for a corrected record that is no pair.
        """
        labels = self.labels()
        for record in records:
            label = labels.get(record.id)
            if record.id not in labels:
                yield record
            elif label is not None:
                if len(record.candidates) != 2:
                    raise RecordError(f"{record.source}: corrected to {label!r}, and has {len(record.candidates)} candidates; expected two")
                yield replace(record, prob=PROBABILITIES[label])

    @staticmethod
    def _checked(label: str | None, where: str) -> str | None:
        if label is not None and label not in tuple(PROBABILITIES):  # of any JSON value
            raise RecordError(f"{where}: the label is {shortened(repr(label))}; expected {', '.join(PROBABILITIES)}, or null to remove it")
        return label
