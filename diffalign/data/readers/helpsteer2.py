"""NVIDIA HelpSteer2: five ratings from 0 to 4 per response (2406.08673), or the strength of a preference (2410.01257)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import chat_record
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Message, Record

ASPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
SECOND = "second row"  # the key under which `rows` puts the row of the second response; no column has a space in its name
TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Yield rows with a preference unchanged; join two consecutive rated rows of one prompt into the first, which holds the second."""
    first: Row | None = None
    for row in open_rows(source, split):
        if first is not None and row.value.get("prompt", row) == first.value.get("prompt"):  # a missing prompt equals no other
            yield replace(first, value={**first.value, SECOND: row})
            first = None
            continue
        if first is not None:
            yield first
        first = None if "preference_strength" in row.value else row
        if first is None:
            yield row
    if first is not None:
        yield first


def parse(row: Row) -> Record:
    """Return the pair in the order of the file; `prob` is 1, 0 or one half, by the preference's strength or by rated helpfulness."""
    return _preference(row) if "preference_strength" in row.value else _ratings(row)


def _preference(row: Row) -> Record:
    strength = row.number("preference_strength")
    if strength not in range(-3, 4):
        raise RecordError(f"{row.where}: column `preference_strength` is {strength:g}; expected a whole number from -3 to 3")
    meta = {"preference_strength": f"{strength:g}"}
    if "split" in row.value:  # one file holds both splits
        meta["split"] = row.text("split")
    if (why := row.optional("preference_elaboration") or row.optional("preference_statement")) is not None:
        meta["rationale"] = why
    candidates = [Candidate(text=row.text(f"response_{side}")) for side in (1, 2)]
    return chat_record(row, turns(row.text("prompt")), candidates, prob=_prob(-strength), meta=meta)


def _ratings(row: Row) -> Record:
    second = row.value.get(SECOND)
    pair = (row, second) if isinstance(second, Row) else (row,)
    candidates = [Candidate(text=r.text("response"), scores={name: r.number(name) for name in ASPECTS}) for r in pair]
    history = turns(row.text("prompt"))
    if len(candidates) != 2:
        raise RecordError(f"{row.where}: found one rated response to its prompt; expected two consecutive rows with one prompt")
    helpful = [c.scores["helpfulness"] for c in candidates]
    return chat_record(row, history, candidates, prob=_prob(helpful[0] - helpful[1]))


def _prob(advantage: float) -> float:
    return 0.5 if advantage == 0 else float(advantage > 0)


def turns(prompt: str) -> list[Message]:
    """Return the conversation in a prompt: one user turn, or several that begin with <extra_id_1>User or <extra_id_1>Assistant."""
    start, *parts = TURN.split(prompt)
    contents = zip(parts[::2], parts[1::2], strict=True)
    return [Message("user", start), *(Message(speaker.lower(), content) for speaker, content in contents)]


HELPSTEER2 = Reader(
    rows,
    parse,
    ("prompt", "response|response_1", "response|response_2", "helpfulness|preference_strength"),
    "HelpSteer2 (response and five ratings, or response_1, response_2, preference_strength)",
)
