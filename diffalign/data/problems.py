"""Looks through a table for what would spoil training, row by row and as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.core.progress import progress
from diffalign.data.duplicates import EarlierPairs, shown_digest
from diffalign.data.pictures import Size, decode_image
from diffalign.data.records import Record, check_shape, conditioning_place
from diffalign.data.shortcuts import DECODED, ROWS, shortcuts
from diffalign.data.table import Table

ODD = {"\0": "a NUL character", "\ufeff": "a byte order mark (U+FEFF)", "\ufffd": "U+FFFD, which stands for a letter that was lost"}
REPEATS = {
    "same": "is the same pair as record {earlier}",
    "opposite": "has the opposite preference of record {earlier}, which is the same pair",
    "disputed": "has the opposite preference of record {earlier}, which is the same pair; this is user {user}'s, that another person's",
}
# Levels of 255 that no pixel of one picture moves by, however it is compressed; its mean colour moves by less than one.
ALIKE = 24


def validate(table: Table, resolution: int | None = None, buckets: Sequence[Size] = ()) -> list[str]:
    """Return the problems that should be known before training, one sentence each, with the record's id and source.

    Every image is decoded. With `resolution`, images whose shorter side is below it are named: training would upscale them. Last come the
    shortcuts of the table as a whole, with the crop to a square or to `buckets`.
    """
    problems: list[str] = []
    earlier_pairs = EarlierPairs()
    has_preference = False
    for record in progress(table, desc="validate", unit="rows"):
        checked = _Problems(record, resolution)
        sentences = [*checked.prompt(), *checked.candidates(), *checked.conditioning()]
        repeat = earlier_pairs.compare(record, checked.digests)
        if repeat is not None:
            sentences.append(REPEATS[repeat.kind].format(earlier=repeat.earlier, user=record.user))
        problems += [f"{record.id} ({record.source}): {sentence}" for sentence in sentences]
        ranks = {candidate.rank for candidate in record.candidates} - {None}
        has_preference = has_preference or record.prob not in (None, 0.5) or len(ranks) > 1
    if not has_preference:
        problems.append(f"{table.name}: no strict pair among {len(table)} records; there is nothing to learn from")
    return problems + [f"{table.name}: {warning}" for warning in shortcut_warnings(table, buckets)]


def shortcut_warnings(table: Table, buckets: Sequence[Size] = (), *, rows: int = ROWS, decoded: int = DECODED) -> list[str]:
    """Return a sentence for each column of `table` that tells the preferred candidate without a look at it (see `shortcuts`)."""
    columns = shortcuts(table, buckets, rows=rows, decoded=decoded)
    return [
        f"{shortcut}; a model learns this first: make the candidates alike in it, unless it is what people judged"
        for shortcut in columns
        if shortcut.alarms
    ]


class _Problems:
    """What is wrong with one record; `digests` of its candidates stand there once `candidates` has been gone through."""

    def __init__(self, record: Record, resolution: int | None) -> None:
        self.record, self.resolution = record, resolution
        self.digests: list[bytes] = []

    def prompt(self) -> Iterator[str]:
        """Yield what is wrong with the prompt."""
        texts = [self.record.prompt, *(candidate.prompt or "" for candidate in self.record.candidates)]
        if not any(text.strip() for text in texts):
            yield "the prompt is empty"
        yield from (f"the prompt holds {name}" for character, name in ODD.items() if any(character in text for text in texts))

    def candidates(self) -> Iterator[str]:
        """Yield what is wrong with the candidates."""
        images: list[Image.Image | None] = []
        for index, candidate in enumerate(self.record.candidates):
            image = None
            try:
                image = None if candidate.image is None else decode_image(candidate.image, f"candidate {index}")
            except RecordError as error:
                yield str(error)
            self.digests.append(shown_digest(candidate, image))
            yield from self._compared(index, image, images)
            images.append(image)
            if image is not None and self.resolution is not None and min(image.size) < self.resolution:
                yield f"candidate {index} is {image.width}x{image.height}; training at {self.resolution} would upscale it"

    def conditioning(self) -> Iterator[str]:
        """Yield what is wrong with the conditioning images."""
        for index, image in enumerate(self.record.conditioning_images):
            try:
                if image is not None:
                    decode_image(image, conditioning_place(self.record, index))
                    check_shape(self.record, index)
            except RecordError as error:
                yield str(error)

    def _compared(self, index: int, image: Image.Image | None, earlier: Sequence[Image.Image | None]) -> Iterator[str]:
        """Yield that the candidate is one of those before it: the first that it equals."""
        own = self.record.candidates[index]
        for place, other in enumerate(earlier):
            earlier_one = self.record.candidates[place]
            if (own.prompt, own.conditioning_image) != (earlier_one.prompt, earlier_one.conditioning_image):
                continue
            if self.digests[place] == self.digests[index]:
                yield f"candidates {place} and {index} are identical"
                return
            if image is not None and other is not None and _look_the_same(image, other):
                yield f"candidates {place} and {index} are one picture, compressed differently"
                return


def _look_the_same(first: Image.Image, second: Image.Image) -> bool:
    if first.size != second.size:
        return False
    differences = np.asarray(first, np.int16) - np.asarray(second, np.int16)
    return int(np.abs(differences).max()) <= ALIKE and bool((np.abs(differences.mean(axis=(0, 1))) < 1.0).all())
