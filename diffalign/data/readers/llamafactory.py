"""The preference layouts of LLaMA-Factory: ShareGPT and alpaca rankings, v1 message lists, and unpaired messages with a label."""

from __future__ import annotations

from collections.abc import Callable

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import answer, chat_record, message, messages, split_history
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Message, Record


def parse(row: Row) -> Record:
    """Return the pair, chosen first. An unpaired row becomes one candidate without `prob`, and its label goes into `meta`."""
    for columns, layout in LAYOUTS.items():
        if set(columns) <= row.value.keys():
            return layout(row)
    expected = ", or ".join(" + ".join(columns) for columns in LAYOUTS)
    raise RecordError(row.broken or f"{row.where}: the columns are {', '.join(row.value)}; expected {expected}")


def _sharegpt(row: Row) -> Record:
    history = (*_system(row), *messages(row, "conversations"))
    candidates = [
        Candidate(text=answer(row, side, [message(f"{row.where}: column `{side}`", row.get(side))])) for side in ("chosen", "rejected")
    ]
    return chat_record(row, history, candidates, prob=1.0)


def _v1(row: Row) -> Record:
    sides = ("chosen_messages", "rejected_messages")
    history, *completions = split_history(*(messages(row, side) for side in sides))
    candidates = [Candidate(text=answer(row, side, completion)) for side, completion in zip(sides, completions, strict=True)]
    return chat_record(row, history, candidates, prob=1.0)


def _alpaca(row: Row) -> Record:
    # One newline joins instruction and input, as LLaMA-Factory itself does.
    prompt = "\n".join(row.text(name) for name in ("instruction", "input") if row.value.get(name))
    candidates = tuple(Candidate(text=row.text(side)) for side in ("chosen", "rejected"))
    before = (*_system(row), *_turns(row))
    if before:
        return chat_record(row, (*before, Message("user", prompt)), candidates, prob=1.0)
    return Record(row.id, prompt, candidates, prob=1.0, source=row.where)


def _kto(row: Row) -> Record:
    turns, label = messages(row, "messages"), row.get("label", bool)
    candidate = Candidate(text=answer(row, "messages", turns[-1:]))
    return chat_record(row, turns[:-1], [candidate], prob=float(label), meta={"label": str(label).lower()})


def _system(row: Row) -> tuple[Message, ...]:
    return (Message("system", row.text("system")),) if row.value.get("system") else ()


def _turns(row: Row) -> list[Message]:
    """Return the earlier rounds of an alpaca row, `history`: pairs of a question and its answer."""
    rounds = row.get("history", list) if row.value.get("history") else []
    for number, pair in enumerate(rounds):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RecordError(f"{row.where}: column `history` round {number} is not a pair of texts; expected [question, answer]")
    return [Message(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)]


def matches(row: Row) -> bool:
    """Return whether the row has all columns of one of the layouts."""
    return any(set(columns) <= row.value.keys() for columns in LAYOUTS)


LAYOUTS: dict[tuple[str, ...], Callable[[Row], Record]] = {
    ("conversations", "chosen", "rejected"): _sharegpt,
    ("chosen_messages", "rejected_messages"): _v1,
    ("instruction", "chosen", "rejected"): _alpaca,
    ("messages", "label"): _kto,
}

LLAMAFACTORY = Reader(
    open_rows,
    parse,
    ("conversations|chosen_messages|instruction|messages", "chosen|rejected_messages|label"),
    "LLaMA-Factory preference layouts (ShareGPT, alpaca, v1 messages, unpaired messages)",
    matches,
)
