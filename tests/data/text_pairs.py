"""Text pairs by number, for tests of tables."""

from __future__ import annotations

from pathlib import Path

from diffalign.data.records import Candidate, Record


def pair(number: int, **fields) -> Record:
    """Return a text pair with id `number`."""
    plain = {"prompt": f"prompt {number}", "candidates": (Candidate(text="yes"), Candidate(text="no")), "prob": 1.0}
    return Record(**{"id": str(number), "source": f"rows.csv row {number}", **plain, **fields})


def pairs(count: int) -> list[Record]:
    return [pair(number) for number in range(count)]


def names(folder: Path) -> list[str]:
    """Return everything in `folder`, hidden files included."""
    return sorted(path.name for path in folder.iterdir())
