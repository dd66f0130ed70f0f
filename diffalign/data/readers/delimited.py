"""Rows of CSV and TSV files as spreadsheets write them: the separator is found, and a bad line is a bad row, not a bad file."""

from __future__ import annotations

import csv
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.readers.rows import RawRow
from diffalign.data.readers.text_lines import fault, text_lines

FIELD_LIMIT = 2**27  # characters in one field, which may be a whole story
SEPARATORS = (",", ";", "\t", "|")
SAMPLE = 20  # lines that tell the separator
DECLARED = "sep="  # how the first line of a file begins that Excel reads with another separator than its own


class _Lines(Iterator[str]):
    """Lines that can be given back, and those that were taken since `taken` was last cleared."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._returned = lines, deque[str]()
        self.taken: list[str] = []
        self.number = 0  # of the last line that was taken, from 1

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def give_back(self, lines: Sequence[str]) -> None:
        self._returned.extendleft(reversed(lines))
        self.number -= len(lines)


def delimited_rows(path: Path) -> Iterator[RawRow]:
    """Yield one row for each record after the header, with the line that it begins in. Raises RecordError where there is no header."""
    csv.field_size_limit(FIELD_LIMIT)
    lines = _Lines(text_lines(path))
    sample = list(itertools.islice(lines, SAMPLE))
    lines.give_back(sample)
    declared = sample[0].strip("\ufeff\r\n\"' ") if sample else ""
    if declared.lower().startswith(DECLARED) and len(declared) == len(DECLARED) + 1:
        separator = declared[-1]
        next(lines)
    else:
        separator = _separator(sample, "\t" if ".tsv" in path.name.lower() else ",")
    quoting = csv.QUOTE_MINIMAL if separator != "\t" or _is_quoted(path) else csv.QUOTE_NONE
    spaced = bool(sample) and sample[0].count(separator) == sample[0].count(f"{separator} ")
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, skipinitialspace=spaced, strict=True)
    header: list[str] | None = None
    while True:
        lines.taken.clear()
        try:
            fields, broken = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            fields, broken = [], f"not a line of CSV ({error}); expected text that holds quotes in quotes, and each of its own twice"
        line = lines.number - len(lines.taken) + 1
        if header is None and (broken or any(fields)):
            header = _header(fields, f"{path} line {line}", broken)
        elif header is not None and (broken or any(fields)):
            broken = broken or _problem(fields, len(header))
            if broken:
                lines.give_back(lines.taken[1:])  # a quote that does not close has swallowed the lines after it
            yield RawRow(dict(itertools.zip_longest(header, fields[: len(header)])), f"line {line}", broken)


def _problem(fields: Sequence[str], width: int) -> str:
    """Return why a record of `width` columns cannot be used, or an empty text."""
    if any(fields[width:]):
        count = len(fields) - width
        return f"{count} fields more than the header names; expected quotes around text that holds the separator"
    return fault("".join(fields))


def _header(fields: Sequence[str], where: str, broken: str) -> list[str]:
    """Return the names of the columns, blanks around them removed; a repeated name gets a number, as in pandas."""
    if problem := broken or fault("".join(fields)):
        raise RecordError(f"{where}, the header: {problem}")
    names: dict[str, None] = {}
    for field in fields:
        name = field.strip("\ufeff \t")
        spellings = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(1)))
        names[next(new for new in spellings if new not in names)] = None
    while len(names) > 1 and next(reversed(names)).partition(".")[0] == "":
        names.popitem()  # columns that a spreadsheet has left empty
    return list(names)


def _separator(sample: Sequence[str], usual: str) -> str:
    """Return the separator by which most lines of `sample` have as many fields as the first, the more fields the better."""

    def score(separator: str) -> tuple[float, bool]:
        try:
            counts = [len(fields) for fields in csv.reader(sample, delimiter=separator) if fields]
        except csv.Error:
            return 0.0, False
        return (counts[0] * counts.count(counts[0]) / len(counts) if counts else 0.0), separator == usual

    return max(SEPARATORS, key=score)


def _is_quoted(path: Path) -> bool:
    """Return whether quotes in a file with tabs enclose fields, as pandas writes them; `"a" b` is one field where they do not."""
    try:
        deque(csv.reader(text_lines(path), delimiter="\t", strict=True), maxlen=0)
    except csv.Error:
        return False
    return True
