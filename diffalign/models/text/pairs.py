"""From a view on a table of texts to batches of token ids."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from diffalign.core.errors import TableError
from diffalign.core.parts import Index
from diffalign.core.types import TextBatch
from diffalign.data.labels import labels_of
from diffalign.data.view import View
from diffalign.models.text.rationale import have_rationales
from diffalign.models.text.template import Encoded, Template
from diffalign.models.text.tokens import AT_ONCE, Tokens, tokens
from diffalign.models.text.truncation import Limit

logger = logging.getLogger(__name__)

CLOSING = 3  # last tokens of an answer among which templates put the one that ends it; a line break may follow


class TextPairs(Dataset[dict[str, Any]]):
    """A view's records as token ids, tokenised once, by the constructor, and kept under `root` if they are many.

    It takes those records out of the view's entries that the limit leaves out, so that positions are the view's own. With `mismatched`
    each record gets one candidate more, the last: its prompt with an answer of the nearest record before it (the view is taken as a
    ring) that has another prompt, candidate 0 for records at even positions and 1 at odd ones; KTO estimates its divergence from them
    (2402.01306), good and bad ones alike, as TRL does. They are scored with the rest, so their gradient is computed and thrown away.
    With `rationales`, which does not go with that, the last candidate is why the first was preferred (`rationale.explained`).
    Raises TableError if no record is left, if all have the same prompt where mismatched ones are needed, or none has a rationale; else as
    `Template.encode`.
    """

    buckets: np.ndarray | None = None  # records of any length share a batch
    reference: Callable[[int], np.ndarray] | None = None  # of a position: the reference's log-probabilities (K, L) float32, zero-padded

    def __init__(
        self, view: View, template: Template, limit: Limit, *, mismatched: bool = False, rationales: bool = False, root: Path | None = None
    ) -> None:
        self.view, self.mismatched, self.limit, self._begin = view, mismatched, limit, template.tokenizer.bos_token_id
        self._have_rationales = have_rationales(view.table) if rationales else None  # (R,) of the table's rows
        self._tokens = tokens(view, template, root, rationales=rationales)
        self._places = _admitted(view, self._tokens, limit)  # (B,) of the view's records among the tokens
        self._others = _mismatched(view, self._tokens, self._places) if mismatched else None
        self._layout = limit.layout(self._tokens, self._places, self._others)
        self._first = _starts(self._layout.counts)  # (B + 1,) among the completions
        self._report()
        if self.conversational:
            _report_endless(self._tokens[:AT_ONCE], template)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        record = self._record(index[0])
        prompts = [_tensor(ids) for ids in record.prompts]
        return {
            "prompts": tuple(prompts[answered] for answered in record.answers),
            "completions": tuple(map(_tensor, record.completions)),
            "reference": None if self.reference is None else self.reference(index[0]),
            "entry": self.view.entries[index[0]],
        }

    def _record(self, position: int) -> Encoded:
        """Return a record with what fits of it."""
        record = self._tokens[int(self._places[position])]
        if self._others is not None:
            record = _joined(record, self._tokens[int(self._others[position])], position % 2)
        return self.limit.cut(record, self._begin)

    def to_batch(self, rows: list[dict[str, Any]]) -> TextBatch:
        """Return the batch of loaded rows."""
        entries = [row["entry"] for row in rows]
        reference = rationale = None
        if self.reference is not None:
            reference = pad_sequence([torch.from_numpy(row["reference"]).T for row in rows], batch_first=True).mT
        if self._have_rationales is not None:
            rationale = torch.from_numpy(self._have_rationales[[entry.row for entry in entries]])
        return TextBatch(
            tuple(row["prompts"] for row in rows),
            tuple(row["completions"] for row in rows),
            torch.tensor([entry.prob for entry in entries]),
            tuple(entry.id for entry in entries),
            reference,
            labels_of(self.view, entries),
            mismatched=self.mismatched,
            rationale=rationale,
        )

    @property
    def conversational(self) -> bool:
        """Whether records are conversations, which a chat template writes."""
        return self.view.entries.conversational

    def lengths(self, position: int) -> tuple[int, ...]:
        """Return the tokens of each candidate's completion."""
        return tuple(self._layout.completions[self._first[position] : self._first[position + 1]].tolist())

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt with its completion."""
        return int((self._layout.prompts[self._layout.prompt_of] + self._layout.completions).max())

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all token ids and of what belongs together."""
        digest, own = hashlib.sha256(), self._layout
        for name, lengths in (("prompts", own.prompts), ("completions", own.completions)):
            digest.update(_starts(lengths).tobytes())
            for position in range(len(self)):
                for ids in getattr(self._record(position), name):
                    digest.update(ids.tobytes())
        digest.update(self._first.tobytes() + own.prompt_of.tobytes())
        return digest.hexdigest()

    def _report(self) -> None:
        """Say how many records were cut, and how many compare a text with itself."""
        own, same = self._layout, 0
        pairs = np.flatnonzero(np.diff(self._first) > 1)
        one, two = self._first[pairs], self._first[pairs] + 1
        alike = (own.prompt_of[one] == own.prompt_of[two]) & (own.completions[one] == own.completions[two])
        for position in pairs[alike].tolist():
            first, second, *_ = self._record(position).completions
            same += np.array_equal(first, second)
        if own.shorter:
            logger.info("%d of %d records are cut to max_length %d (%s)", own.shorter, len(self), self.limit.max_length, self.limit.mode)
        if self._have_rationales is not None:
            there = int(self._have_rationales[self.view.entries.rows].sum())
            logger.info("%d of %d records say why one answer was preferred", there, len(self))
        if same:
            logger.info("%d of %d records have equal candidates: their margin is 0 and they teach no preference", same, len(self))


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _tensor(ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))


def _admitted(view: View, own: Tokens, limit: Limit) -> np.ndarray:
    """Return the places (B,) of the records that the limit admits, and leave the others out of the view."""
    if len(parted := np.flatnonzero(own.lost)):
        logger.warning(
            "%d of %d records: the tokenised prompt does not begin the tokenised whole (tokens merge across the boundary, or the chat "
            "template writes the prompt differently when an answer follows); its end is left out, of record %s %d tokens",
            *(len(parted), len(own), view.entries[int(parted[0])].id, own.lost[parted[0]]),
        )
    longest = own.longest_prompts
    admitted = np.flatnonzero(limit.admitted(longest))
    if not len(admitted):
        raise TableError(
            f"{view.table.path}: no record is left of {len(own)}: the prompt alone fills max_length ({limit.max_length} tokens; the "
            f"shortest prompt has {longest.min() if len(own) else 0}). Raise max_length, or cut prompts with truncation_mode keep_end"
        )
    if len(admitted) < len(own):
        logger.warning(
            "%d of %d records are left out: the prompt alone fills max_length (%d tokens)",
            *(len(own) - len(admitted), len(own), limit.max_length),
        )
    view.keep(admitted, "have a prompt that fills max_length")
    return admitted


def _mismatched(view: View, own: Tokens, places: np.ndarray) -> np.ndarray:
    """Return the place (B,) of the nearest record before each one, the records taken as a ring, that has another prompt."""
    lengths = own.lengths[own.first[places] + own.kinds[own.first[places + 1] - own.completions[places]]]
    differs = lengths != np.roll(lengths, 1)
    for position in np.flatnonzero(~differs).tolist():
        differs[position] = not np.array_equal(_prompt(own[int(places[position])]), _prompt(own[int(places[position - 1])]))
    if not differs.any():
        raise TableError(
            f"{view.table.path}: all {len(places)} records have the same prompt; this objective scores prompts with the answers to others, "
            "too"
        )
    turns = np.flatnonzero(differs)  # the record before each of these has another prompt than the records from there on
    last = turns[np.searchsorted(turns, np.arange(len(places)), "right") - 1]
    return places[last - 1]


def _prompt(record: Encoded) -> np.ndarray:
    return record.prompts[record.answers[0]]


def _joined(record: Encoded, other: Encoded, which: int) -> Encoded:
    """Return a record with an answer of another one as one candidate more."""
    given = other.completions[min(which, len(other.completions) - 1)]
    return replace(record, answers=(*record.answers, record.answers[0]), completions=(*record.completions, given))


def _report_endless(records: Sequence[Encoded], template: Template) -> None:
    """Warn of a chat template that writes no special token behind an answer: who learns from such answers never stops."""
    special = set(template.tokenizer.all_special_ids)
    if not any(special & set(answer[-CLOSING:].tolist()) for record in records for answer in record.completions):
        logger.warning("the chat template writes no token that ends an answer: the model will not learn to stop; add eos_token to it")
