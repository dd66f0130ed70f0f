"""One picture a row and the image that a ControlNet drew it to, as in the datasets of diffusers' ControlNet script.

Columns: `image` (or `file_name`), `conditioning_image` (or `condition`), and `text` (or `prompt`, `caption`). There is no preference: the
picture is one to learn from, for an objective of single candidates.
"""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import CONDITIONING, Reader, Row
from diffalign.data.readers.columns import PROMPT
from diffalign.data.readers.sources import open_rows
from diffalign.data.readers.unpaired import rating_column
from diffalign.data.records import Candidate, Record

IMAGES = ("image", "file_name")


def parse(row: Row) -> Record:
    """Return the picture as the only candidate, which is liked. Raises RecordError for a row without its conditioning image."""
    picture = Candidate(image=row.image(IMAGES[0], aliases=IMAGES[1:]))
    if (conditioning := row.conditioning_image()) is None:
        raise RecordError(f"{row.where}: column `{CONDITIONING[0]}` is empty; expected the image that the picture was drawn to")
    prompt = row.text(PROMPT[0], aliases=PROMPT[1:])
    return Record(row.id, prompt, (picture,), prob=1.0, user=row.user(), source=row.where, conditioning_image=conditioning)


CONTROLNET = Reader(
    open_rows,
    parse,
    ("|".join(IMAGES), "|".join(CONDITIONING), "|".join(PROMPT)),
    "pictures and what a ControlNet drew them to (image, conditioning_image, text), without a preference",
    lambda row: rating_column(row) is None,
)
