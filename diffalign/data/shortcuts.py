"""Shortcuts: what tells the preferred candidate of a pair without a look at what it shows, such as its file type or its length.

A model learns a shortcut before it learns a preference (Geirhos et al., 2004.07780), so a table that has one needs mending.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffalign.core.errors import RecordError
from diffalign.data.pictures import Header, Size, decode_image, read_header
from diffalign.data.records import Candidate, Record
from diffalign.data.table import Table

ALARM, LEAST_PAIRS = 0.8, 20  # share of pairs that a column must tell, and pairs that it must be seen on
ROWS, DECODED = 2000, 200  # rows that are drawn for the columns, and those of them whose pixels are looked at
SIDE = 256  # pixels of the longer side at which sharpness is measured, whatever the size of the picture
Z95 = 1.959964  # of the normal distribution


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How well one column tells the preferred candidate of `pairs` pairs: `auc` is one half by chance, with a 95 % interval."""

    column: str
    rule: str  # which candidate the column would choose
    auc: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the AUC (Wilson, 1927)."""
        n, ordered = self.pairs, self.auc * self.pairs
        centre, half = (ordered + Z95**2 / 2) / (n + Z95**2), Z95 / (n + Z95**2) * math.sqrt(ordered * (n - ordered) / n + Z95**2 / 4)
        return centre - half, centre + half

    @property
    def alarms(self) -> bool:
        """Return whether the column tells so many pairs, and so surely, that training would learn it."""
        return self.pairs >= LEAST_PAIRS and self.auc >= ALARM and self.interval[0] > 0.5

    def __str__(self) -> str:
        low, high = (f"{100 * bound:.0f}" for bound in self.interval)
        return f"{self.column} alone tells the preferred candidate of {self.auc:.0%} of {self.pairs} pairs ({low} to {high} %): {self.rule}"


def shortcuts(table: Table, buckets: Sequence[Size] = (), *, rows: int = ROWS, decoded: int = DECODED, seed: int = 0) -> list[Shortcut]:
    """Return what each cheap column tells of the preferred candidates, the best first; `alarms` says which of them spoil training.

    Pairs are those of labels and of ranks, ties left out, in up to `rows` random rows, of which about `decoded` are decoded to measure
    sharpness. Images that cannot be read are left out. The crop is that to a square, or with `buckets` (height, width) to the nearest.
    """
    chosen = np.random.default_rng(seed).choice(len(table), size=min(rows, len(table)), replace=False)
    step = -(-len(chosen) // decoded) if decoded else len(chosen) + 1
    numbers: dict[str, list[tuple[float, float]]] = {}
    named: dict[str, Counter[tuple[str, str]]] = {}
    for number, row in enumerate(sorted(chosen)):
        for preferred, other in _columns(table[int(row)], buckets, pixels=number % step == step - 1):
            for column in preferred.keys() & other.keys():
                first, second = preferred[column], other[column]
                if isinstance(first, str) and isinstance(second, str):
                    named.setdefault(column, Counter())[first, second] += 1
                elif isinstance(first, float) and isinstance(second, float):
                    numbers.setdefault(column, []).append((first, second))
    columns = [_of_numbers(column, np.array(values)) for column, values in numbers.items()]
    columns += [_of_names(column, wins) for column, wins in named.items()]
    return sorted(columns, key=lambda shortcut: (-shortcut.auc, shortcut.column))


def kept_shares(sizes: Sequence[Size], buckets: Sequence[Size] = ()) -> list[float]:
    """Return the share in (0, 1] that the crop leaves of each image of a record, whose sizes are (height, width).

    >>> kept_shares([(576, 1024), (512, 512)]), kept_shares([(576, 1024)], [(512, 512), (576, 1024)])
    ([0.5625, 1.0], [1.0])
    """
    from diffalign.data.buckets import nearest  # torch takes seconds to import, and who checks a config does without

    height, width = buckets[nearest(sizes, buckets)] if buckets else (1, 1)
    ratios = [high * width / (wide * height) for high, wide in sizes]
    return [min(ratio, 1 / ratio) for ratio in ratios]


Columns = Mapping[str, float | str]


def _columns(record: Record, buckets: Sequence[Size], pixels: bool) -> Iterator[tuple[Columns, Columns]]:
    """Yield the columns of the preferred and of the other candidate of each pair in the record."""
    order = _preferences(record)
    columns = origin_columns(record, buckets, pixels=pixels) if order else None
    if columns is not None:
        yield from ((columns[preferred], columns[other]) for preferred, other in order)


def origin_columns(record: Record, buckets: Sequence[Size] = (), *, pixels: bool) -> list[dict[str, float | str]] | None:
    """Return by candidate where it comes from: file type, sizes, model, with `pixels` its sharpness; None if an image cannot be read."""
    try:
        return _image_columns(record, buckets, pixels) if record.kind == "image" else list(map(_text_columns, record.candidates))
    except RecordError:
        return None


def _preferences(record: Record) -> list[tuple[int, int]]:
    """Return (preferred, dispreferred) positions of candidates, from the label of a pair or from ranks."""
    if len(record.candidates) == 2 and record.prob is not None:
        return [] if record.prob == 0.5 else [(0, 1) if record.prob > 0.5 else (1, 0)]
    ranks = [(math.inf if c.rank is None else c.rank, place) for place, c in enumerate(record.candidates)]
    return [(a, b) for first, a in ranks for second, b in ranks if first < second < math.inf]


def _text_columns(candidate: Candidate) -> dict[str, float | str]:
    return {"length": float(len(candidate.text or ""))} | ({"model": candidate.model} if candidate.model else {})


def _image_columns(record: Record, buckets: Sequence[Size], pixels: bool) -> list[dict[str, float | str]]:
    files = [candidate.image or b"" for candidate in record.candidates]
    headers = [read_header(file, record.source) for file in files]
    kept = kept_shares([(header.height, header.width) for header in headers], buckets)
    columns = [_header_columns(*facts) for facts in zip(record.candidates, headers, kept, strict=True)]
    if pixels:
        for column, file in zip(columns, files, strict=True):
            column["sharpness"] = _sharpness(file)
    return columns


def _header_columns(candidate: Candidate, header: Header, kept: float) -> dict[str, float | str]:
    size = f"{header.width}x{header.height}"
    columns: dict[str, float | str] = {"file type": header.format, "size": size, "bytes": float(len(candidate.image or b""))}
    columns |= {"pixels": float(header.width * header.height), "aspect": header.width / header.height, "crop": kept}
    return columns | ({"model": candidate.model} if candidate.model else {})


def _sharpness(data: bytes) -> float:
    """Return the spread of the Laplacian by that of the grey levels, at a common size; blur makes it small, whatever is shown."""
    image = decode_image(data, "", least=(SIDE, SIDE)).convert("L")
    scale = SIDE / max(image.size)
    image = image.resize((max(round(image.width * scale), 3), max(round(image.height * scale), 3)))
    grey = np.asarray(image, dtype=np.float64)
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(inner.std() / grey.std()) if grey.std() else 0.0


RULES = {  # of a column of numbers: the rule if the larger one wins, and if the smaller one does
    "length": ("the longer text wins", "the shorter text wins"),
    "bytes": ("the larger file wins", "the smaller file wins"),
    "pixels": ("the larger picture wins", "the smaller picture wins"),
    "aspect": ("the wider picture wins", "the taller picture wins"),
    "crop": ("the picture that the crop leaves whole wins", "the picture that is cropped more wins"),
    "sharpness": ("the sharper picture wins", "the softer picture wins"),
}


def _of_numbers(column: str, values: np.ndarray) -> Shortcut:
    """Return the shortcut of a column whose values (N, 2) are those of the preferred and of the other candidate; equal ones tell half."""
    auc = float(np.mean((values[:, 0] > values[:, 1]) + 0.5 * (values[:, 0] == values[:, 1])))
    return Shortcut(column, RULES[column][auc < 0.5], max(auc, 1 - auc), len(values))


def _of_names(column: str, wins: Counter[tuple[str, str]]) -> Shortcut:
    """Return the shortcut of a column of names, which chooses the name that wins more often in all other pairs (leaving this one out)."""
    won, seen = Counter[str](), Counter[str]()
    for (preferred, other), count in wins.items():
        if preferred != other:
            won[preferred] += count
            seen.update({preferred: count, other: count})
    ordered = 0.0
    for (preferred, other), count in wins.items():
        rates = _rate(won[preferred] - 1, seen[preferred] - 1), _rate(won[other], seen[other] - 1)
        ordered += count * (0.5 if preferred == other or rates[0] == rates[1] else float(rates[0] > rates[1]))
    names = sorted(seen, key=lambda name: -_rate(won[name], seen[name]))
    rule = f"{names[0]} wins, {names[-1]} loses" if names else "all have the same"
    # Leaving one out tells less than chance where nothing is told.
    return Shortcut(column, rule, max(ordered / wins.total(), 0.5), wins.total())


def _rate(won: int, seen: int) -> float:
    return won / seen if seen else 0.5
