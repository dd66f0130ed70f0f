"""The layout for people's own image pairs, in JSONL, CSV, TSV, parquet or arrow; paths are relative to the file's folder.

Columns: `prompt` (or `caption`); `image_0`, `image_1` and `label_0`, which is the share of votes for image_0 in [0, 1], or "tie"; or
`chosen` and `rejected` without a label. Optional: `label_1`, `user_id` (or `user`), `model_0`, `model_1`, `weight`.
"""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import IMAGE_SUFFIXES, Reader, Row, open_rows
from diffalign.data.records import Candidate, Record

SIDES = (("image_0", "model_0", "chosen"), ("image_1", "model_1", "rejected"))


def parse(row: Row) -> Record:
    """Return the pair in the order of its columns, image_0 first."""
    candidates = tuple(
        Candidate(image=row.image(image, aliases=(alias,)), model=row.optional(model, aliases=(f"{alias}_model",)))
        for image, model, alias in SIDES
    )
    return Record(
        id=row.id,
        prompt=row.text("prompt", aliases=("caption",)),
        candidates=candidates,
        prob=_label(row),
        user=row.optional("user_id", aliases=("user",)),
        source=row.where,
        meta={} if row.optional("weight") is None else {"weight": str(row.number("weight"))},
    )


def _label(row: Row) -> float:
    if "label_0" not in row.value and "chosen" in row.value:
        return 1.0
    label = _share(row, "label_0")
    if row.optional("label_1") is not None and abs(label + _share(row, "label_1") - 1.0) > 1e-6:
        raise RecordError(f"{row.where}: `label_0` is {label} and `label_1` {_share(row, 'label_1')}; expected a sum of 1")
    return label


def _share(row: Row, name: str) -> float:
    if str(row.value.get(name)).strip().lower() == "tie":
        return 0.5
    share = row.number(name)
    if not 0.0 <= share <= 1.0:
        raise RecordError(f"{row.where}: column `{name}` is {share}; expected a number in [0, 1] or `tie`")
    return share


def holds_images(row: Row) -> bool:
    """Return whether both candidates of a row are images (bytes, a `{bytes, path}` struct or the path of an image file), not texts."""
    values = [next((row.value[key] for key in (image, alias) if key in row.value), None) for image, _, alias in SIDES]
    return all(_is_image(value) for value in values)


def _is_image(value: object) -> bool:
    if isinstance(value, dict):
        return bool({"bytes", "path"} & value.keys())
    return isinstance(value, bytes) or (isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES))


COLUMNS = Reader(
    open_rows,
    parse,
    ("prompt|caption", "image_0|chosen", "image_1|rejected"),
    "your own image pairs (prompt, image_0, image_1, label_0; or prompt, chosen, rejected)",
    holds_images,
)
