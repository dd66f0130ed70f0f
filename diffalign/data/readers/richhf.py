"""RichHF-18K (2312.10240): four scores of one picture, and which words of its prompt it misses, as rows beside the pictures.

The published TFRecords name pictures of Pick-a-Pic and do not hold them; rows that join both (file, prompt or caption, and the TFRecord's
fields) are read here. All scores are better the higher they are. The heatmaps are not read.
"""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

SCORES = ("aesthetics_score", "artifact_score", "misalignment_score", "overall_score")
WORDS = "prompt_misalignment_label"  # a text of 0 (missed) and 1 for each token of the prompt


def parse(row: Row) -> Record:
    """Return the picture with its four scores; its label is whether `overall_score` is above the middle of [0, 1]."""
    scores = {name.removesuffix("_score"): row.number(name) for name in SCORES}
    if not 0.0 <= scores["overall"] <= 1.0:
        raise RecordError(f"{row.where}: column `overall_score` is {scores['overall']:g}; expected a number in [0, 1]")
    meta = {WORDS: row.text(WORDS)} if row.optional(WORDS) else {}
    picture = Candidate(image=row.image("image", aliases=("filename", "file_name")), scores=scores)
    prompt = row.text("prompt", aliases=("caption",))
    return Record(id=row.id, prompt=prompt, candidates=(picture,), prob=float(scores["overall"] > 0.5), source=row.where, meta=meta)


RICHHF = Reader(
    open_rows,
    parse,
    ("image|filename|file_name", "prompt|caption", "artifact_score", "misalignment_score", "overall_score", "aesthetics_score"),
    "RichHF-18K joined with its pictures (filename, prompt, aesthetics_score, ...)",
)
