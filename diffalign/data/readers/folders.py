"""Image pairs without a table: `w/` + `l/`, `chosen/` + `rejected/` (the same name in both), or `x.png` + `x-rejected.png`.

Any folder below the source may hold such pairs. A caption comes from `x.txt` beside either image, or from `metadata.jsonl`
(file_name, text) in any of the folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import IMAGE_SUFFIXES, Reader, Row, open_rows
from diffalign.data.records import Candidate, Record

SIDES = (("w", "l"), ("chosen", "rejected"))
SUFFIX = "-rejected"

Images = dict[str, list[Path]]  # by path below their folder, without the suffix


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield one row per pair, sorted by path; with `split`, only pairs below a folder of that name."""
    root = Path(source).expanduser()
    captions = {
        file.parent / row.text("file_name"): row.text("text") for file in root.rglob("metadata.jsonl") for row in open_rows(str(file))
    }
    empty = True
    for folder in sorted(Path(path) for path, _, _ in os.walk(root)):
        if split is not None and split not in folder.relative_to(root).parts:
            continue
        for preferred, dispreferred in _pairs(folder, root):
            for key in sorted({*preferred, *dispreferred}):
                empty = False
                yield _row(root, folder / key, preferred.get(key, []), dispreferred.get(key, []), captions)
    if empty:
        wanted = f" of split `{split}`" if split else ""
        raise RecordError(
            f"{root}: no image pairs{wanted}; expected folders w/ and l/, or chosen/ and rejected/, or x.png and x{SUFFIX}.png"
        )


def _pairs(folder: Path, root: Path) -> Iterator[tuple[Images, Images]]:
    sides = {name for names in SIDES for name in names}
    if sides.intersection(folder.relative_to(root).parts):
        return  # its images were found from its parent folder
    for first, second in SIDES:
        if (folder / first).is_dir() or (folder / second).is_dir():
            yield _images(folder / first, "**/*"), _images(folder / second, "**/*")
    images = _images(folder, "*")
    dispreferred = {key.removesuffix(SUFFIX): paths for key, paths in images.items() if key.endswith(SUFFIX)}
    if dispreferred:
        yield {key: paths for key, paths in images.items() if not key.endswith(SUFFIX)}, dispreferred


def _images(folder: Path, pattern: str) -> Images:
    images: Images = {}
    for path in sorted(folder.glob(pattern)):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return images


def _row(root: Path, pair: Path, preferred: list[Path], dispreferred: list[Path], captions: dict[Path, str]) -> Row:
    """Return the pair's row, broken where an image or the caption is missing or is there more than once."""
    images = [*preferred, *dispreferred]
    first, problem = images[0], ""
    texts: list[str] = []
    try:
        texts = sorted({text for image in images for text in (captions.get(image, "").strip(), _text(image)) if text})
    except UnicodeDecodeError as error:
        problem = f"{first}: the caption in {first.stem}.txt is not UTF-8 text ({error})"
    for name, paths in (("preferred", preferred), ("dispreferred", dispreferred)):
        if len(paths) != 1:
            problem = f"{first}: found {len(paths)} {name} images for the pair `{pair.name}`; expected one"
    if not problem and len(texts) != 1:
        problem = f"{first}: found {len(texts)} captions; expected one, in {first.stem}.txt or in metadata.jsonl"
    value = {"prompt": "".join(texts[:1]), "preferred": str(images[0].absolute()), "dispreferred": str(images[-1].absolute())}
    where = " and ".join(str(image) for image in images)
    return Row(value, where, first.relative_to(root).with_suffix("").as_posix(), broken=problem)


def _text(image: Path) -> str:
    path = image.with_suffix(".txt")
    return path.read_text(encoding="utf-8-sig").strip() if path.is_file() else ""


def parse(row: Row) -> Record:
    """Return the pair, the preferred image first."""
    candidates = tuple(Candidate(image=row.image(name)) for name in ("preferred", "dispreferred"))
    return Record(id=row.id, prompt=row.text("prompt"), candidates=candidates, prob=1.0, source=row.where)


FOLDERS = Reader(rows, parse, ("prompt", "preferred", "dispreferred"), "folders w/ + l/ or chosen/ + rejected/, or x.png + x-rejected.png")
