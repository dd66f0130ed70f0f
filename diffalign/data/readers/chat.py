"""What the text readers share: message lists in the published layouts, and records made of a conversation and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from diffalign.core.errors import RecordError, did_you_mean
from diffalign.data.records import Candidate, Message, Record

if TYPE_CHECKING:
    from diffalign.data.readers.base import Row

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
Part = TypeVar("Part", bound=Sequence[Any])


def messages(row: Row, name: str) -> tuple[Message, ...]:
    """Return column `name`, a list of messages. Raises RecordError that names the message that cannot be read."""
    return tuple(message(f"{row.where}: column `{name}` message {i}", value) for i, value in enumerate(row.get(name, list)))


def message(where: str, value: Any) -> Message:
    """Return the message in `value`, {role, content} or {from, value}, whose content is a text or a list of text parts.

    Raises RecordError that begins with `where` for any other value.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{where} is {type(value).__name__}; expected an object with `role` and `content`, or `from` and `value`")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if role not in ROLES:
        raise RecordError(f"{where} has an unknown role {role!r}.{did_you_mean(str(role), ROLES)}")
    if isinstance(content, list):
        content = "".join(_part(where, part) for part in content)
    if not isinstance(content, str):
        raise RecordError(f"{where} has content of type {type(content).__name__}; expected text")
    return Message(ROLES[role], content)


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text", part.get("value")) if kind == "text" else None
    if not isinstance(text, str):
        raise RecordError(f"{where} has a part of type {kind!r}; expected text parts only")
    return text


def common_start(first: Part, second: Part) -> int:
    """Return how many leading items (characters of a text, turns of a conversation) the two have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def split_history(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message], Sequence[Message]]:
    """Return the leading messages that both have in common, and the rest of each: at least its last message, even where all are equal."""
    cut = common_start(chosen[:-1], rejected[:-1])
    return chosen[:cut], chosen[cut:], rejected[cut:]


def answer(row: Row, name: str, completion: Sequence[Message]) -> str:
    """Return the text of a completion from column `name`. Raises RecordError unless it is one assistant message."""
    roles = [m.role for m in completion]
    if roles != ["assistant"]:
        turns = f"{len(roles)} message(s), {' + '.join(roles)}," if roles else "no message"
        raise RecordError(f"{row.where}: column `{name}` holds {turns} after the prompt; expected one assistant message")
    return completion[0].content


def chat_record(
    row: Row, history: Sequence[Message], candidates: Sequence[Candidate], *, prob: float | None, meta: dict[str, str] | None = None
) -> Record:
    """Return the record of a conversation; its `prompt` is the last turn. Raises RecordError unless that is a user's or a tool's."""
    if not history or history[-1].role not in ("user", "tool"):
        ending = f"ends in a turn of role {history[-1].role}" if history else "is empty"
        raise RecordError(f"{row.where}: the conversation before the answers {ending}; expected a user or tool turn last")
    return Record(
        id=row.id,
        prompt=history[-1].content,
        candidates=tuple(candidates),
        prob=prob,
        source=row.where,
        messages=tuple(history),
        meta=meta or {},
    )
