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


def picture(image: Image.Image, alt: str) -> str:
    """Return an element that holds the picture itself: a small one unchanged as PNG, a large one scaled down as JPEG."""
    small, buffer, image = max(image.size) <= SMALL, io.BytesIO(), flattened(image).copy()
    image.thumbnail((LARGEST, LARGEST))
    image.save(buffer, "PNG" if small else "JPEG", quality=90)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="{"small" if small else "large"}" src="{source}" alt="{escape(alt)}">'


def document(title: str, headline: str, body: str, style: str = "") -> str:
    """Return a whole page. Its policy forbids scripts and everything from outside, whatever slipped into it."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title><style>
{STYLE.read_text(encoding="utf-8")}{style}</style></head>
<body><main><h1>{headline}</h1>{body}</main></body></html>
"""
