"""From a view on a table of texts to batches of token ids."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from diffalign.core.errors import TableError
from diffalign.core.parts import Index
from diffalign.core.progress import chunks
from diffalign.core.types import TextBatch
from diffalign.data.labels import labels_of
from diffalign.data.view import View
from diffalign.models.text.template import Encoded, Template
from diffalign.models.text.truncation import Limit

logger = logging.getLogger(__name__)

PART = 512  # records tokenised at once
CLOSING = 3  # last tokens of an answer among which templates put the one that ends it; a line break may follow


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of token ids of different lengths in one array."""

    values: np.ndarray  # (N,) int32
    first: np.ndarray  # (rows + 1,) int64: where each row starts

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Ragged:
        """Return `rows`, at least one, end to end."""
        return cls(np.concatenate(rows).astype(np.int32), _starts(list(map(len, rows))))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.first[row] : self.first[row + 1]]


class TextPairs(Dataset[dict[str, Any]]):
    """A view's records as token ids, tokenised once, by the constructor.

    It takes those records out of the view's entries that the limit leaves out, so that positions are the view's own. With `mismatched`
    each record gets one candidate more, the last: its prompt with an answer of the nearest record before it (the view is taken as a
    ring) that has another prompt, candidate 0 for records at even positions and 1 at odd ones; KTO estimates its divergence from them
    (2402.01306), good and bad ones alike, as TRL does. They are scored with the rest, so their gradient is computed and thrown away.
    Raises TableError if no record is left, or if all have the same prompt where mismatched ones are needed; else as `Template.encode`.
    """

    buckets: np.ndarray | None = None  # records of any length share a batch
    reference: Callable[[int], np.ndarray] | None = None  # of a position: the reference's log-probabilities (K, L) float32, zero-padded

    def __init__(self, view: View, template: Template, limit: Limit, *, mismatched: bool = False) -> None:
        self.view, self.mismatched = view, mismatched
        records = _admitted(view, template, limit)
        if mismatched:
            records = _with_mismatched(view, records)
        cut = [limit.cut(record, template.tokenizer.bos_token_id) for record in records]
        _report_cut(records, cut, limit)
        if self.conversational:
            _report_endless(records[:PART], template)
        self._prompts = Ragged.of([prompt for record in cut for prompt in record.prompts])
        self._completions = Ragged.of([completion for record in cut for completion in record.completions])
        self._first = _starts([len(record.completions) for record in cut])  # (B + 1,) among the completions
        before = _starts([len(record.prompts) for record in cut])
        own = [before[i] + which for i, record in enumerate(cut) for which in record.answers]
        self._prompt_of = np.asarray(own, np.int64)  # (completions,)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: Index) -> dict[str, Any]:
        position = index[0]
        own = [int(self._prompt_of[i]) for i in self._rows(position)]
        prompts = {row: _tensor(self._prompts[row]) for row in own}
        return {
            "prompts": tuple(prompts[row] for row in own),
            "completions": tuple(_tensor(self._completions[i]) for i in self._rows(position)),
            "reference": None if self.reference is None else self.reference(position),
            "entry": self.view.entries[position],
        }

    def to_batch(self, rows: list[dict[str, Any]]) -> TextBatch:
        """Return the batch of loaded rows."""
        entries = [row["entry"] for row in rows]
        reference = None
        if self.reference is not None:
            reference = pad_sequence([torch.from_numpy(row["reference"]).T for row in rows], batch_first=True).mT
        return TextBatch(
            tuple(row["prompts"] for row in rows),
            tuple(row["completions"] for row in rows),
            torch.tensor([entry.prob for entry in entries]),
            tuple(entry.id for entry in entries),
            reference,
            labels_of(self.view, entries),
            mismatched=self.mismatched,
        )

    @property
    def conversational(self) -> bool:
        """Whether records are conversations, which a chat template writes."""
        return self.view.entries.conversational

    def lengths(self, position: int) -> tuple[int, ...]:
        """Return the tokens of each candidate's completion."""
        return tuple(len(self._completions[i]) for i in self._rows(position))

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt with its completion."""
        return int((np.diff(self._prompts.first)[self._prompt_of] + np.diff(self._completions.first)).max())

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all token ids and of what belongs together."""
        digest = hashlib.sha256()
        for rows in (self._prompts, self._completions):
            digest.update(rows.first.tobytes() + rows.values.tobytes())
        digest.update(self._first.tobytes() + self._prompt_of.tobytes())
        return digest.hexdigest()

    def _rows(self, position: int) -> range:
        return range(int(self._first[position]), int(self._first[position + 1]))


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *counts], dtype=np.int64)


def _tensor(ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))


def _admitted(view: View, template: Template, limit: Limit) -> list[Encoded]:
    """Tokenise a view, take out of its entries what the limit leaves out, and return the rest."""
    records: list[Encoded] = []
    for part in chunks(list(range(len(view))), PART, "tokenise"):
        records += template.encode([view[i] for i in part])
    parted = [i for i, record in enumerate(records) if record.lost]
    if parted:
        logger.warning(
            "%d of %d records: the tokenised prompt does not begin the tokenised whole (tokens merge across the boundary, or the chat "
            "template writes the prompt differently when an answer follows); its end is left out, of record %s %d tokens",
            *(len(parted), len(records), view.entries[parted[0]].id, records[parted[0]].lost),
        )
    admitted = [i for i, record in enumerate(records) if limit.admits(record)]
    if not admitted:
        shortest = min((max(map(len, record.prompts)) for record in records), default=0)
        raise TableError(
            f"{view.table.path}: no record is left of {len(records)}: the prompt alone fills max_length ({limit.max_length} tokens; the "
            f"shortest prompt has {shortest}). Raise max_length, or cut prompts with truncation_mode keep_end"
        )
    if len(admitted) < len(records):
        logger.warning(
            "%d of %d records are left out: the prompt alone fills max_length (%d tokens)",
            *(len(records) - len(admitted), len(records), limit.max_length),
        )
    view.keep(admitted, "have a prompt that fills max_length")
    return [records[i] for i in admitted]


def _with_mismatched(view: View, records: Sequence[Encoded]) -> list[Encoded]:
    """Return each record with an answer of the nearest one before it that has another prompt as one candidate more."""
    count, other = len(records), None
    others: dict[int, int] = {}
    for i in (*range(count), *range(count)):  # the first time round finds what is before the first record
        if not np.array_equal(_prompt(records[i]), _prompt(records[i - 1])):
            other = (i - 1) % count
        if other is not None:
            others[i] = other
    if other is None:
        raise TableError(
            f"{view.table.path}: all {count} records have the same prompt; this objective scores prompts with the answers to others, too"
        )
    return [_joined(record, records[others[i]], i % 2) for i, record in enumerate(records)]


def _prompt(record: Encoded) -> np.ndarray:
    return record.prompts[record.answers[0]]


def _joined(record: Encoded, other: Encoded, which: int) -> Encoded:
    given = other.completions[min(which, len(other.completions) - 1)]
    return replace(record, answers=(*record.answers, record.answers[0]), completions=(*record.completions, given))


def _report_cut(records: Sequence[Encoded], cut: Sequence[Encoded], limit: Limit) -> None:
    """Say how many records were cut, and how many compare a text with itself."""
    shorter = sum(_tokens(old) > _tokens(new) for old, new in zip(records, cut, strict=True))
    same = sum(len(r.completions) > 1 and r.answers[0] == r.answers[1] and np.array_equal(*r.completions[:2]) for r in cut)
    if shorter:
        logger.info("%d of %d records are cut to max_length %d (%s)", shorter, len(cut), limit.max_length, limit.mode)
    if same:
        logger.info("%d of %d records have equal candidates: their margin is 0 and they teach no preference", same, len(cut))


def _report_endless(records: Sequence[Encoded], template: Template) -> None:
    """Warn of a chat template that writes no special token behind an answer: who learns from such answers never stops."""
    special = set(template.tokenizer.all_special_ids)
    if not any(special & set(answer[-CLOSING:].tolist()) for record in records for answer in record.completions):
        logger.warning("the chat template writes no token that ends an answer: the model will not learn to stop; add eos_token to it")


def _tokens(record: Encoded) -> int:
    return sum(map(len, (*record.prompts, *record.completions)))
