"""Captions of pictures in a folder: a text file beside the picture, or the `metadata` file of an ImageFolder."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.readers.sources import FORMATS, kind_of, open_rows
from diffalign.data.readers.text_lines import fault, text_lines

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata"  # the name, without its suffix, of a table of file names and captions
FILE, CAPTION = "file_name", ("text", "prompt", "caption")


@dataclass(frozen=True, slots=True)
class Captions:
    """The captions that `metadata` files give pictures, by path; those in text files are read when they are asked for."""

    of_metadata: Mapping[Path, str]
    faults: Sequence[tuple[str, str]] = ()  # where a metadata row cannot be read, and why

    def all_of(self, image: Path) -> list[str]:
        """Return the captions of a picture, from each place that has one. Raises RecordError for a text file that cannot be read."""
        from_files = [_text(file) for file in _beside(image)]
        return [text for text in (self.of_metadata.get(_composed(image), ""), *from_files) if text]


def captions_of(root: Path) -> Captions:
    """Return the captions of the pictures below a folder."""
    captions: dict[Path, str] = {}
    faults: list[tuple[str, str]] = []
    name, *others = CAPTION
    for file in sorted(path for path in root.rglob("*") if is_metadata(path)):
        try:
            for row in open_rows(str(file)):
                try:
                    path = _composed(file.parent / row.text(FILE).replace("\\", "/"))
                    captions[path] = row.text(name, aliases=tuple(others)).strip()
                except RecordError as error:
                    faults.append((row.where, str(error)))
        except RecordError as error:
            faults.append((str(file), str(error)))
    return Captions(captions, faults)


def is_metadata(file: Path) -> bool:
    """Return whether a file is a table of captions by its name: metadata.jsonl, metadata.csv, metadata.parquet and the like."""
    return file.name.lower().partition(".")[0] == METADATA and kind_of(file) in FORMATS and file.is_file()


def _composed(path: Path) -> Path:
    """Return the path with composed letters: macOS writes `ü` as two characters, most others as one."""
    return Path(unicodedata.normalize("NFC", str(path)))


def _beside(image: Path) -> Iterator[Path]:
    """Yield the text files beside a picture that have its name: `a.txt`, `a.TXT`, `a.caption` or `a.png.txt`."""
    for suffix in CAPTION_SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            yield from (file for file in (image.with_suffix(spelling), image.with_name(image.name + spelling)) if file.is_file())


def _text(file: Path) -> str:
    text = "".join(text_lines(file)).strip()
    if problem := fault(text):
        raise RecordError(f"the caption in {file.name} cannot be read: {problem}")
    return text
