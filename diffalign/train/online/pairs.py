"""The trainer's data of a turn: what was drawn, and what the transforms make of its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diffalign.core.errors import TableError
from diffalign.core.parts import Index
from diffalign.core.types import Batch, Condition, StoredSteps, TextBatch
from diffalign.data.labels import labels_of
from diffalign.data.view import Entry, View

LATENTS, PLACES, TIMES = "latents", ("x", "x_to", "mean"), ("t", "to_t", "second")  # the tensors of a turn of images
LOG_PROB, ADVANTAGES, TRAINED = "log_prob", "advantage", "trained"  # and of its trees, the first as long as they are not judged
TOKENS, SAMPLED, NO_TOKEN = "tokens", "sampled", -1  # and of texts, padded to one length: tokens, and how likely each was


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn trains on."""

    number: int
    view: View
    tensors: Mapping[str, Tensor]  # (G, K, ...) in the order of the table
    order: np.ndarray  # of the view's entries


class TurnPairs(ABC):
    """The records of the turn that was drawn last, for an epoch and a position among its prompts.

    A turn takes `passes` epochs. Where the transforms make more or fewer entries than there are prompts, the passes go through them in
    a random order that the seed and the turn decide.
    """

    buckets: np.ndarray | None = None

    def __init__(self, prompts: int, passes: int, seed: int) -> None:
        self.prompts, self.passes, self.seed = prompts, passes, seed
        self.turn: Turn | None = None

    def open(self, number: int, view: View, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what a turn has drawn. Raises TableError where the transforms leave nothing of it."""
        if not view.entries:
            raise TableError(f"{view.table.path}: no record to train on is left of this turn ({view.usage})")
        order = np.random.default_rng([self.seed, number]).permutation(len(view.entries))
        self.turn = Turn(number, view, tensors, order)

    def __len__(self) -> int:
        return self.prompts

    def __getitem__(self, index: Index) -> dict[str, Any]:
        position, epoch = index
        turn = self.turn
        if turn is None or epoch // self.passes != turn.number:
            raise ValueError(f"epoch {epoch} is of turn {epoch // self.passes}, and what was drawn here is of {turn and turn.number}")
        place = (epoch % self.passes * self.prompts + position) % len(turn.order)
        entry = self._chosen(turn.view.entries[int(turn.order[place])], epoch)
        own = {name: value[entry.row, list(entry.order)] for name, value in turn.tensors.items()}
        return {"entry": entry} | self._row(entry, own, place, epoch)

    def _chosen(self, entry: Entry, epoch: int) -> Entry:  # noqa: ARG002  # of trees
        """Return what a pass takes of an entry: all of it."""
        return entry

    @abstractmethod
    def _row(self, entry: Entry, tensors: Mapping[str, Tensor], place: int, epoch: int) -> dict[str, Any]:
        """Return what a record is made of, of its tensors (K, ...); it is the one at `place` of the turn's order, in an epoch."""

    @abstractmethod
    def to_batch(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch of loaded rows."""

    def _opened(self) -> Turn:
        assert self.turn is not None  # a row was loaded of it
        return self.turn


class TurnImages(TurnPairs):
    """Latents that were drawn (not the pictures, encoded again), their prompts' embeddings, and steps of the sampler that were kept."""

    def __init__(self, prompts: int, passes: int, seed: int, pixels: int, encode: Callable[[Sequence[str]], Condition]) -> None:
        super().__init__(prompts, passes, seed)
        self.encode, self.condition = encode, dict[str, Tensor]()  # (G, ...) each
        self.frame = torch.tensor([pixels, pixels, 0, 0, pixels, pixels], dtype=torch.float32)
        self.empty = {name: value.cpu() for name, value in encode([""]).items()}

    def open(self, number: int, view: View, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the pictures of a turn. Raises TableError where the transforms leave nothing of them."""
        super().open(number, view, tensors)
        self.condition = {name: value.cpu() for name, value in self.encode(view.table.column("prompt")).items()}

    def _row(self, entry: Entry, tensors: Mapping[str, Tensor], place: int, epoch: int) -> dict[str, Any]:
        own = dict(tensors)
        condition = {name: value[entry.row] for name, value in self.condition.items()}
        return {"latents": own.pop(LATENTS), "steps": self._steps(own, place, epoch), "condition": condition}

    def _steps(self, kept: Mapping[str, Tensor], place: int, epoch: int) -> dict[str, Tensor]:
        """Return one of the kept steps of a record: the passes of a turn go through them in an order of the record's own."""
        if not kept:
            return {}
        own = [] if TRAINED in kept else [place % self.prompts]
        step = self._number(epoch, next(iter(kept.values())).shape[1], own)
        return {name: value[:, step] for name, value in kept.items() if name != TRAINED}

    def _chosen(self, entry: Entry, epoch: int) -> Entry:
        """Return a tree with the pictures alone whose step is trained in a pass, and its share of all trained steps as weight.

        All trees take the same step in a pass, so that those of a batch have as many nodes.
        """
        trained = None if self.turn is None else self.turn.tensors.get(TRAINED)
        if trained is None:
            return entry
        step, nodes = self._number(epoch, trained.shape[2], []), trained[entry.row].sum(dim=0).double()
        places = [place for place, candidate in enumerate(entry.order) if trained[entry.row, candidate, step]]
        columns = tuple(tuple(column[place] for place in places) for column in entry.columns)
        weight = (1.0 if entry.weight is None else entry.weight) * float(nodes[step] / nodes.mean())
        return replace(entry, order=tuple(entry.order[place] for place in places), columns=columns, weight=weight)

    def _number(self, epoch: int, count: int, own: Sequence[int]) -> int:
        """Return which of `count` kept steps a pass takes, in a random order of the turn and of `own`."""
        order = np.random.default_rng([self.seed, epoch // self.passes, *own]).permutation(count)
        return int(order[epoch % self.passes % count])

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows."""
        entries = [row["entry"] for row in rows]
        latents = torch.stack([row["latents"] for row in rows])
        condition = {name: torch.stack([row["condition"][name] for row in rows]) for name in rows[0]["condition"]}
        prob, ids = torch.tensor([entry.prob for entry in entries]), tuple(entry.id for entry in entries)
        frames, labels = self.frame.expand(*latents.shape[:2], -1), labels_of(self._opened().view, entries)
        return Batch(
            latents, condition, self.empty, prob, ids, frames=frames, labels=labels, steps=_stacked([row["steps"] for row in rows])
        )


def _stacked(steps: Sequence[Mapping[str, Tensor]]) -> StoredSteps | None:
    """Return the steps of a batch; times are those of a record's first candidate, for all of it take the same step."""
    if not steps[0]:
        return None
    whole = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    times = {name: whole[name][:, 0] for name in TIMES}
    return StoredSteps(**{name: whole[name] for name in PLACES}, **times, advantage=whole.get(ADVANTAGES))


class TurnTexts(TurnPairs):
    """Texts token for token as they were sampled (not tokenised again), with the log-probabilities of the policy that wrote them."""

    def __init__(self, prompts: int, passes: int, seed: int, prompt_ids: Callable[[str], Sequence[int]]) -> None:
        super().__init__(prompts, passes, seed)
        self.prompt_ids, self.opening = prompt_ids, list[Tensor]()  # of each prompt of the turn, its tokens

    def open(self, number: int, view: View, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the texts of a turn. Raises TableError where the transforms leave nothing of them."""
        super().open(number, view, tensors)
        self.opening = [torch.tensor(self.prompt_ids(prompt)) for prompt in view.table.column("prompt")]

    def _row(self, entry: Entry, tensors: Mapping[str, Tensor], place: int, epoch: int) -> dict[str, Any]:  # noqa: ARG002  # of images
        lengths = (tensors[TOKENS] != NO_TOKEN).sum(dim=1).tolist()
        completions = tuple(ids[:length] for ids, length in zip(tensors[TOKENS], lengths, strict=True))
        return {"prompt": self.opening[entry.row], "completions": completions, "old": tensors[SAMPLED][:, : max(lengths)]}

    def to_batch(self, rows: list[dict[str, Any]]) -> TextBatch:
        """Return the batch of loaded rows."""
        entries = [row["entry"] for row in rows]
        return TextBatch(
            tuple((row["prompt"],) * len(row["completions"]) for row in rows),
            tuple(row["completions"] for row in rows),
            torch.tensor([entry.prob for entry in entries]),
            tuple(entry.id for entry in entries),
            labels=labels_of(self._opened().view, entries),
            old=pad_sequence([row["old"].T for row in rows], batch_first=True).mT,
        )
