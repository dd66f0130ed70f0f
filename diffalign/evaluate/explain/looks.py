"""What pictures and texts are measured by, whatever they show or say: numbers that anybody can check."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from diffalign.core.errors import RecordError, TableError
from diffalign.core.progress import progress
from diffalign.core.specs import Spec
from diffalign.data.colours import flattened
from diffalign.data.pictures import decode_image
from diffalign.evaluate.explain.votes import Floats, Votes
from diffalign.rewards import drift
from diffalign.rewards.scorers.looks import COLOURS, PATTERNS

DIGITS = 12  # what is less is rounding, and no difference between two plain pictures
LARGEST = 512  # pixels: colours are measured of a picture scaled down to that, fine patterns in its unscaled middle
TEXTS: dict[str, tuple[Callable[[str], float], str]] = {
    "length": (lambda text: float(len(text)), "characters"),
    "lines": (lambda text: float(text.count("\n")), "line breaks"),
    "list_items": (lambda text: float(len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s", text, re.M))), "lines that begin a list's item"),
    "marks": (lambda text: float(len(re.findall(r"\*\*|^#+ |```", text, re.M))), "bold, headings and code of Markdown"),
    "questions": (lambda text: float(text.count("?")), "question marks"),
    "exclamations": (lambda text: float(text.count("!")), "exclamation marks"),
}
MEANINGS = {name: meaning for looks in (COLOURS, PATTERNS, TEXTS) for name, (_, meaning) in looks.items()}


def looks(votes: Votes) -> dict[str, Floats]:
    """Return every look of the things (T,) of a table's votes; NaN where a picture does not decode. A file without contents has none."""
    if votes.table is None:
        return {}
    of = _of_picture if votes.table.manifest["kind"] == "image" else _of_text
    measured: dict[bytes, dict[str, float]] = {}
    for number, thing in enumerate(progress(votes.things, desc="measure", unit="candidates")):
        if thing.key not in measured:
            candidate = votes.candidate(number)
            measured[thing.key] = of(candidate.image or b"") if of is _of_picture else of(candidate.text or "")  # pyright: ignore[reportArgumentType]  # each takes its kind of content
    names = dict.fromkeys(name for one in measured.values() for name in one)
    rows = {name: [measured[thing.key].get(name, np.nan) for thing in votes.things] for name in names}
    return {name: np.round(values, DIGITS) for name, values in rows.items()}


def _of_picture(data: bytes) -> dict[str, float]:
    try:
        image = flattened(decode_image(data, ""))
    except RecordError:
        return {}
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    left, top = (max(0, (side - LARGEST) // 2) for side in image.size)
    middle = image.crop((left, top, left + min(LARGEST, image.width), top + min(LARGEST, image.height)))
    values = {name: of(small) for name, (of, _) in COLOURS.items()}
    return values | {name: of(middle) for name, (of, _) in PATTERNS.items()}


def _of_text(text: str) -> dict[str, float]:
    return {name: of(text) for name, (of, _) in TEXTS.items()}


def embedded(votes: Votes, spec: Spec, device: str) -> Floats:
    """Return the features (T, E) of the pictures of a table's votes. Raises RecordError for one that does not decode.

    Raises TableError for a table of texts.
    """
    if votes.table is not None and votes.table.manifest["kind"] != "image":
        raise TableError(f"{votes.table.path}: a table of texts, and `features` are of pictures; leave them out")
    described, rows = drift.features(spec, device=device), {}
    for number, thing in enumerate(progress(votes.things, desc="embed", unit="pictures")):
        if thing.key not in rows:
            rows[thing.key] = described([decode_image(votes.candidate(number).image or b"", f"row {thing.row}")])[0]
    return np.stack([rows[thing.key] for thing in votes.things])
