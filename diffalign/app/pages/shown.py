"""Pictures as they stand in the HTML of a page: inside it, so that no file of the server has an address."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffalign.data.pictures import decode_image

SMALL = 256  # pixels; a picture below is enlarged with its pixels visible
# Of what this file writes: a flip is a switch with two pictures in one place, a sheet a table of pictures that scrolls sideways.
STYLE = """<style>
.flip { display: inline-grid; cursor: pointer; justify-items: center; width: min(100%, 512px); }
.flip input { position: absolute; opacity: 0; }
.flip img, .flip span { grid-column: 1; } .flip img { grid-row: 1; width: 100%; border-radius: 6px; } .flip span { grid-row: 2; }
.flip .second, .flip input:checked ~ .first { visibility: hidden; } .flip input:checked ~ .second { visibility: visible; }
.flip input:focus-visible ~ img { outline: 2px solid var(--color-accent); }
.sheet { overflow-x: auto; } .sheet img { width: 96px; max-width: none; border-radius: 4px; } .sheet td, .sheet th { padding: 2px 4px; }
.sheet th { font-weight: normal; text-align: left; max-width: 9em; overflow-wrap: anywhere; }
.shown-small { image-rendering: pixelated; }
</style>"""


def picture(image: Image.Image, alt: str, kind: str = "") -> str:
    """Return an `img` with a picture inside; `kind` is its class."""
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=max(image.size) < SMALL)
    classes = f"{kind} shown-small" if max(image.size) < SMALL else kind
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img class="{classes}" src="data:image/webp;base64,{source}" alt="{html.escape(alt)}">'


def opened(file: Path) -> Image.Image:
    """Return the picture in a file of a store."""
    return decode_image(file.read_bytes(), file.name)


def flip(first: tuple[str, Image.Image], second: tuple[str, Image.Image]) -> str:
    """Return two named pictures in one place, exchanged by a click, a tap or the space bar."""
    parts = []
    for kind, (name, image) in (("first", first), ("second", second)):
        parts += [picture(image, name, kind), f'<span class="{kind}">{html.escape(name)} (tap for the other)</span>']
    return f'{STYLE}<label class="flip"><input type="checkbox" aria-label="Show the other picture">{"".join(parts)}</label>'


def sheet(columns: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> str:
    """Return pictures as a table with a heading for each column and row."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    body = []
    for row, images in rows.items():
        cells = (f"<td>{picture(image, f'{row}, {column}')}</td>" for column, image in zip(columns, images, strict=False))
        body.append(f"<tr><th>{html.escape(row)}</th>{''.join(cells)}</tr>")
    return f'{STYLE}<div class="sheet"><table><tr>{head}</tr>{"".join(body)}</table></div>'
