"""UltraFeedback as first published (2310.01377): four answers to an instruction, each rated in four aspects and with an overall score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
OVERALL = ("overall_score", "fine-grained_score")


def parse(row: Row) -> Record:
    """Return the answers in the file's order, with a score of every rated aspect, ranked by the overall score.

    Ratings of `N/A` are left out. The critique of the best answer is kept in the column `rationale`.
    """
    completions = row.get("completions", list)
    answers = [_answer(row, place, one) for place, one in enumerate(completions)]
    overall = [answer.scores.get("overall_score") for answer in answers]
    ranks = [None if own is None else 1.0 + sum(o is not None and o > own for o in overall) for own in overall]
    candidates = tuple(
        Candidate(text=answer.text, scores=answer.scores, model=answer.model, rank=rank)
        for answer, rank in zip(answers, ranks, strict=True)
    )
    critiques = [one.get("critique") for one, rank in zip(completions, ranks, strict=True) if rank == 1.0]
    meta = {"rationale": critiques[0]} if critiques and isinstance(critiques[0], str) else {}
    if row.optional("source"):
        meta["dataset"] = row.text("source")
    return Record(id=row.id, prompt=row.text("instruction"), candidates=candidates, source=row.where, meta=meta)


def _answer(row: Row, place: int, one: Any) -> Candidate:
    where = f"{row.where}: completion {place}"
    if not isinstance(one, Mapping) or not isinstance(one.get("response"), str):
        raise RecordError(f"{where} has no `response`; expected an object with a text `response` and `annotations`")
    scores = {name.replace("-", "_"): value for name in OVERALL if (value := _rating(one.get(name), where, name)) is not None}
    annotations = one.get("annotations")
    for aspect in ASPECTS:
        rated = annotations.get(aspect) if isinstance(annotations, Mapping) else None
        if isinstance(rated, Mapping) and (value := _rating(rated.get("Rating"), where, aspect)) is not None:
            scores[aspect] = value
    model = one.get("model")
    return Candidate(text=one["response"], scores=scores, model=model if isinstance(model, str) else None)


def _rating(value: Any, where: str, name: str) -> float | None:
    """Return a rating, None for none. Raises RecordError for a text that is no number."""
    if value in (None, "", "N/A") or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: `{name}` is {value!r}; expected a number or N/A") from error


ULTRAFEEDBACK_ORIGINAL = Reader(
    open_rows, parse, ("instruction", "completions"), "UltraFeedback as first published (instruction, completions with annotations)"
)
