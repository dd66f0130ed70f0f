"""The input pictures of an edit model, one a record: as latents and, where the text encoder sees them, in what it makes of the prompts.

Both are computed once, before training, and kept beside the latents of the pictures, or in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffalign.core.processes import process_state, shares
from diffalign.core.progress import progress
from diffalign.core.types import Condition
from diffalign.data.buckets import ImageSizes, grouped
from diffalign.data.cache import Bank, check_room, filling, packed, row_shape, unpacked
from diffalign.data.pixels import Framing, Size, input_pictures, record_generator
from diffalign.data.records import Record
from diffalign.data.view import View

REFERENCE = "reference"  # what the latents of an input picture are called in a condition
SEEN = "seen"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InputEncoders:
    """How an edit model reads its input pictures: the frozen encoders as functions, and the sizes in pixels by height and width."""

    size: Callable[[int, int], Size]  # of the picture whose latents are read
    seen: Callable[[int, int], Size | None]  # of the picture that the text encoder sees; None where it reads the prompt alone
    latents: Callable[[Tensor], Tensor]  # pictures (N, 3, h, w), uint8 -> latents (N, C, H, W)
    prompt: Callable[[Sequence[str], Tensor | None], Condition]  # prompts, and what is seen beside them

    def pictures(self, record: Record, variant: int, framing: Framing, size: Size) -> dict[str, Tensor]:
        """Return the input picture of a record that is trained at `size`, (3, h, w), uint8, as it is read and as it is seen."""
        sizes = {name: own for name, own in ((REFERENCE, self.size(*size)), (SEEN, self.seen(*size))) if own is not None}
        made = input_pictures(record, framing, record_generator(record.id, variant), size, list(sizes.values()))
        return dict(zip(sizes, made, strict=True))

    def shapes(self, size: Size, latent_shape: Callable[[int, int], Shape]) -> dict[str, Shape]:
        """Return the shapes of one record's latents, and of what the text encoder makes of a prompt where it sees pictures."""
        seen = self.seen(*size)
        words = {} if seen is None else self.prompt([""], torch.zeros(1, 3, *seen, dtype=torch.uint8))
        return {REFERENCE: latent_shape(*self.size(*size)), **{name: tuple(value.shape[1:]) for name, value in words.items()}}

    def conditions(self, prompts: Sequence[str], pictures: Sequence[Mapping[str, Tensor]], empty: Condition) -> tuple[Condition, Condition]:
        """Return the conditions (B, ...) of prompts and of empty prompts, both beside pictures; `empty` is that without a picture."""
        stacked = {name: torch.stack([one[name] for one in pictures]) for name in pictures[0]}
        reference, seen = {REFERENCE: self.latents(stacked[REFERENCE])}, stacked.get(SEEN)
        nothing = empty if seen is None else self.prompt([""] * len(prompts), seen)
        return {**self.prompt(prompts, seen), **reference}, {**nothing, **reference}


class StoredInputs:
    """What an edit model makes of the input pictures of a view's rows, on disk; the constructor computes what is missing.

    Rows of a bank are those of the table, by variant; those of words have one for the empty prompt and one for the table's, and further
    ones for prompts that transforms have made.
    """

    def __init__(
        self,
        encoders: InputEncoders,
        view: View,
        framing: Framing,
        sizes: ImageSizes,
        shapes: Mapping[Size, Mapping[str, Shape]],
        variants: int,
        folders: tuple[Path, Path],  # of latents, of words
        batch_size: int,
        precision: str,
    ) -> None:
        self.encoders, self.view, self.framing, self.sizes, self.shapes, self.variants = encoders, view, framing, sizes, shapes, variants
        self._texts: dict[int, dict[str, int]] = {}  # by table row: the bank row of each prompt, before its variants
        prompts, further = view.table.column("prompt"), 2 * len(view.table)
        for row, prompt in sorted({(entry.row, entry.prompt) for entry in view.entries}):
            own = self._texts.setdefault(row, {"": 2 * row, prompts[row]: 2 * row + 1})
            if prompt not in own:
                own[prompt], further = further, further + 1
        rows = {REFERENCE: len(view.table) * variants}
        self._banks = {
            name: Bank(
                folders[name != REFERENCE],
                name,
                rows.get(name, further * variants),
                row_shape([own[name] for own in shapes.values()]),
                precision,
            )
            for name in next(iter(shapes.values()))
        }
        self._fill(batch_size)

    def read(self, row: int, prompt: str, epoch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what a table row adds to the condition of its prompt, and to that of an empty prompt."""
        both = ({}, {})
        for name, bank in self._banks.items():
            for text, made in zip((prompt, ""), both, strict=True):
                stored = bank.read([self._place(name, row, text, epoch % self.variants)])
                made[name] = torch.from_numpy(unpacked(stored, self.shapes[self.sizes[row]][name])[0])
        return both

    def _place(self, name: str, row: int, text: str, variant: int) -> int:
        return (row if name == REFERENCE else self._texts[row][text]) * self.variants + variant

    def _missing(self) -> list[tuple[int, int]]:
        """Return (table row, variant) of the records of which something is not on disk yet, those of one size together."""
        jobs = [(row, variant) for row in sorted(self._texts) for variant in range(self.variants)]
        lacking = [job for job in jobs if any(bank.missing(list(self._places(name, *job).values())) for name, bank in self._banks.items())]
        return sorted(lacking, key=lambda job: self.sizes[job[0]])

    def _places(self, name: str, row: int, variant: int) -> dict[str, int]:
        """Return the bank rows of a record by their prompts."""
        return {text: self._place(name, row, text, variant) for text in self._texts[row]}

    def _fill(self, batch_size: int) -> None:
        with filling(self._banks[REFERENCE].folder):
            for own in shares(self._missing):
                size = sum(bank.row_bytes * (1 if name == REFERENCE else 2) for name, bank in self._banks.items())
                check_room(self._banks[REFERENCE].folder, process_state().num_processes * len(own) * size)
                with progress(total=len(own), desc="cache input pictures", unit="records", hidden=not own) as bar:
                    for jobs in self._batches(own, batch_size):
                        self._fill_batch(jobs)
                        bar.update(len(jobs))

    def _batches(self, jobs: Sequence[tuple[int, int]], count: int) -> Iterator[list[tuple[int, int]]]:
        numbers = [list(self.shapes).index(self.sizes[row]) for row, _ in jobs]
        for group in grouped(range(len(jobs)), numbers):
            yield from ([jobs[i] for i in group[start : start + count]] for start in range(0, len(group), count))

    def _fill_batch(self, jobs: Sequence[tuple[int, int]]) -> None:
        """Compute and write records of one size; the latents, by which a record counts as done, go last."""
        table, size = self.view.table, self.sizes[jobs[0][0]]
        pictures = [self.encoders.pictures(table[row], variant, self.framing, size) for row, variant in jobs]
        if SEEN in pictures[0]:
            texts = [(text, job, picture[SEEN]) for job, picture in zip(jobs, pictures, strict=True) for text in self._texts[job[0]]]
            for start in range(0, len(texts), len(jobs)):
                part = texts[start : start + len(jobs)]
                words = self.encoders.prompt([text for text, _, _ in part], torch.stack([seen for *_, seen in part]))
                for name, values in words.items():
                    self._write(name, [self._place(name, job[0], text, job[1]) for text, job, _ in part], values)
        latents = self.encoders.latents(torch.stack([picture[REFERENCE] for picture in pictures]))
        self._write(REFERENCE, [row * self.variants + variant for row, variant in jobs], latents)

    def _write(self, name: str, rows: Sequence[int], values: Tensor) -> None:
        bank = self._banks[name]
        shape = row_shape([own[name] for own in self.shapes.values()])
        bank.write(rows, packed(np.asarray(values.float().cpu().numpy()), shape))
