"""Readers of published datasets and of people's own files, by name."""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row, open_rows, read
from diffalign.data.readers.pickapic import PICKAPIC

READERS: dict[str, Reader] = {
    "pickapic": PICKAPIC,
}

__all__ = ["READERS", "Reader", "Row", "open_rows", "read"]
