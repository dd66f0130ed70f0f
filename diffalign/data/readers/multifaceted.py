"""Multifaceted Collection, which Janus was trained on (2405.17977): a system message says what a person values, and an answer fits it.

Of the published sets those of pairs (DPO, ORPO) are read, by the columns that their cards list: `system` and `prompt`, texts, and `chosen`
and `rejected`, lists of messages. The rejected answer fits another system message.
"""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import answer, chat_record, messages, split_history
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Message, Record


def parse(row: Row) -> Record:
    """Return the pair, chosen first, behind its system message; where the messages lack the prompt, it is that of the column."""
    history, chosen, rejected = split_history(messages(row, "chosen"), messages(row, "rejected"))
    turns = tuple(history) or (Message("user", row.text("prompt")),)
    if turns[0].role != "system":
        turns = (Message("system", row.text("system")), *turns)
    candidates = [Candidate(text=answer(row, "chosen", chosen)), Candidate(text=answer(row, "rejected", rejected))]
    meta = {} if (dataset := row.optional("main_source")) is None else {"dataset": dataset}
    return chat_record(row, turns, candidates, prob=1.0, meta=meta)


def matches(row: Row) -> bool:
    """Return whether `system` is a text and `chosen` a list of messages."""
    return isinstance(row.value.get("system"), str) and isinstance(row.value.get("chosen"), list)


MULTIFACETED = Reader(
    open_rows,
    parse,
    ("main_source", "system", "prompt", "chosen", "rejected"),
    "Multifaceted Collection (Janus): system, prompt, and chosen and rejected as messages",
    matches,
)
