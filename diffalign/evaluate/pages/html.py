"""What the pages have in common: one file that runs and fetches nothing, numbers that may be missing, tables, embedded pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffalign.data.colours import flattened

SMALL, LARGEST = 128, 384  # pixels: up to the first, images are enlarged without smoothing; beyond the second, they are scaled down
PAGE, WORDS = 5_000_000, 1_000_000  # bytes of a page at most, and those that are left for its text
QUALITIES = (90, 75, 60, 40)  # of a JPEG, until it fits
LONGEST = 600  # characters of a prompt
STYLE = Path(__file__).with_name("html.css")
HUGE = 1e100  # counts as not finite: it could not be drawn


def number(value: Any) -> float:
    """Return a fact as a number, NaN where it is none."""
    return float(value) if isinstance(value, int | float | np.number) and abs(value) < HUGE else math.nan


def show(value: float, form: str) -> str:
    """Return a number with a true minus, or a dash for NaN."""
    return f"{value:{form}}".replace("-", "&minus;") if math.isfinite(value) else "&ndash;"


def percent(share: float) -> str:
    """Return a finite share as a percentage of at most one decimal, without the sign."""
    return f"{100 * share:.1f}".removesuffix(".0")


def interval(facts: Mapping[str, Any], key: str = "ci95") -> tuple[float, float] | None:
    """Return the two ends under `key`, None where they are not both there."""
    low, high = (number(end) for end in facts.get(key) or (None, None))
    return (low, high) if math.isfinite(low + high) else None


def fill(facts: Mapping[str, Any], forms: Mapping[str, str], glue: str = "") -> str:
    """Return the form of each fact that is there, filled in and joined."""
    there = {key: facts[key] for key in forms if facts.get(key) is not None}
    return glue.join(forms[key].format(escape(f"{v:g}" if isinstance(v, float) else str(v))) for key, v in there.items())


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), kind: str = "") -> str:
    """Return a table of markup, each row's first cell its heading, or nothing without rows."""
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    top = f"<thead><tr>{''.join(f'<th>{word}</th>' for word in head)}</tr></thead>" if head else ""
    return f'<table class="{kind}">{top}<tbody>{body}</tbody></table>' if body else ""


def share(pictures: int) -> int:
    """Return the bytes that each of so many pictures of a page may take."""
    return (PAGE - WORDS) // max(1, pictures)


def picture(image: Image.Image, alt: str, most: int = PAGE) -> str:
    """Return an element that holds the picture itself: a small one unchanged as PNG, a large one scaled down as JPEG.

    Where that takes more than `most` bytes it is a JPEG of lower quality, and at last of fewer pixels.
    """
    image = flattened(image).copy()
    kind = "small" if max(image.size) <= SMALL else "large"
    image.thumbnail((LARGEST, LARGEST))
    tries = ((name, quality) for name, quality in ([("PNG", 0)] if kind == "small" else []) + [("JPEG", one) for one in QUALITIES])
    encoded = ""
    for name, quality in tries:
        encoded = _encoded(image, name, quality)
        if len(encoded) <= most:
            break
    while len(encoded) > most and max(image.size) > 1:
        image.thumbnail((max(image.size) * 3 // 4, max(image.size) * 3 // 4))
        encoded = _encoded(image, "JPEG", QUALITIES[-1])
    return f'<img class="{kind}" src="{encoded}" alt="{escape(short(alt))}">'


def _encoded(image: Image.Image, name: str, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, name, quality=quality)
    return f"data:image/{name.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def short(text: str, most: int = LONGEST) -> str:
    """Return the beginning of a long text.

    >>> short("a red star", 5)
    'a red ...'
    """
    return text if len(text) <= most else f"{text[:most]} ..."


def document(title: str, headline: str, body: str, style: str = "") -> str:
    """Return a whole page. Its policy forbids scripts and everything from outside, whatever slipped into it."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title><style>
{STYLE.read_text(encoding="utf-8")}{style}</style></head>
<body><main><h1>{headline}</h1>{body}</main></body></html>
"""
