"""Records of a few users, whose pictures have one colour each: its red and green say which picture it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.transforms import drop_ties, orient, pairs
from diffalign.data.view import View


def picture(number: int) -> Image.Image:
    """Return picture `number`."""
    return Image.new("RGB", (4, 4), (number % 256, number // 256, 50))


def number_of(image: Image.Image) -> int:
    """Return which picture it is."""
    red, green, _ = image.getpixel((0, 0))  # pyright: ignore[reportGeneralTypeIssues]  # of RGB, three numbers
    return red + 256 * green


def votes(counts: Sequence[tuple[str | None, int]], shown: int = 2) -> list[Record]:
    """Return so many records of each user: labelled pairs, or rankings of `shown` pictures.

    Record number i holds the pictures from `shown` * i on; of every other pair the second one is preferred.
    """
    records = []
    for user, count in counts:
        for _ in range(count):
            number = len(records)
            images = [encode_image(picture(shown * number + place)) for place in range(shown)]
            candidates = tuple(Candidate(image=image, rank=float(place)) for place, image in enumerate(images))
            prob = float(number % 2 == 0) if shown == 2 else None
            records.append(Record(f"r{number}", f"prompt {number}", candidates, prob, user, source=f"row {number}"))
    return records


def view_of(folder: Path, records: Iterable[Record]) -> View:
    """Return the records, preferred picture first, as a table's view."""
    return View(write_table(folder / "table", records), [pairs, drop_ties, orient])
