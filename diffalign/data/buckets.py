"""Aspect-ratio buckets: which of a few sizes the images of a table row get, and an order of records in which batches share one size.

A row's bucket is chosen from all its images, before any transform, so every record made of the row has the same bucket.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence

import numpy as np

from diffalign.core.processes import shares
from diffalign.core.progress import chunks
from diffalign.data.cache import Bank, filling
from diffalign.data.pictures import image_size
from diffalign.data.pixels import Framing, Size
from diffalign.data.records import Record
from diffalign.data.view import View


def nearest(sizes: Sequence[Size], buckets: Sequence[Size]) -> int:
    """Return the index of the bucket whose log aspect ratio is nearest to the mean log aspect ratio of `sizes`; the first on a tie.

    For one image and buckets of equal area this is the choice of diffusers' `find_nearest_bucket`, which prefers small buckets where
    areas differ.
    """
    ratio = sum(math.log(height / width) for height, width in sizes) / len(sizes)
    distances = [abs(math.log(height / width) - ratio) for height, width in buckets]
    return distances.index(min(distances))


def record_bucket(record: Record, buckets: Sequence[Size]) -> int:
    """Return the index of the bucket of a record's images."""
    return nearest([image_size(c.image or b"", f"{record.source}, candidate {i}") for i, c in enumerate(record.candidates)], buckets)


class ImageSizes:
    """The size that the images of each table row get; where there are buckets, the constructor reads the images' headers.

    A `bank` (table rows,) keeps the bucket of each row on disk, so that no header is read twice.
    """

    def __init__(self, view: View, framing: Framing, bank: Bank | None = None) -> None:
        self.framing = framing
        self.numbers = np.full(len(view.table), -1)  # (table rows,) index of each row's bucket; -1 is the square
        rows = view.entries.rows_with_images if framing.buckets else []
        with contextlib.nullcontext() if bank is None else filling(bank.folder):
            for own in [rows] if bank is None else shares(lambda: bank.missing(rows)):
                for part in chunks(own, 64, "read image sizes"):
                    self.numbers[part] = [record_bucket(view.table[row], framing.buckets) for row in part]
                    if bank is not None:
                        bank.write(part, self.numbers[part])
        if bank is not None:
            self.numbers[rows] = bank.read(rows)

    def __getitem__(self, row: int) -> Size:
        number = self.numbers[row]
        return self.framing.square if number < 0 else self.framing.buckets[number]

    def buckets(self, view: View) -> np.ndarray | None:
        """Return (records,) the index of the bucket of each of the view's records, or None where all images get one size."""
        return self.numbers[view.entries.rows] if self.framing.buckets else None


def grouped(items: Iterable[int], kinds: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Return `items` in groups of one kind, where `kinds[i]` is the kind of the i-th item; groups and items keep their order.

    >>> grouped([7, 8, 9], [1, 0, 1])
    [[7, 9], [8]]
    """
    groups: dict[int, list[int]] = {}
    for item, kind in zip(items, kinds, strict=True):
        groups.setdefault(int(kind), []).append(item)
    return list(groups.values())


def block_order(kinds: np.ndarray, block: int, first: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random permutation of n records in which as many blocks as possible hold records of one bucket; `kinds` (n,) are buckets.

    The run's samples are cut into blocks of `block`, and these records are samples `first` to `first + n`. An epoch may therefore begin
    and end within a block. These two partial blocks, and some whole ones (fewer than there are buckets), mix the remaining records.
    """
    head = min(-first % block, len(kinds))
    whole = (len(kinds) - head) // block
    pure, remainder = _pure_blocks(kinds, block, rng)
    # There may be room for one pure block less than there are.
    rest = np.concatenate([pure[whole:].ravel(), remainder])
    mixed = rest[head : head + (whole - len(pure[:whole])) * block].reshape(-1, block)
    blocks = rng.permutation(np.concatenate([pure[:whole], mixed]))
    return np.concatenate([rest[:head], blocks.ravel(), rest[head + mixed.size :]])


def _pure_blocks(kinds: np.ndarray, block: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return blocks of one kind each, (m, block), in random order, and the remaining records, fewer than `block` of each kind."""
    shuffled = rng.permutation(len(kinds))
    groups = [shuffled[kinds[shuffled] == kind] for kind in rng.permutation(np.unique(kinds))]
    cuts = [len(group) // block * block for group in groups]
    pure = np.concatenate([group[:cut] for group, cut in zip(groups, cuts, strict=True)]).reshape(-1, block)
    return rng.permutation(pure), np.concatenate([group[cut:] for group, cut in zip(groups, cuts, strict=True)])
