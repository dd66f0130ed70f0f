"""Verdicts on two things, left and right, in the words that arenas, annotators and language models as judges write them in."""

from __future__ import annotations

import re

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Row

WORDS = {
    "left": ("left", "leftvote", "model_a", "a", "1", "a>b", "b<a"),
    "right": ("right", "rightvote", "model_b", "b", "2", "b>a", "a<b"),
    "tie": ("tie", "tievote", "0", "a=b", "b=a", "a=b=good", "bothgood", "both good"),
    "both_bad": ("bothbad", "bothbad_vote", "tie (bothbad)", "both bad", "a=b=bad"),
}  # of GenAI-Arena, Chatbot Arena, PandaLM and GenAI-Bench
VERDICTS = {word: verdict for verdict, words in WORDS.items() for word in words}
SIGNS = {"left": 1.0, "right": -1.0, "tie": 0.0}


def verdict_in(text: str | None) -> str | None:
    """Return the verdict in a text: left, right, tie or both_bad; None where it holds none.

    Of a longer answer the last verdict in double brackets counts, as judges are asked to end with one. `>>`, much better, is `>`.

    >>> verdict_in("Both show the fox, B also the hat. [[B>>A]]"), verdict_in("[[C]]"), verdict_in("tie (bothbad)"), verdict_in("fox")
    ('right', 'tie', 'both_bad', None)
    """
    word = (text or "").strip().lower()
    tagged = re.findall(r"\[\[(.*?)\]\]", word)
    if tagged and tagged[-1].strip() == "c":  # the third choice of MT-Bench's judge
        return "tie"
    word = re.sub(r"\s*([<>=])\s*", r"\1", tagged[-1].strip() if tagged else word)
    return VERDICTS.get(re.sub(r"([<>=])\1+", r"\1", word))


def verdict_of(row: Row, column: str) -> str | None:
    """Return the vote in a column: left, right, tie or both_bad; None for an empty cell. Raises RecordError for another word."""
    word = row.optional(column)
    if word is None or not word.strip():
        return None
    verdict = verdict_in(word)
    if verdict is None:
        raise RecordError(f"{row.where}: column `{column}` holds {word!r}, which is no vote; expected one of {', '.join(VERDICTS)}")
    return verdict
