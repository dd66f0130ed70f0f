"""MultiPref (2410.19133): two answers, and what two crowd workers and two experts prefer, in three aspects and overall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

VOTES = {"A-is-clearly-better": 1.0, "A-is-slightly-better": 1.0, "Tie": 0.5, "B-is-slightly-better": 0.0, "B-is-clearly-better": 0.0}
ASPECTS = ("helpful", "truthful", "harmless")
GROUPS = ("normal_worker_annotations", "expert_worker_annotations")


def parse(row: Row) -> Record:
    """Return the pair in the file's order; `prob` is the share of the people who prefer the first overall, a tie one half of a vote.

    Of every aspect both answers have as score the share of votes for them. Votes count alike, slight and clear, of workers and experts.
    """
    people = [one for group in GROUPS for one in _people(row, group)]
    if not people:
        raise RecordError(f"{row.where}: nobody has voted; expected entries in `{GROUPS[0]}` or `{GROUPS[1]}`")
    shares = {aspect: _share(row, people, f"{aspect}_pref") for aspect in ASPECTS}
    scores = [{aspect: share if first else 1.0 - share for aspect, share in shares.items() if share is not None} for first in (True, False)]
    candidates = tuple(
        Candidate(text=row.text(f"completion_{side}"), scores=own, model=row.optional(f"model_{side}"))
        for side, own in zip("ab", scores, strict=True)
    )
    prob = _share(row, people, "overall_pref")
    if prob is None:
        raise RecordError(f"{row.where}: no entry has `overall_pref`")
    meta = {name: text for name in ("comparison_id", "prompt_id", "source", "category") if (text := row.optional(name)) is not None}
    return Record(id=row.id, prompt=row.text("text"), candidates=candidates, prob=prob, source=row.where, meta=meta)


def _people(row: Row, group: str) -> list[Mapping[str, Any]]:
    people = row.value.get(group)
    if people is None:
        return []
    if not isinstance(people, list) or not all(isinstance(one, Mapping) for one in people):
        raise RecordError(f"{row.where}: column `{group}` is {type(people).__name__}; expected a list of objects")
    return people


def _share(row: Row, people: list[Mapping[str, Any]], name: str) -> float | None:
    """Return the share of votes for the first answer, None where nobody voted in this aspect."""
    given: list[Any] = [one.get(name) for one in people if one.get(name) not in (None, "", "Both are not applicable")]
    if odd := [vote for vote in given if vote not in VOTES]:
        raise RecordError(f"{row.where}: `{name}` is {odd[0]!r}; expected one of {', '.join(VOTES)}")
    return sum(VOTES[vote] for vote in given) / len(given) if given else None


MULTIPREF = Reader(
    open_rows,
    parse,
    ("text", "completion_a", "completion_b", "normal_worker_annotations|expert_worker_annotations"),
    "MultiPref (text, completion_a, completion_b, normal_worker_annotations)",
)
