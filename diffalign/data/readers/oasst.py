"""OpenAssistant Conversations (2304.07327): message trees, as flat rows of messages or as whole trees; ranks of sibling answers from 0.

A record is a turn of a user with two or more answers of assistants beneath it; deleted messages are left out. Flat rows of a tree stand
next to each other, as in the published files. An answer without a rank has none here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.chat import chat_record
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Message, Record

ROLES = {"prompter": "user", "assistant": "assistant"}
TURN = "turn with answers"  # the key under which `rows` puts (messages so far, answers); no column has a space in its name


def rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Yield a row for every turn with answers; rows that are no messages are passed on as they are."""
    for key, group in groupby(open_rows(source, split), key=_tree):
        if key is None:
            yield from group
            continue
        own = list(group)
        first = own[0]
        if "prompt" in first.value:
            yield from (turn for row in own for turn in _turns(row, row.value["prompt"], ()))
            continue
        replies: dict[Any, list[Mapping[str, Any]]] = {}
        for row in own:
            replies.setdefault(row.value.get("parent_id"), []).append(row.value)
        for root in replies.get(None, []):
            yield from _turns(first, _nested(root, replies), ())


def _tree(row: Row) -> str | None:
    """Return the tree that a message is of, None for a row that is no message."""
    return None if row.broken or ("text" not in row.value and "prompt" not in row.value) else row.optional("message_tree_id")


def _nested(message: Mapping[str, Any], replies: Mapping[Any, list[Mapping[str, Any]]]) -> dict[str, Any]:
    return {**message, "replies": [_nested(reply, replies) for reply in replies.get(message.get("message_id"), [])]}


def _turns(row: Row, message: Any, before: tuple[Any, ...]) -> Iterator[Row]:
    """Yield the turns of a tree whose answers can be compared, the first ones first."""
    if not isinstance(message, Mapping) or message.get("deleted"):
        return
    path, replies = (*before, message), [reply for reply in message.get("replies") or () if not reply.get("deleted")]
    if message.get("role") == "prompter" and len(replies) > 1:
        name = str(message.get("message_id"))
        yield replace(row, value={**row.value, TURN: (path, replies)}, id=f"{row.id}/{name}", where=f"{row.where} message {name}")
    for reply in replies:
        yield from _turns(row, reply, path)


def parse(row: Row) -> Record:
    """Return the turn with its answers in the file's order; rank 1 is the best."""
    path, replies = row.get(TURN)
    history = [Message(_role(row, message), _text(row, message)) for message in path]
    candidates = [Candidate(text=_text(row, reply), rank=_rank(row, reply), model=reply.get("model_name")) for reply in replies]
    language = path[-1].get("lang")
    return chat_record(row, history, candidates, prob=None, meta={"lang": str(language)} if language else {})


def _role(row: Row, message: Mapping[str, Any]) -> str:
    if message.get("role") not in ROLES:
        raise RecordError(f"{row.where}: `role` is {message.get('role')!r}; expected prompter or assistant")
    return ROLES[message["role"]]


def _text(row: Row, message: Mapping[str, Any]) -> str:
    if not isinstance(message.get("text"), str):
        raise RecordError(f"{row.where}: `text` is {type(message.get('text')).__name__}; expected a text")
    return message["text"]


def _rank(row: Row, message: Mapping[str, Any]) -> float | None:
    rank = message.get("rank")
    if rank is None or rank != rank:  # pandas has NaN for none
        return None
    if not isinstance(rank, int | float) or isinstance(rank, bool):
        raise RecordError(f"{row.where}: `rank` is {rank!r}; expected a number")
    return float(rank) + 1.0


OASST = Reader(
    rows,
    parse,
    ("message_tree_id", TURN),
    "OpenAssistant Conversations: messages (message_tree_id, text, role, rank) or whole trees",
)
