"""Writes labelled pairs as files that other programs read: Pick-a-Pic's parquet, or JSONL and CSV with pictures as files beside them."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.core.errors import ConfigError, TableError
from diffalign.core.files import atomic_file, atomic_folder
from diffalign.data.pictures import read_header
from diffalign.data.records import Record

logger = logging.getLogger(__name__)
SUFFIXES = (".parquet", ".jsonl", ".csv")
PICKAPIC = pa.schema(
    [
        ("caption", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("has_label", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("image_0_uid", pa.string()),
        ("image_1_uid", pa.string()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("user_id", pa.string()),
    ]
)
COLUMNS: tuple[str, ...] = ("id", "prompt", "image_0", "image_1", "label_0", "user_id", "model_0", "model_1")
CONDITIONING = ("conditioning_image", "conditioning_image_0", "conditioning_image_1")  # further columns, those that a table has


def export_pairs(records: Iterable[Record], destination: str | Path) -> int:
    """Write the labelled pairs of pictures among `records`, and return how many there are; a warning counts the records that are left out.

    Args:
        records: a table, or any iterable of records.
        destination: NAME.parquet in Pick-a-Pic's columns; or NAME.jsonl or NAME.csv with prompt, image_0, image_1 and label_0, whose
            pictures go into the folder NAME_images beside it. `diffalign data import` reads each of them.

    Raises ConfigError for another suffix or a file that is there already, TableError where no record is a labelled pair of pictures.

    Example:
        >>> export_pairs(read_table("votes"), "votes.parquet")  # doctest: +SKIP
    """
    path = Path(destination)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"`destination` is {destination}; expected a file that ends in {', '.join(SUFFIXES)}")
    images = path.with_name(f"{path.stem}_images")
    for there in (path, *([] if path.suffix == ".parquet" else [images])):
        if there.exists():
            raise ConfigError(f"{there} exists already; choose another `destination`, or remove it")
    pairs = _labelled_pairs(records)
    if path.suffix == ".parquet":
        with atomic_file(path) as file:
            rows = [_pickapic(record) | _conditioning(record) for record in pairs]
            further = [(name, pa.binary()) for name in CONDITIONING if any(name in row for row in rows)]
            pq.write_table(pa.Table.from_pylist(rows, pa.schema([*PICKAPIC, *further])), file)
        return len(pairs)
    with atomic_folder(images) as folder:
        rows = list(_with_files(pairs, folder, images.name))
    with atomic_file(path) as file:
        file.write_text(_jsonl(rows) if path.suffix == ".jsonl" else _csv(rows), encoding="utf-8", newline="")
    return len(pairs)


def _labelled_pairs(records: Iterable[Record]) -> list[Record]:
    """Return the labelled pairs of pictures, and log how many records are none. Raises TableError where all are."""
    pairs, others = list[Record](), 0
    for record in records:
        if record.kind == "image" and len(record.candidates) == 2 and record.prob is not None:
            pairs.append(record)
        else:
            others += 1
    if not pairs:
        raise TableError("no labelled pair of pictures; expected records with two pictures and a preference")
    if others:
        logger.warning("%d records are no labelled pairs of pictures (rankings, votes without a preference) and are left out", others)
    return pairs


def _pickapic(record: Record) -> dict[str, Any]:
    first, second = record.candidates
    uids = [candidate.uid or f"{record.id}-{side}" for side, candidate in enumerate(record.candidates)]
    assert record.prob is not None  # of a labelled pair
    best = "tie" if record.prob == 0.5 else uids[record.prob < 0.5]
    return {
        "caption": record.prompt,
        "jpg_0": first.image,
        "jpg_1": second.image,
        "label_0": record.prob,
        "label_1": 1.0 - record.prob,
        "has_label": True,
        "best_image_uid": best,
        "image_0_uid": uids[0],
        "image_1_uid": uids[1],
        "model_0": first.model,
        "model_1": second.model,
        "user_id": record.user,
    }


def _conditioning(record: Record) -> dict[str, bytes]:
    """Return the conditioning images of a record and of its candidates, by their columns."""
    images = (record.conditioning_image, *(candidate.conditioning_image for candidate in record.candidates))
    return {name: image for name, image in zip(CONDITIONING, images, strict=True) if image is not None}


def _with_files(pairs: Iterable[Record], folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Write the pictures of each pair into `folder`, and yield its row, which names them as lying in the folder `name`."""
    for number, record in enumerate(pairs):
        pictures = {str(side): candidate.image or b"" for side, candidate in enumerate(record.candidates)}
        files = {}
        for ending, image in {**pictures, **_conditioning(record)}.items():
            kind = read_header(image, record.source).format.lower()
            files[ending] = f"{name}/{number:06d}_{ending}.{kind}"
            (folder / f"{number:06d}_{ending}.{kind}").write_bytes(image)
        models = [candidate.model for candidate in record.candidates]
        values = (record.id, record.prompt, files.pop("0"), files.pop("1"), record.prob, record.user, *models)
        yield {**dict(zip(COLUMNS, values, strict=True)), **files}


def _jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    there = list(rows)
    writer = csv.DictWriter(text, [*COLUMNS, *(name for name in CONDITIONING if any(name in row for row in there))])
    writer.writeheader()
    writer.writerows(there)
    return text.getvalue()
