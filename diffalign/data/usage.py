"""What becomes of a table's records: how many are trained on, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from diffalign.data.records import Record

UNLABELLED, ALONE, TIES = "have no label or rank", "have one candidate", "ties"
EXPANDING = ("pairs", "list_of")  # the transforms that leave nothing of a record without a preference


class Usage:
    """Counts of records: all, those that are trained on, the examples made of them, and those that are not, by reason."""

    def __init__(self) -> None:
        self.records = self.trained = self.examples = self.unranked = 0
        self.cut_prompts = 0  # distinct prompts of which the text encoder reads the beginning alone
        self.dropped: Counter[str] = Counter()

    def add(self, record: Record, made: Sequence[Record], dropped_by: str) -> None:
        """Count a table's record, what the transforms made of it, and the transform that left nothing."""
        self.records += 1
        self.examples += len(made)
        if made:
            self.trained += 1
            ranks = [candidate.rank for candidate in record.candidates]
            self.unranked += ranks.count(None) if record.prob is None and any(rank is not None for rank in ranks) else 0
        else:
            self.dropped[_reason(record, dropped_by)] += 1

    def add_pairs(self, records: int, dropped: Mapping[str, int]) -> None:
        """Count labelled pairs of the table, and how many of them each transform has left out; each of the others is one example."""
        left = records - sum(dropped.values())
        self.records, self.examples, self.trained = self.records + records, self.examples + left, self.trained + left
        for name, count in dropped.items():
            if count:
                self.dropped[TIES if name == "drop_ties" else f"left out by `{name}`"] += count

    def leave_out(self, records: int, reason: str) -> None:
        """Count records that were to be trained on, and are not after all."""
        self.trained -= records
        if records:
            self.dropped[reason] += records

    def without_preference(self) -> int:
        """Return how many records were dropped because they state no preference between candidates."""
        return self.dropped[UNLABELLED] + self.dropped[ALONE]

    def facts(self) -> dict[str, Any]:
        """Return the counts as plain JSON."""
        counts = {"records": self.records, "trained": self.trained, "dropped": dict(self.dropped)}
        more = {"unranked_candidates": self.unranked, "cut_prompts": self.cut_prompts}
        return counts | {name: count for name, count in more.items() if count}

    def __str__(self) -> str:
        """Return the counts in one line: "4 records: 1 trains; 3 have no label or rank, 0 ties"."""
        counts = {UNLABELLED: 0, TIES: 0} | self.dropped
        line = f"{self.records:,} records: {self.trained:,} train{'s' if self.trained == 1 else ''}; "
        line += ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        return line + (f"; {self.unranked:,} candidates without a rank are left out" if self.unranked else "")


def _reason(record: Record, dropped_by: str) -> str:
    """Return why a transform left nothing of a record."""
    if dropped_by == "drop_ties":
        return TIES
    if dropped_by in EXPANDING and len(record.candidates) == 1:
        return ALONE
    ranked = sum(candidate.rank is not None for candidate in record.candidates)
    return UNLABELLED if dropped_by in EXPANDING and ranked < 2 else f"left out by `{dropped_by}`"
