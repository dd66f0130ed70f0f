"""TRL's preference format: `chosen` and `rejected`, texts or messages, with a `prompt` or with a common beginning that serves as one."""

from __future__ import annotations

from itertools import takewhile

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import answer, chat_record, common_start, messages, split_history
from diffalign.data.readers.columns import names_image, rationale
from diffalign.data.readers.preferences import Sides, preference
from diffalign.data.readers.row_images import shown
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Message, Record

SIDES = Sides(("chosen", "rejected"), by_preference=True)


def parse(row: Row) -> Record:
    """Return the pair, chosen first."""
    if isinstance(row.get("chosen", (str, list)), list):
        return _conversation(row)
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if names_image(chosen, row) and names_image(rejected, row):
        raise RecordError(f"{row.where}: `chosen` and `rejected` name pictures, {shown(chosen)}; this table is read as texts")
    if "prompt" in row.value:
        return _pair(row, row.text("prompt"), chosen, rejected)
    prompt = implicit_prompt(chosen, rejected)
    if not prompt or chosen == rejected:
        problem = "are the same text" if chosen == rejected else "have no beginning in common"
        raise RecordError(f"{row.where}: `chosen` and `rejected` {problem}; expected a column `prompt`, or a common beginning")
    return _pair(row, prompt, chosen[len(prompt) :], rejected[len(prompt) :])


def _pair(row: Row, prompt: str, chosen: str, rejected: str) -> Record:
    pair = Candidate(text=chosen), Candidate(text=rejected)
    return Record(row.id, prompt, pair, prob=preference(row, SIDES), source=row.where, meta=rationale(row))


def implicit_prompt(chosen: str, rejected: str) -> str:
    """Return the common beginning up to the last whole word that both share; the space after it belongs to the answers.

    TRL's `extract_prompt` differs in that it may cut within a word. The tokens of such a prompt are not the first tokens of the whole text.

    >>> implicit_prompt("The sky is blue.", "The sky is black.")
    'The sky is'
    """
    shared = chosen[: common_start(chosen, rejected)]
    partial_word = sum(1 for _ in takewhile(_in_word, reversed(shared)))
    return shared[: len(shared) - partial_word].removesuffix(" ")


def _in_word(character: str) -> bool:
    """Return whether `character` is a digit or a letter with case; most scripts without case do not separate words by spaces either."""
    return character.isdigit() or character.lower() != character.upper()


def _conversation(row: Row) -> Record:
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    prompt = row.value.get("prompt")
    if isinstance(prompt, list):
        history = messages(row, "prompt")
    else:
        history, chosen, rejected = split_history(chosen, rejected)
        # Many datasets repeat the last turn of the conversations in `prompt`; the column is needed only where the conversations lack it.
        if not history and "prompt" in row.value:
            history = (Message("user", row.text("prompt")),)
    texts = answer(row, "chosen", chosen), answer(row, "rejected", rejected)
    return chat_record(row, history, [Candidate(text=text) for text in texts], prob=preference(row, SIDES), meta=rationale(row))


def matches(row: Row) -> bool:
    """Return whether `chosen` is a text or a list of messages, and neither an image file nor of a layout that has another reader."""
    chosen = row.value.get("chosen")
    if "instruction" in row.value or "conversations" in row.value:
        return False
    if isinstance(chosen, str):
        return not chosen.startswith("\n\nHuman:") and not names_image(chosen, row)
    return isinstance(chosen, list) and "score_chosen" not in row.value


TRL = Reader(open_rows, parse, ("chosen", "rejected"), "TRL preference format (prompt, chosen, rejected; texts or message lists)", matches)
