"""HPDv3 (2508.03789): pairs as JSON with paths beside the file, the first being the preferred one, and how many people chose each."""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

UNDER = (".", "images")


def parse(row: Row) -> Record:
    """Return the pair in the file's order. `prob` is the larger share of `choice_dist`, or 1 where the file does not count votes."""
    votes = [1.0, 0.0] if row.value.get("choice_dist") is None else row.numbers("choice_dist", 2)
    if min(votes) < 0.0 or sum(votes) <= 0.0:
        raise RecordError(f"{row.where}: column `choice_dist` is {votes}; expected how many people chose each")
    candidates = tuple(
        Candidate(image=row.encoded(row.get(f"path{side}"), f"path{side}", under=UNDER), model=row.optional(f"model{side}"))
        for side in (1, 2)
    )
    meta = {name: text for name in ("confidence", "source") if (text := row.optional(name)) is not None}
    prompt = row.text("prompt", aliases=("caption",))
    return Record(id=row.id, prompt=prompt, candidates=candidates, prob=max(votes) / sum(votes), source=row.where, meta=meta)


HPDV3 = Reader(open_rows, parse, ("prompt|caption", "path1", "path2"), "HPDv3 (prompt, path1, path2, choice_dist, confidence)")
