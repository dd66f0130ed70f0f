"""UltraFeedback, binarized: message lists that repeat the prompt, and an overall score for each side (2310.01377)."""

from __future__ import annotations

from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import answer, chat_record, messages, split_history
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record


def parse(row: Row) -> Record:
    """Return the pair, chosen first, with the score `rating` of each; equal ratings do not make it a tie."""
    history, chosen, rejected = split_history(messages(row, "chosen"), messages(row, "rejected"))
    candidates = [
        Candidate(text=answer(row, side, completion), scores={"rating": row.number(f"score_{side}")})
        for side, completion in (("chosen", chosen), ("rejected", rejected))
    ]
    meta = {"prompt_id": row.text("prompt_id")} if "prompt_id" in row.value else {}
    return chat_record(row, history, candidates, prob=1.0, meta=meta)


def matches(row: Row) -> bool:
    """Return whether `chosen` is a list of messages."""
    return isinstance(row.value.get("chosen"), list)


ULTRAFEEDBACK = Reader(
    open_rows,
    parse,
    ("chosen", "rejected", "score_chosen", "score_rejected"),
    "UltraFeedback binarized (chosen, rejected, score_chosen, score_rejected)",
    matches,
)
