"""Pick-a-Pic v1 and v2: parquet, arrow or `save_to_disk` folders, with the columns of the hub card (2305.01569)."""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row, open_rows
from diffalign.data.records import Candidate, Record
from diffalign.errors import RecordError


def parse(row: Row) -> Record:
    """Return the pair as shown; `label_0` is 1 where jpg_0 won, 0 where jpg_1 won, 0.5 for a tie."""
    label = row.number("label_0")
    if label not in (0.0, 0.5, 1.0):
        raise RecordError(f"{row.where}: column `label_0` is {label}; expected 0, 0.5 or 1")
    value = row.value
    candidates = tuple(
        Candidate(
            image=row.image(f"jpg_{side}"),
            scores={} if value.get(f"ps_score_{side}") is None else {"pickscore": row.number(f"ps_score_{side}")},
            model=value.get(f"model_{side}"),
            uid=value.get(f"image_{side}_uid"),
        )
        for side in (0, 1)
    )
    user = value.get("user_id")
    return Record(
        id=row.id,
        prompt=row.text("caption"),
        candidates=candidates,
        prob=label,
        user=None if user is None else str(user),
        source=row.where,
    )


PICKAPIC = Reader(open_rows, parse, ("caption", "jpg_0", "jpg_1", "label_0"), "Pick-a-Pic v1/v2 columns (caption, jpg_0, jpg_1, label_0)")
