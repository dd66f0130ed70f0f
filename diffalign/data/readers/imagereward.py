"""ImageRewardDB (2304.05977): rankings in raw JSON, or one image per row with ratings from 1 to 7; images lie beside the file.

Rank 1 is the best; ranks have gaps and ties. Several rankings may share a prompt, so a ranking is identified by its id.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

RATINGS = ("overall_rating", "image_text_alignment_rating", "fidelity_rating")


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield one row per ranking: consecutive one-image rows with the same `prompt_id` are joined, other rows are left as they are."""
    for key, group in groupby(open_rows(source, split), key=_key):
        if key is None:
            yield from group
        else:
            yield _join(key, list(group))


def _key(row: Row) -> str | None:
    return row.optional("prompt_id") if "generations" not in row.value else None


def _join(key: str, images: list[Row]) -> Row:
    first = images[0]
    where = f"{first.where} to {images[-1].id.rsplit(':', 1)[-1]} (prompt_id {key})"
    value = {"id": key, "prompt": first.value.get("prompt"), "generations": images, "ranking": [row.value.get("rank") for row in images]}
    broken = next((row.broken for row in images if row.broken), "")
    if any(row.value.get("prompt") != value["prompt"] for row in images):
        broken = f"{where}: two prompts under one prompt_id; expected the same `prompt` in each row"
    return Row(value, where, first.id, first.folder, broken)


def parse(row: Row) -> Record:
    """Return the ranking with the rank of each candidate, and the ratings as its scores where the table has them."""
    generations = row.get("generations", list)
    ranks = row.numbers("ranking", len(generations))
    candidates = tuple(_candidate(row, image, rank) for image, rank in zip(generations, ranks, strict=True))
    return Record(id=row.text("id"), prompt=row.text("prompt"), candidates=candidates, source=row.where)


def _candidate(row: Row, image: object, rank: float) -> Candidate:
    if not isinstance(image, Row):
        return Candidate(image=row.encoded(image, "generations"), rank=rank)
    scores = {name: image.number(name) for name in RATINGS if image.optional(name) is not None}
    return Candidate(image=_tabular_image(image), rank=rank, scores=scores)


def _tabular_image(row: Row) -> bytes:
    """Return the image of a row. `image_path` is relative to the dataset's root, so the folder of the file is searched for its name too."""
    value = row.get("image", (bytes, dict, str), aliases=("image_path",))
    try:
        return row.encoded(value, "image")
    except RecordError:
        if not isinstance(value, str):
            raise
        return row.encoded(PurePosixPath(value).name, "image")


IMAGEREWARD = Reader(
    rows,
    parse,
    ("id", "prompt", "generations", "ranking"),
    "ImageRewardDB rankings (id, prompt, generations, ranking) or its table of one image per row (image, prompt_id, prompt, rank)",
)
