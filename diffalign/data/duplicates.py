"""Pairs that come again: the same candidates for the same prompt, with the same label or with another one.

Candidates are compared by digests: of their bytes, which costs little, or of their pixels, which also finds one picture in two files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from diffalign.data.pictures import decode_image
from diffalign.data.records import Candidate, Record


def content_digest(candidate: Candidate) -> bytes:
    """Return a hash of a candidate's file or text, and of its own conditioning image where it has one."""
    return _conditioned(candidate, hashlib.sha256(candidate.image or (candidate.text or "").encode()).digest())


def shown_digest(candidate: Candidate, image: Image.Image | None) -> bytes:
    """Return a hash of the pixels of a candidate's decoded `image` and of its own conditioning image; without one that of its content."""
    return content_digest(candidate) if image is None else _conditioned(candidate, pixels_digest(image))


def _conditioned(candidate: Candidate, digest: bytes) -> bytes:
    own = candidate.conditioning_image
    return digest if own is None else hashlib.sha256(digest + hashlib.sha256(own).digest()).digest()


def pixels_digest(image: Image.Image) -> bytes:
    """Return a hash of an image's size and pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def pair_key(record: Record, digests: Sequence[bytes]) -> bytes:
    """Return a hash of what the record compares: prompt, conversation, conditioning image, and its candidates, whatever their order."""
    turns = [(message.role, message.content) for message in record.messages]
    candidates = sorted(digest + (c.prompt or "").encode() for digest, c in zip(digests, record.candidates, strict=True))
    shared = hashlib.sha256(record.conditioning_image or b"").digest()
    return hashlib.blake2b(repr((record.prompt, turns, candidates, shared)).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Repeat:
    """That a record compares what an earlier one compares: with the same or the opposite label, or the opposite one of another person."""

    kind: Literal["same", "opposite", "disputed"]
    earlier: str  # id of the earlier record


class EarlierPairs:
    """Remembers the pairs of a table, to find those that come again."""

    def __init__(self) -> None:
        self._ids: dict[tuple[bytes, str | None], str] = {}  # (pair, user) -> id of its first record
        # Pair, or pair and user that is not the pair's first -> (id, whether the candidate with the smaller digest is preferred, user).
        self._first: dict[bytes, tuple[str, bool, str | None]] = {}
        self._own: dict[tuple[bytes, str | None], tuple[str, bool, str | None]] = {}

    def compare(self, record: Record, digests: Sequence[bytes]) -> Repeat | None:
        """Return that an earlier record has the same pair and the opposite preference, or the same pair and the same user.

        An opposite preference of another user is a dispute: what methods that know users learn from, and no mistake.
        """
        key = pair_key(record, digests)
        if len(set(digests)) == 2 == len(digests) and record.prob is not None and record.prob != 0.5:
            preferred = (record.prob > 0.5) == (digests[0] < digests[1])
            label = record.id, preferred, record.user
            first = self._first.setdefault(key, label)
            own = first if first[2] == record.user else self._own.setdefault((key, record.user), label)
            if own[1] != preferred:
                return Repeat("opposite", own[0])
            if first[1] != preferred:
                return Repeat("disputed", first[0])
        earlier = self._ids.setdefault((key, record.user), record.id)
        return Repeat("same", earlier) if earlier != record.id else None


def repeat_warning(counts: Mapping[str, int]) -> str | None:
    """Return a sentence on the repeated pairs of a table, of which its manifest has `counts`; None if there are none.

    >>> repeat_warning({"same": 3, "opposite": 0, "equal": 0})
    '3 come again; `diffalign data import --merge` makes one row of each pair'
    """
    kinds = {"same": "come again", "opposite": "come again with the opposite label"}
    kinds |= {"disputed": "are of another person with the opposite label", "equal": "hold one candidate twice"}
    repeats = [f"{counts[kind]} {words}" for kind, words in kinds.items() if counts.get(kind)]
    users = ", whose users are lost; methods that know users need the rows as they are" if counts.get("disputed") else ""
    return f"{', '.join(repeats)}; `diffalign data import --merge` makes one row of each pair{users}" if repeats else None


@dataclass(slots=True)
class _Votes:
    """All labels of one pair: the sum of their chances for the candidate with the smaller digest, and who gave them."""

    total: float
    count: int
    users: set[str | None]


def merged(records: Sequence[Record], rejected: list[dict[str, str]]) -> Iterator[Record]:
    """Yield `records`, with all labels of a pair in its first record: `prob` is the share of them that prefer candidate 0.

    Pairs are equal where prompts and pixels (or texts) are; a tie counts half for either candidate. The record keeps its user if all
    labels are that user's. Pairs of one picture twice are appended to `rejected` as {where, reason}; rankings and records without a label
    stay as they are. `records` are read twice. Raises RecordError for an image that does not decode.
    """
    votes: dict[bytes, _Votes] = {}
    keys: list[tuple[bytes, bool] | None] = []  # of each record, and whether candidate 0 has the smaller digest
    for record in records:
        key = _merge_key(record)
        keys.append(key)
        if key is not None and record.prob is not None:
            chance = record.prob if key[1] else 1.0 - record.prob
            pair = votes.setdefault(key[0], _Votes(0.0, 0, set()))
            pair.total, pair.count = pair.total + chance, pair.count + 1
            pair.users.add(record.user)
    for record, key in zip(records, keys, strict=True):
        if key is None:
            yield record
        elif key[0] == b"":
            rejected.append(
                {"where": record.source, "reason": f"{record.source}: both candidates are the same, so their label says nothing"}
            )
        elif (pair := votes.pop(key[0], None)) is not None:
            share = pair.total / pair.count
            user = record.user if pair.users == {record.user} else None
            yield replace(record, prob=share if key[1] else 1.0 - share, user=user)


def _merge_key(record: Record) -> tuple[bytes, bool] | None:
    """Return the key of a labelled pair (empty where its candidates are equal) and whether candidate 0 is first in it; None for others."""
    if record.prob is None or len(record.candidates) != 2:
        return None
    first, second = (
        shown_digest(c, None if c.image is None else decode_image(c.image, f"{record.source}, candidate {i}"))
        for i, c in enumerate(record.candidates)
    )
    if first == second and record.candidates[0].prompt == record.candidates[1].prompt:
        return b"", True
    return pair_key(record, (first, second)), first < second
