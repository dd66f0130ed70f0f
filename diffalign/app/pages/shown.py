"""Pictures side by side in the HTML of a page: two in one place, or many in a table."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from PIL import Image

from diffalign.app.markup import image_tag

# Of what this file writes: a flip is a switch with two pictures in one place, a sheet a table of pictures that scrolls sideways.
STYLE = """<style>
.flip { display: inline-grid; cursor: pointer; justify-items: center; width: min(100%, 512px); }
.flip input { position: absolute; opacity: 0; }
.flip img, .flip span { grid-column: 1; } .flip img { grid-row: 1; width: 100%; border-radius: 6px; } .flip span { grid-row: 2; }
.flip .second, .flip input:checked ~ .first { visibility: hidden; } .flip input:checked ~ .second { visibility: visible; }
.flip input:focus-visible ~ img { outline: 2px solid var(--color-accent); }
.sheet { overflow-x: auto; } .sheet td, .sheet th { padding: 2px 4px; }
.sheet img { width: clamp(40px, 11vw, 96px); max-width: none; border-radius: 4px; }
.sheet th { font-weight: normal; text-align: left; } .sheet th:first-child { min-width: 6em; max-width: 9em; overflow-wrap: anywhere; }
.flip img[data-small], .sheet img[data-small], .strength[data-small] { image-rendering: pixelated; }
.strength { width: min(100%, 512px); border-radius: 6px; }
</style>"""


def flip(first: tuple[str, Image.Image], second: tuple[str, Image.Image]) -> str:
    """Return two named pictures in one place, exchanged by a click, a tap or the space bar."""
    parts = []
    for kind, (name, image) in (("first", first), ("second", second)):
        parts += [image_tag(image, name, kind=kind), f'<span class="{kind}">{html.escape(name)} (tap for the other)</span>']
    return f'{STYLE}<label class="flip"><input type="checkbox" aria-label="Show the other picture">{"".join(parts)}</label>'


def sheet(columns: Sequence[str], rows: Mapping[str, Sequence[Image.Image]]) -> str:
    """Return pictures as a table with a heading for each column and row."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
    body = []
    for row, images in rows.items():
        cells = (f"<td>{image_tag(image, f'{row}, {column}')}</td>" for column, image in zip(columns, images, strict=False))
        body.append(f"<tr><th>{html.escape(row)}</th>{''.join(cells)}</tr>")
    return f'{STYLE}<div class="sheet"><table><tr>{head}</tr>{"".join(body)}</table></div>'
