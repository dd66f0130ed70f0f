"""HPDv2 raw JSON beside its images (2306.09341): `train.json` holds pairs, `test.json` rankings of up to nine images.

A rank is the annotators' average, and lower is better: the released evaluation counts inversions against ranks that begin at the
highest logit.
"""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

FOLDERS = (".", "train", "test")  # where copies of the dataset keep the images, relative to the folder of the JSON file


def parse(row: Row) -> Record:
    """Return a pair with `prob` 1 or 0, or a ranking with the rank of each candidate; the order is the file's."""
    paths = row.get("file_path", list, aliases=("image_path", "images"))
    prompt = row.text("prompt")
    if "human_preference" in row.value:
        ranks, prob = [None] * len(paths), _preference(row)
    else:
        ranks, prob = row.numbers("rank" if "rank" in row.value else "ranking", len(paths)), None
    candidates = tuple(
        Candidate(image=row.encoded(path, "file_path", under=FOLDERS), rank=rank) for path, rank in zip(paths, ranks, strict=True)
    )
    return Record(id=row.id, prompt=prompt, candidates=candidates, prob=prob, source=row.where)


def _preference(row: Row) -> float:
    chosen = row.numbers("human_preference", 2)
    if sorted(chosen) != [0.0, 1.0]:
        raise RecordError(f"{row.where}: column `human_preference` is {row.value['human_preference']}; expected [1, 0] or [0, 1]")
    return chosen[0]


HPDV2 = Reader(
    open_rows,
    parse,
    ("prompt", "file_path|image_path|images", "human_preference|rank|ranking"),
    "HPDv2 pairs (prompt, file_path, human_preference) and rankings (prompt, image_path, rank)",
)
