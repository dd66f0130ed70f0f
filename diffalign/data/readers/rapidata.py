"""Rapidata's preferences on Hugging Face: two pictures, and shares of people, weighted by their reliability, in up to three questions."""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

QUESTIONS = ("preference", "alignment", "coherence")


def parse(row: Row) -> Record:
    """Return the pair in the file's order, with both pictures' weighted shares as scores.

    `prob` is the first picture's share of the first question that the file asks, of preference, alignment and coherence.
    """
    scores: list[dict[str, float]] = [{}, {}]
    for question in QUESTIONS:
        if row.optional(_column(1, question)) is not None:
            for side in (1, 2):
                scores[side - 1][question] = row.number(_column(side, question))
    first = next(iter(scores[0]))
    total = scores[0][first] + scores[1][first]
    if min(scores[0][first], scores[1][first]) < 0.0 or total <= 0.0:
        raise RecordError(f"{row.where}: `{_column(1, first)}` and `{_column(2, first)}` add up to {total:g}; expected shares above zero")
    candidates = tuple(
        Candidate(image=row.image(f"image{side}"), scores=scores[side - 1], model=row.optional(f"model{side}")) for side in (1, 2)
    )
    prob, meta = scores[0][first] / total, {"question": first}
    return Record(id=row.id, prompt=row.text("prompt"), candidates=candidates, prob=prob, source=row.where, meta=meta)


def _column(side: int, question: str) -> str:
    return f"weighted_results_image{side}_{question}"


def matches(row: Row) -> bool:
    """Return whether a row has an answer to one of the questions."""
    return any(row.value.get(_column(1, question)) is not None for question in QUESTIONS)


RAPIDATA = Reader(
    open_rows,
    parse,
    ("prompt", "image1", "image2", "|".join(_column(1, question) for question in QUESTIONS)),
    "Rapidata (prompt, image1, image2, weighted_results_image1_preference)",
    matches,
)
