"""The page of what the scores of tools stand on, in one file that runs and fetches nothing: pictures with their boxes, checks and texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from diffalign.data.pictures import decode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import Table
from diffalign.evaluate.pages.html import document, picture, share, short
from diffalign.rewards.score_table import EVIDENCE
from diffalign.rewards.tools.findings import drawn

MOST = 60  # pictures on the page
FIGURE = '<figure style="display:inline-block;margin:0 1em 1em 0;vertical-align:top;max-width:24em">{}<figcaption>{}</figcaption></figure>'


def names_of(table: Table) -> list[str]:
    """Return the scorers whose scores' evidence a table keeps."""
    scorers = table.manifest.get("scorers") or ()
    first = next(iter(table), None)
    return [about["name"] for about in scorers if first is not None and f"{EVIDENCE}{about['name']}" in first.meta]


def page(table: Table, name: str) -> str:
    """Return the page of a scorer: the first pictures that it judged, with what it saw."""
    shown = list(itertools.islice(_judged(table, name), MOST))
    figures = (_figure(record, candidate, facts, name, share(len(shown))) for record, candidate, facts in shown)
    head = f"What {escape(name)} saw in the first {len(shown)} pictures that were scored"
    return document(f"diffalign: what {name} saw", head, "\n".join(figures))


def _judged(table: Iterable[Record], name: str) -> Iterator[tuple[Record, Candidate, Mapping[str, Any]]]:
    for record in table:
        for candidate, facts in zip(record.candidates, json.loads(record.meta.get(f"{EVIDENCE}{name}", "[]")), strict=False):
            if facts is not None:
                yield record, candidate, facts


def _figure(record: Record, candidate: Candidate, facts: Mapping[str, Any], name: str, most: int) -> str:
    image = drawn(decode_image(candidate.image or b"", record.source), facts["boxes"])
    words = [f"<b>{candidate.scores[name]:.2f}</b> {escape(short(record.prompt, 160))}"]
    words += [f"{'&#10003;' if value >= 1.0 else '&#10007;'} {escape(check)} ({value:.2f})" for check, value in facts["checks"].items()]
    words += [f"read: {escape(short(line['text'], 80))}" for line in facts["lines"]]
    return FIGURE.format(picture(image, record.prompt, most), "<br>".join(words))
