"""TRL's preference format: `chosen` and `rejected` with a `prompt` or, where it is implicit, with a common beginning; texts or messages."""

from __future__ import annotations

from itertools import takewhile

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import IMAGE_SUFFIXES, Reader, Row, open_rows
from diffalign.data.readers.chat import answer, chat_record, common_start, messages, split_history
from diffalign.data.records import Candidate, Message, Record


def parse(row: Row) -> Record:
    """Return the pair, chosen first."""
    if isinstance(row.get("chosen", (str, list)), list):
        return _conversation(row)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if "prompt" in row.value:
        return _pair(row, row.text("prompt"), chosen, rejected)
    prompt = implicit_prompt(chosen, rejected)
    if not prompt or chosen == rejected:
        found = "are the same text" if chosen == rejected else "have no beginning in common"
        raise RecordError(f"{row.where}: `chosen` and `rejected` {found}; expected a column `prompt`, or a beginning to take as one")
    return _pair(row, prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def _pair(row: Row, prompt: str, chosen: str, rejected: str) -> Record:
    return Record(row.id, prompt, (Candidate(text=chosen), Candidate(text=rejected)), prob=1.0, source=row.where)


def implicit_prompt(chosen: str, rejected: str) -> str:
    """Return the common beginning, less the word in which the texts part and less one space, which starts both answers.

    TRL's `extract_prompt` gives the same except that it cuts through a word; such a prompt has other tokens than its whole text.

    >>> implicit_prompt("The sky is blue.", "The sky is black.")
    'The sky is'
    """
    shared = chosen[: common_start(chosen, rejected)]
    started = sum(1 for _ in takewhile(_in_word, reversed(shared)))
    return shared[: len(shared) - started].removesuffix(" ")


def _in_word(character: str) -> bool:
    """Whether `character` is a digit or a letter with case: scripts without case mostly do without spaces as well."""
    return character.isdigit() or character.lower() != character.upper()


def _conversation(row: Row) -> Record:
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    prompt = row.value.get("prompt")
    if isinstance(prompt, list):
        history = messages(row, "prompt")
    else:
        history, chosen, rejected = split_history(chosen, rejected)
        # Many datasets carry the last turn in `prompt` and repeat it in both conversations; it is needed only where they do not.
        if not history and "prompt" in row.value:
            history = (Message("user", row.text("prompt")),)
    texts = answer(row, "chosen", chosen), answer(row, "rejected", rejected)
    return chat_record(row, history, [Candidate(text=text) for text in texts], prob=1.0)


def matches(row: Row) -> bool:
    """Whether `chosen` is a text or a list of messages, and neither an image file nor a layout with a reader of its own."""
    chosen = row.value.get("chosen")
    if "instruction" in row.value or "conversations" in row.value:
        return False
    if isinstance(chosen, str):
        return not chosen.startswith("\n\nHuman:") and not chosen.lower().endswith(IMAGE_SUFFIXES)
    return isinstance(chosen, list) and "score_chosen" not in row.value


TRL = Reader(open_rows, parse, ("chosen", "rejected"), "TRL preference format (prompt, chosen, rejected; texts or message lists)", matches)
