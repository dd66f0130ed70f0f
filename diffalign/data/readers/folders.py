"""Image pairs without a table: `w/` + `l/`, `chosen/` + `rejected/` and the like (the same name in both), or `x.png` + `x-rejected.png`.

Any folder below the source may hold such pairs; case does not matter. A caption comes from `x.txt` or `x.caption` beside either image, or
from a `metadata` file in any of the folders. A folder `conditioning_image/` beside `w/` and `l/` holds, under the same names, the images
that a ControlNet drew both pictures to.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.pictures import is_picture_name
from diffalign.data.readers.base import CONDITIONING, Reader, Row
from diffalign.data.readers.captions import CAPTION_SUFFIXES, Captions, captions_of, is_metadata
from diffalign.data.readers.row_images import shown
from diffalign.data.readers.sources import local_path
from diffalign.data.records import Candidate, Record

SIDES = (
    ("w", "l"),
    ("win", "lose"),
    ("wins", "losses"),
    ("winner", "loser"),
    ("winners", "losers"),
    ("chosen", "rejected"),
    ("preferred", "dispreferred"),
    ("good", "bad"),
    ("better", "worse"),
    ("liked", "disliked"),
)
COLUMNS = ("prompt", "preferred", "dispreferred")  # of the rows that are made of folders
# Folders beside them, of the images that a ControlNet drew both pictures to, under the same names.
CONDITIONS = ("conditioning_image", "conditioning_images", "conditioning", "condition", "conditions")
SUFFIXES = ("-rejected", "_rejected")
HIDDEN = (".", "__MACOSX")  # how names begin of what systems leave in folders and archives
LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini", ".ds_store", "icon\r", "readme.md")

Images = dict[str, list[Path]]  # by path below their folder, without the suffix


def side_of(name: str) -> tuple[int, int] | None:
    """Return which pair of `SIDES` a folder's name belongs to, and which place in it; None for any other name."""
    plain = name.strip().lower()
    return next(((pair, names.index(plain)) for pair, names in enumerate(SIDES) if plain in names), None)


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield one row per pair, sorted by path; with `split`, only pairs below a folder of that name."""
    root = local_path(source)
    captions = captions_of(root)
    faults = [Row(dict.fromkeys(map(str, COLUMNS), ""), where, where, root, broken=reason) for where, reason in captions.faults]
    empty = True
    for folder in sorted(Path(path) for path, _, _ in os.walk(root)):
        below = folder.relative_to(root).parts
        if any(part.startswith(HIDDEN) for part in below) or (split is not None and split not in below):
            continue
        conditioning = _conditioning(folder)
        for preferred, dispreferred in _pairs(folder, root):
            for key in sorted({*preferred, *dispreferred}):
                yield from faults if empty else ()
                empty = False
                row = _row(root, folder / key, preferred.get(key, []), dispreferred.get(key, []), captions)
                yield row if conditioning is None else _with_conditioning(row, folder / key, conditioning.get(key, []))
    if empty:
        wanted = f" of split `{split}`" if split else ""
        raise RecordError(
            f"{root}: no image pairs{wanted}; expected folders w/ and l/, or chosen/ and rejected/, or x.png and x{SUFFIXES[0]}.png"
        )


def _pairs(folder: Path, root: Path) -> Iterator[tuple[Images, Images]]:
    if any(side_of(part) for part in folder.relative_to(root).parts):
        return  # its images were found from its parent folder
    sides: dict[int, tuple[list[Path], list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        if (side := side_of(path.name)) and path.is_dir():
            sides.setdefault(side[0], ([], []))[side[1]].append(path)
    for first, second in sides.values():
        yield _images(first, "**/*"), _images(second, "**/*")
    images = _images([folder], "*", others=False)
    dispreferred = {key.removesuffix(end): paths for end in SUFFIXES for key, paths in images.items() if key.endswith(end)}
    if dispreferred:
        yield {key: paths for key, paths in images.items() if not key.endswith(SUFFIXES)}, dispreferred


def _conditioning(folder: Path) -> Images | None:
    """Return the conditioning images beside the pairs of a folder by name, None where there is no folder of them."""
    folders = [path for path in sorted(folder.iterdir()) if path.name.strip().lower() in CONDITIONS and path.is_dir()]
    return _images(folders, "**/*") if folders else None


def _with_conditioning(row: Row, pair: Path, images: list[Path]) -> Row:
    """Return the row with the conditioning image of its pair, broken where that is missing or there more than once."""
    problem = row.broken
    if not problem and len(images) != 1:
        problem = f"{row.where}: found {len(images)} conditioning images for the pair `{pair.name}`; expected one, as the others have"
    shown_image = {CONDITIONING[0]: str(images[0].absolute())} if images else {}
    return replace(row, value={**row.value, **shown_image}, broken=problem)


def _images(folders: list[Path], pattern: str, *, others: bool = True) -> Images:
    """Return the pictures of folders by name, and with `others` what else lies there that is neither caption nor metadata."""
    images: Images = {}
    for folder in folders:
        for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
            below = path.relative_to(folder)
            left = path.name.lower() in LEFT_BY_SYSTEMS or any(part.startswith(HIDDEN) for part in below.parts)
            if left:
                continue
            described = path.suffix.lower() in CAPTION_SUFFIXES or is_metadata(path)
            if is_picture_name(path.name) or (others and not described):
                images.setdefault(unicodedata.normalize("NFC", below.with_suffix("").as_posix()), []).append(path)
    return images


def _row(root: Path, pair: Path, preferred: list[Path], dispreferred: list[Path], captions: Captions) -> Row:
    """Return the pair's row, broken where an image or the caption is missing or is there more than once."""
    images = [*preferred, *dispreferred]
    first, problem = images[0], ""
    texts: list[str] = []
    try:
        texts = sorted({text for image in images for text in captions.all_of(image)})
    except RecordError as error:
        problem = f"{first}: {error}"
    for name, paths in (("preferred", preferred), ("dispreferred", dispreferred)):
        if len(paths) != 1:
            problem = f"{first}: found {len(paths)} {name} images for the pair `{pair.name}`; expected one"
    if odd := next((image for image in images if not is_picture_name(image.name)), None):
        problem = f"{odd}: no picture by its name; expected pictures, their captions and `metadata` files alone"
    if not problem and len(texts) != 1:
        listed = f" ({', '.join(map(shown, texts))})" if texts else ""
        problem = f"{first}: found {len(texts)} captions{listed}; expected one, in {first.stem}.txt or in metadata.jsonl"
    value = {"prompt": "".join(texts[:1]), "preferred": str(images[0].absolute()), "dispreferred": str(images[-1].absolute())}
    where = " and ".join(str(image) for image in images)
    return Row(value, where, first.relative_to(root).with_suffix("").as_posix(), broken=problem)


def parse(row: Row) -> Record:
    """Return the pair, the preferred image first."""
    candidates = tuple(Candidate(image=row.image(name)) for name in COLUMNS[1:])
    shared = row.conditioning_image()
    return Record(row.id, row.text("prompt"), candidates, prob=1.0, source=row.where, conditioning_image=shared)


FOLDERS = Reader(
    rows,
    parse,
    COLUMNS,
    "folders w/ + l/, chosen/ + rejected/, good/ + bad/ and the like, or x.png + x-rejected.png; captions in x.txt or metadata.jsonl",
    matches=lambda row: tuple(row.value)[:3] == COLUMNS,
)
