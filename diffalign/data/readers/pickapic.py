"""Pick-a-Pic v1 and v2: parquet, arrow or `save_to_disk` folders, with the columns of the hub card (2305.01569)."""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

META = ("num_example_per_prompt", "scored_by")  # the second is no column of the hub's: whose scores the file holds, where not PickScore's


def parse(row: Row) -> Record:
    """Return the pair in the file's order. `prob` is `label_0`: 1 where jpg_0 won, 0 where jpg_1 won, 0.5 for a tie.

    It is None where the column `has_label` is false.
    """
    candidates = tuple(
        Candidate(
            image=row.image(f"jpg_{side}"),
            scores={} if row.optional(f"ps_score_{side}") is None else {"pickscore": row.number(f"ps_score_{side}")},
            model=row.optional(f"model_{side}"),
            uid=row.optional(f"image_{side}_uid"),
            conditioning_image=row.conditioning_image(f"_{side}"),
        )
        for side in (0, 1)
    )
    return Record(
        id=row.id,
        prompt=row.text("caption"),
        candidates=candidates,
        prob=None if row.value.get("has_label") is False else _label(row),
        user=row.user(),
        source=row.where,
        meta={name: text for name in META if (text := row.optional(name)) is not None},
        conditioning_image=row.conditioning_image(),
    )


def _label(row: Row) -> float:
    label = row.number("label_0")
    if label not in (0.0, 0.5, 1.0):
        raise RecordError(f"{row.where}: column `label_0` is {label}; expected 0, 0.5 or 1")
    if row.optional("label_1") is not None and row.number("label_1") != 1.0 - label:
        raise RecordError(f"{row.where}: `label_0` is {label} and `label_1` {row.number('label_1')}; expected a sum of 1")
    return label


PICKAPIC = Reader(open_rows, parse, ("caption", "jpg_0", "jpg_1", "label_0"), "Pick-a-Pic v1 and v2 (caption, jpg_0, jpg_1, label_0)")
