"""The PandaLM test set: two responses to an instruction and the votes of three annotators (2306.05087)."""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

ANNOTATORS = ("annotator1", "annotator2", "annotator3")
SHARES = {0.0: 0.5, 1.0: 1.0, 2.0: 0.0}  # how much a vote counts for response1; vote 0 is a tie


def parse(row: Row) -> Record:
    """Return the pair in the file's order; `prob` is the mean vote for response1, a tie counting half, and `meta` holds each vote."""
    votes = {name: row.number(name) for name in ANNOTATORS}
    for name, vote in votes.items():
        if vote not in SHARES:
            raise RecordError(f"{row.where}: column `{name}` is {vote:g}; expected 0 (tie), 1 or 2")
    # Six published responses are the JSON value true: upstream, the text "True" lost its quotes.
    responses = [str(row.get(name, (str, bool))) for name in ("response1", "response2")]
    extra = row.optional("input")
    return Record(
        id=row.id,
        prompt=row.text("instruction") + (f"\n\n{extra}" if extra else ""),
        candidates=tuple(Candidate(text=response) for response in responses),
        prob=sum(SHARES[vote] for vote in votes.values()) / len(votes),
        source=row.where,
        meta={name: f"{vote:g}" for name, vote in votes.items()},
    )


PANDALM = Reader(
    open_rows,
    parse,
    ("instruction", "response1", "response2", *ANNOTATORS),
    "PandaLM test set (instruction, input, response1, response2, annotator1 to annotator3)",
)
