"""Open Image Preferences v1, binarized: parquet with the preferred image in column `chosen` and the models' names.

It is the chosen/rejected form of the `columns` layout and shares its `parse`; every label is 1.
"""

from __future__ import annotations

from diffalign.data.readers.base import Reader
from diffalign.data.readers.columns import matches, parse
from diffalign.data.readers.sources import open_rows

OPEN_IMAGE_PREFERENCES = Reader(
    open_rows,
    parse,
    ("prompt", "chosen", "rejected", "chosen_model", "rejected_model"),
    "Open Image Preferences v1, binarized (prompt, chosen, rejected, chosen_model, rejected_model)",
    matches,
)
