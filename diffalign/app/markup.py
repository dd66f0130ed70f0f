"""Pieces of HTML that several pages show. What people typed is escaped, and no folder of the server is named."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from diffalign.app.commands import typed
from diffalign.data.pictures import decode_image

LARGE = 128  # pixels; smaller pictures are enlarged with their pixels sharp


def picture_tag(image: bytes, where: str, alt: str, side: int, *, framed: bool = False) -> str:
    """Return an encoded picture as an `<img>` of at most `side` pixels that carries it, in a frame if `framed`.

    Raises RecordError, naming `where`, for a picture that does not decode.
    """
    shown = decode_image(image, where, least=(side, side))
    shown.thumbnail((side, side))
    return image_tag(shown, alt, style="outline: 3px solid var(--color-accent)" if framed else "")


def image_tag(image: Image.Image, alt: str, *, style: str = "", kind: str = "") -> str:
    """Return a picture as an `<img>` that carries it; `kind` is its class."""
    data = io.BytesIO()
    image.save(data, "WEBP", quality=90)
    source, text = base64.b64encode(data.getvalue()).decode(), html.escape(alt)
    more = {"data-small": "true" if max(image.size) < LARGE else "", "style": style, "class": kind}
    attributes = "".join(f' {name}="{value}"' for name, value in more.items() if value)
    return f'<img src="data:image/webp;base64,{source}" alt="{text}" title="{text}" loading="lazy"{attributes}>'


def command_details(command: Sequence[str]) -> str:
    """Return a folded-up line with the command that does the same without the page; it begins with `CLI`."""
    return f"<details><summary>The same on the command line</summary><code>{html.escape(typed(command))}</code></details>"


def without_folders(text: str, *folders: Path) -> str:
    """Return a text in which absolute paths keep their last part alone, and `folders` are not named at all.

    >>> without_folders("cannot read /srv/data/votes/records.arrow, row 3")
    'cannot read …/records.arrow, row 3'
    """
    for folder in folders:
        text = text.replace(f"{folder}/", "")
    return re.sub(r"(?<![\w.:/…])(?:/[^\s/'\"`<>]+)+/(?=[^\s/])", "…/", text)
