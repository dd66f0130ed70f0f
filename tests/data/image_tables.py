"""Tables of a few plain images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from tests.data.text_pairs import pair


def png(width: int, height: int, color: str = "red") -> bytes:
    return encode_image(Image.new("RGB", (width, height), color))


def image_pair(number: int, first: bytes, second: bytes, **fields) -> Record:
    shown = (Candidate(image=first), Candidate(image=second))
    return pair(number, **{"candidates": shown, **fields})


def image_table(folder: Path, **facts):
    """Return a table of four image pairs: strict for the first, strict for the second, a tie and a soft one."""
    small, large, wide = png(32, 32), png(64, 64, "blue"), png(64, 32, "green")
    records = [
        image_pair(0, small, large, prob=1.0, user="ann"),
        image_pair(1, wide, large, prob=0.0, user="ann", prompt="prompt 0"),
        image_pair(2, large, wide, prob=0.5, user="bob"),
        image_pair(3, large, small, prob=0.75),
    ]
    return write_table(folder / "t", records, **facts)
