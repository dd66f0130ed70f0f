"""Shows a few rows of a table: as lines of text, or as a contact sheet of images."""

from __future__ import annotations

import logging
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from diffalign.core.errors import RecordError, TableError
from diffalign.core.files import atomic_file
from diffalign.data.inspect import size_name
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import Table
from diffalign.data.transforms import orient

logger = logging.getLogger(__name__)
CELL, GAP, LINE, LEAST_WIDTH = 192, 8, 18, 616  # pixels of a contact sheet
LONGEST = 1000  # characters of a prompt that are looked at
MOST = 5_000_000  # bytes of a sheet
PREFERRED, DISPREFERRED, INK, PAPER = "#1a7f37", "#c8c8c8", "#202020", "#ffffff"


def _sample(table: Table, rows: int, seed: int) -> list[Record]:
    chosen = np.random.default_rng(seed).choice(len(table), size=min(rows, len(table)), replace=False)
    return [table[int(index)] for index in sorted(chosen)]


def _marked(record: Record) -> list[tuple[Candidate, str, bool]]:
    """Return (candidate, its rank or label in words, whether it is a preferred one), the better ones first."""
    if len(record.candidates) == 2 and record.prob is not None:
        (pair,) = orient(record)
        prob = pair.prob or 0.0
        words = ("tie", "tie") if prob == 0.5 else (f"preferred, prob {prob:.2f}", f"dispreferred, prob {1 - prob:.2f}")
        return [(pair.candidates[0], words[0], prob > 0.5), (pair.candidates[1], words[1], False)]
    ranks = [candidate.rank for candidate in record.candidates if candidate.rank is not None]
    if not ranks:
        return [(candidate, f"candidate {index}", False) for index, candidate in enumerate(record.candidates)]
    ordered = sorted(record.candidates, key=lambda candidate: float("inf") if candidate.rank is None else candidate.rank)
    return [(c, "no rank" if c.rank is None else f"rank {c.rank:g}", c.rank == min(ranks)) for c in ordered]


def preview(table: Table, rows: int = 8, seed: int = 0) -> list[str]:
    """Return printable lines that show `rows` random records: the prompt, then the candidates, the preferred one marked `*`."""
    lines = []
    for record in _sample(table, rows, seed):
        lines.append(f"[{record.id}] {textwrap.shorten(record.prompt, 120, placeholder=' ...')}")
        for candidate, word, preferred in _marked(record):
            shown = candidate.text if candidate.image is None else f"image {size_name(candidate.image)}"
            lines.append(f"  {'*' if preferred else ' '} {word}: {textwrap.shorten(shown or '', 200, placeholder=' ...')}")
    return lines


def contact_sheet(table: Table, path: str | Path, rows: int = 8, seed: int = 0) -> Path:
    """Write a PNG that shows `rows` random records, one per row: the prompt, and the candidates, the preferred one first.

    The preferred candidate has a green frame. A sheet of more than 5 MB shows fewer records, and says so in the log. Returns the path.
    Raises TableError for a table of texts; `preview` shows those.
    """
    if table.manifest["kind"] != "image":
        raise TableError(f"{table.path} holds texts; a contact sheet needs images, `preview` shows texts")
    shown = min(rows, len(table))
    while len(content := _sheet(_sample(table, shown, seed))) > MOST and shown > 1:
        shown = min(shown - 1, shown * MOST // len(content))
    if shown < min(rows, len(table)):
        logger.warning("%s shows %d of %d rows: more take over %d MB", path, shown, min(rows, len(table)), MOST // 10**6)
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def _sheet(records: Sequence[Record]) -> bytes:
    """Return the sheet of records as a PNG."""
    strips = [_strip(record) for record in records]
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return encode_image(sheet)


def _drawable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return `text` with U+ codes in the place of characters that the font has no shape for (emoji, Arabic, Chinese)."""
    text = unicodedata.normalize("NFC", text)
    missing = _shape("\U0010fffe", font)
    undrawable = {character for character in set(text) if not character.isspace() and _shape(character, font) == missing}
    return "".join(f"<U+{ord(character):04X}>" if character in undrawable else character for character in text)


def _shape(character: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bytes:
    image = Image.new("L", (2 * LINE, 2 * LINE))
    ImageDraw.Draw(image).text((LINE // 2, LINE // 2), character, 255, font)
    return image.tobytes()


def _strip(record: Record) -> Image.Image:
    marked = _marked(record)
    width = max(LEAST_WIDTH, GAP + len(marked) * (CELL + GAP))
    strip = Image.new("RGB", (width, 3 * LINE + CELL + 4 * GAP), PAPER)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(13)
    prompt = textwrap.wrap(_drawable(record.prompt[:LONGEST], font), width // 7, max_lines=2, placeholder=" ...")
    for number, line in enumerate(prompt or ["(no prompt)"]):
        pen.text((GAP, GAP + number * LINE), line, INK, font)
    top = 2 * GAP + 2 * LINE
    for number, (candidate, word, preferred) in enumerate(marked):
        left = GAP + number * (CELL + GAP)
        color = PREFERRED if preferred else DISPREFERRED
        pen.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), outline=color, width=3)
        try:
            image = ImageOps.contain(decode_image(candidate.image or b"", record.source), (CELL, CELL))
            strip.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        except RecordError:
            pen.text((left + GAP, top + GAP), "does not decode", INK, font)
        pen.text((left, top + CELL + GAP // 2), word, INK, font)
    return strip
