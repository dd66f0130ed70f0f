"""The layout for people's own pairs, of images or of texts, in any table; paths of images are relative to the table's folder.

Columns: `prompt` (or `caption`, `text`); two candidates, as `image_0` and `image_1`, `image_a` and `image_b`, `image1` and `image2`, `left`
and `right` and the like (texts as `response_0`, `answer_a`, ...); and which is preferred: `label_0`, the share of votes for the first in
[0, 1], or `winner`, `preference`, `best_image_uid` and others. `chosen` and `rejected` say it themselves. Optional: `user_id` (or `user`),
`model_0`, `model_1`, `weight` (a factor of the record's loss), `conditioning_image` (or one for each candidate, `conditioning_image_0`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from diffalign.core.errors import RecordError, did_you_mean
from diffalign.data.pictures import is_picture_name
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.preferences import Sides, preference
from diffalign.data.readers.row_images import ADDRESS, BASE64, DATA_URI, SHORTEST
from diffalign.data.readers.rows import Columns
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record

LONGEST_NAME = 1024  # characters of a path
PROMPT = ("prompt", "caption", "text")
IMAGES = ("image", "img", "picture", "photo", "jpg", "png")
TEXTS = ("response", "answer", "completion", "output", "text", "candidate", "option")
ENDS: dict[tuple[str, str], tuple[int, int] | None] = {
    ("_0", "_1"): (0, 1),
    ("0", "1"): (0, 1),
    ("_1", "_2"): (1, 2),
    ("1", "2"): (1, 2),
    ("_a", "_b"): None,
    ("_left", "_right"): None,
    ("_w", "_l"): None,
}
CHOSEN = ("chosen", "rejected")
BY_PREFERENCE = (CHOSEN, ("preferred", "dispreferred"), ("winner", "loser"), ("win", "lose"), ("w", "l"), ("good", "bad"))
PLACES = (("left", "right"),)
LISTS = {"images": "image", "responses": "response", "completions": "completion"}  # columns that may hold a list of both candidates


def spread(row: Row) -> Row:
    """Return a row with a list of two candidates as a row with two columns; any other row as it is."""
    for name, stem in LISTS.items():
        pair = row.value.get(name)
        if isinstance(pair, list) and len(pair) == 2 and not any(isinstance(part, int) for part in pair):
            return replace(row, value=Columns({**row.value, f"{stem}_0": pair[0], f"{stem}_1": pair[1]}))
    return row


def sides_of(row: Row) -> Sides | None:
    """Return the columns of a row's two candidates, or None. Columns named 0 and 1 come before `chosen` and `rejected`."""
    for stem in (*IMAGES, *TEXTS):
        for ends, numbers in ENDS.items():
            names = (stem + ends[0], stem + ends[1])
            if all(name in row.value for name in names):
                return Sides(names, numbers, by_preference=ends == ("_w", "_l"))
    for pairs in (BY_PREFERENCE, PLACES):
        for names in pairs:
            if all(name in row.value for name in names):
                return Sides(names, by_preference=pairs is BY_PREFERENCE)
    return None


def parse(row: Row) -> Record:
    """Return the pair in the order of its columns."""
    if row.broken:
        raise RecordError(row.broken)
    row = spread(row)
    sides = sides_of(row)
    if sides is None:
        pairs = (("image_0", "image_1"), *BY_PREFERENCE)
        missing = next((name for pair in pairs for name, other in (pair, pair[::-1]) if other in row.value), "image_0")
        hint = did_you_mean(missing, map(str, row.value))
        raise RecordError(f"{row.where}: no column `{missing}`; expected two candidates, such as `image_0` and `image_1`.{hint}")
    if third := next((name for name in _next_to(sides) if name in row.value), None):
        raise RecordError(
            f"{row.where}: three candidates or more, {', '.join(sides.names)} and `{third}`; expected two, or a column `images` with the "
            "list of all and `ranking` with their ranks, 1 the best: df['images'] = df[[...]].values.tolist()"
        )
    name, *aliases = PROMPT
    as_text = is_text(row, sides)
    return Record(
        id=row.id,
        prompt=row.text(name, aliases=tuple(aliases)),
        candidates=tuple(_candidate(row, side, place, as_text) for place, side in enumerate(sides.names)),
        prob=preference(row, sides),
        user=row.user(aliases=("user", "annotator", "rater", "voter")),
        source=row.where,
        meta=_weight(row) | rationale(row),
        conditioning_image=row.conditioning_image(),
    )


def _next_to(sides: Sides) -> tuple[str, ...]:
    """Return the columns that a third candidate would stand in, by the names of the first two."""
    first, second = sides.names
    after = {"0": "2", "1": "3", "a": "c"}
    return (second[:-1] + after[first[-1]],) if first[:-1] == second[:-1] and first[-1] in after else ()


def _candidate(row: Row, name: str, place: int, as_text: bool) -> Candidate:
    model = row.optional(f"model_{place}", aliases=(f"{name}_model", f"model_{'ab'[place]}"))
    uid = row.optional(f"image_{place}_uid", aliases=(f"uid_{place}",))
    content: dict[str, Any] = {"text": row.text(name)} if as_text else {"image": row.image(name)}
    conditioning = row.conditioning_image(f"_{place}", f"_{'ab'[place]}", f"_{name}")
    return Candidate(**content, model=model, uid=uid, conditioning_image=conditioning)


def rationale(row: Row) -> dict[str, str]:
    """Return why one was preferred, as the table's `meta` holds it."""
    return {} if (why := row.optional("rationale")) is None else {"rationale": why}


def _weight(row: Row) -> dict[str, str]:
    """Return the weight as the table's `meta` holds it. Raises RecordError for one that is no finite number, zero or more."""
    if row.optional("weight") is None:
        return {}
    weight = row.number("weight")
    if not (math.isfinite(weight) and weight >= 0.0):
        raise RecordError(f"{row.where}: column `weight` is {weight}; expected a finite number, zero or more")
    return {"weight": str(weight)}


def is_text(row: Row, sides: Sides) -> bool:
    """Return whether a row's candidates are texts: columns named for images hold images, and `chosen` and `rejected` of texts are TRL's."""
    if sides.names[0].startswith(IMAGES) or sides.names == CHOSEN:
        return False
    return not any(_is_image(row.value[name], row) for name in sides.names)


def _is_image(value: Any, row: Row) -> bool:
    if isinstance(value, dict):
        return bool({"bytes", "path"} & value.keys())
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, int) for part in value[:100])
    return isinstance(value, bytes) or (isinstance(value, str) and names_image(value, row))


def names_image(text: str, row: Row) -> bool:
    """Return whether a text is a picture's content, or the name of one, or of a file beside the table."""
    text = text.strip()
    if DATA_URI.match(text) or (len(text) > SHORTEST and text.startswith(BASE64) and " " not in text):
        return True
    if not text or len(text) > LONGEST_NAME or "\n" in text or "\0" in text:
        return False
    if is_picture_name(text) or (ADDRESS.match(text) and " " not in text):
        return True
    try:
        return "." in text and (row.folder / text).is_file()
    except OSError:
        return False


def matches(row: Row) -> bool:
    """Return whether a row has two candidates in the columns of this layout; `chosen` and `rejected` of texts are TRL's."""
    sides = sides_of(spread(row))
    return sides is not None and (sides.names != CHOSEN or all(_is_image(row.value[name], row) for name in CHOSEN))


def _any_of(place: int) -> str:
    """Return the columns of the first or second candidate that are known, for detection."""
    names = [stem + ends[place] for stem in (*IMAGES, *TEXTS) for ends in ENDS]
    return "|".join([*names, *LISTS, *(pair[place] for pair in (*BY_PREFERENCE, *PLACES))])


COLUMNS = Reader(
    open_rows,
    parse,
    ("|".join(PROMPT), _any_of(0), _any_of(1)),
    "your own pairs (prompt, image_0, image_1, and label_0 or winner; or prompt, chosen, rejected; or texts as response_0, response_1)",
    matches,
)
