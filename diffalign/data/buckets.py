"""Aspect-ratio buckets: which of a few sizes the images of a row get, and an order of the records in which batches share one.

A row's bucket is chosen from all its images, whatever transforms make of the row: its records differ in order and labels, not in size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

from diffalign.core.errors import RecordError
from diffalign.data.cache import Bank, progress
from diffalign.data.pixels import Framing, Size
from diffalign.data.records import Record
from diffalign.data.view import View

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations of a picture that is turned by a quarter


def nearest(sizes: Sequence[Size], buckets: Sequence[Size]) -> int:
    """Return the number of the bucket whose aspect ratio is nearest, as a ratio, to the geometric mean of those of `sizes`.

    The first of several. For one image and buckets of one area this is the choice of diffusers' `find_nearest_bucket`, which among
    buckets of unlike area leans to the small ones.
    """
    ratio = sum(math.log(height / width) for height, width in sizes) / len(sizes)
    distances = [abs(math.log(height / width) - ratio) for height, width in buckets]
    return distances.index(min(distances))


def image_size(data: bytes, where: str) -> Size:
    """Return (height, width) of the upright image in `data`, from its header alone. Raises RecordError that names `where`."""
    try:
        image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecordError(f"{where}: the image does not decode ({error}); expected a whole JPEG, PNG or WebP file") from error
    # The method of the base class: that of PNG files decodes the whole picture to look behind it for an orientation.
    turned = Image.Image.getexif(image).get(Base.Orientation) in SIDEWAYS
    return (image.width, image.height) if turned else (image.height, image.width)


def record_bucket(record: Record, buckets: Sequence[Size]) -> int:
    """Return the number of a record's bucket."""
    return nearest([image_size(c.image or b"", f"{record.source}, candidate {i}") for i, c in enumerate(record.candidates)], buckets)


class Sizes:
    """The size that the images of each table row get; the constructor reads their headers, where there are buckets.

    What `bank` (table rows,) holds is not read again, and what is read goes into it.
    """

    def __init__(self, view: View, framing: Framing, bank: Bank | None = None) -> None:
        self.framing = framing
        self.numbers = np.full(len(view.table), -1)  # of buckets; -1 is the square
        rows = sorted({entry.row for entry in view.entries if entry.order}) if framing.buckets else []
        for part in progress(rows if bank is None else bank.missing(rows), 64, "read image sizes"):
            self.numbers[part] = [record_bucket(view.table[row], framing.buckets) for row in part]
            if bank is not None:
                bank.write(part, self.numbers[part])
        if bank is not None:
            self.numbers[rows] = bank.read(rows)

    def __getitem__(self, row: int) -> Size:
        number = self.numbers[row]
        return self.framing.square if number < 0 else self.framing.buckets[number]

    def buckets(self, view: View) -> np.ndarray | None:
        """Return the number of the bucket of each of the view's records, None where all images get one size."""
        return self.numbers[[entry.row for entry in view.entries]] if self.framing.buckets else None


def alike(items: Iterable[int], kinds: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Return `items` apart by kind, `kinds[i]` being that of the i-th; in order, and kinds in the order in which they appear.

    >>> alike([7, 8, 9], [1, 0, 1])
    [[7, 9], [8]]
    """
    groups: dict[int, list[int]] = {}
    for item, kind in zip(items, kinds, strict=True):
        groups.setdefault(int(kind), []).append(item)
    return list(groups.values())


def block_order(kinds: np.ndarray, block: int, first: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random permutation of the records, `kinds` (n,) being their buckets, in which as many blocks as can be hold one bucket.

    A block is `block` samples of the run that start at a multiple of it; the records are samples `first` to `first + n`. So an epoch may
    begin and end within a block: those two pieces, and fewer whole blocks than there are buckets, are made up of what is left over.
    """
    head = min(-first % block, len(kinds))
    whole = (len(kinds) - head) // block
    pure, left = _pure_blocks(kinds, block, rng)
    # There may be room for one block less than there are.
    rest = np.concatenate([pure[whole:].ravel(), left])
    mixed = rest[head : head + (whole - len(pure[:whole])) * block].reshape(-1, block)
    blocks = rng.permutation(np.concatenate([pure[:whole], mixed]))
    return np.concatenate([rest[:head], blocks.ravel(), rest[head + mixed.size :]])


def _pure_blocks(kinds: np.ndarray, block: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return blocks of one kind each, (m, block), in random order, and what is left over, less than a block of any kind."""
    shuffled = rng.permutation(len(kinds))
    groups = [shuffled[kinds[shuffled] == kind] for kind in rng.permutation(np.unique(kinds))]
    cuts = [len(group) // block * block for group in groups]
    pure = np.concatenate([group[:cut] for group, cut in zip(groups, cuts, strict=True)]).reshape(-1, block)
    return rng.permutation(pure), np.concatenate([group[cut:] for group, cut in zip(groups, cuts, strict=True)])
