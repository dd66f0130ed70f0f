"""Readers of published datasets and of people's own files, by name."""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row, open_rows, read
from diffalign.data.readers.columns import COLUMNS
from diffalign.data.readers.folders import FOLDERS
from diffalign.data.readers.hpdv2 import HPDV2
from diffalign.data.readers.imagereward import IMAGEREWARD
from diffalign.data.readers.open_image_preferences import OPEN_IMAGE_PREFERENCES
from diffalign.data.readers.pickapic import PICKAPIC

READERS: dict[str, Reader] = {
    "columns": COLUMNS,
    "folders": FOLDERS,
    "hpdv2": HPDV2,
    "imagereward": IMAGEREWARD,
    "open_image_preferences": OPEN_IMAGE_PREFERENCES,
    "pickapic": PICKAPIC,
}

__all__ = ["READERS", "Reader", "Row", "open_rows", "read"]
