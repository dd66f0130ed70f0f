"""Anthropic HH-RLHF: two dialogues as texts of "Human:" and "Assistant:" turns, which differ in the last answer (2204.05862)."""

from __future__ import annotations

import re

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import answer, chat_record, common_start
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Message, Record

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")


def parse(row: Row) -> Record:
    """Return the pair, chosen first. The conversation is the text before the last "Assistant:" that both have in common."""
    sides = {name: row.text(name) for name in ("chosen", "rejected")}
    shared = sides["chosen"][: common_start(*sides.values())]
    cut = shared.rfind(ASSISTANT)
    if cut < 0 or not shared.startswith(HUMAN):
        raise RecordError(f"{row.where}: `chosen` and `rejected` share no dialogue; expected both to start {HUMAN!r} ... {ASSISTANT!r}")
    candidates = [Candidate(text=answer(row, name, turns(text[cut:]))) for name, text in sides.items()]
    return chat_record(row, turns(shared[:cut]), candidates, prob=1.0)


def turns(text: str) -> list[Message]:
    r"""Return the turns of a dialogue; the space after a colon belongs to the colon.

    >>> [m.content for m in turns("\n\nHuman: Hi.\n\nAssistant: Hello!")]
    ['Hi.', 'Hello!']
    """
    _, *parts = TURN.split(text)
    speakers, contents = parts[::2], parts[1::2]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[speaker], content.removeprefix(" ")) for speaker, content in zip(speakers, contents, strict=True)]


def matches(row: Row) -> bool:
    """Return whether both texts start with a human turn."""
    return all(str(row.value.get(name)).startswith(HUMAN) for name in ("chosen", "rejected"))


HH_RLHF = Reader(open_rows, parse, ("chosen", "rejected"), "Anthropic HH-RLHF (chosen, rejected: Human/Assistant dialogues)", matches)
