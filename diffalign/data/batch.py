"""Batches of a view: `LivePairs` encodes images and prompts in every step, `CachedPairs` once before training, to disk.

Both are torch datasets over (position, epoch) and give the same batch for the same indices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffalign.core.errors import CheckpointError, LatentError
from diffalign.core.parts import Index
from diffalign.core.processes import process_state, shares
from diffalign.core.progress import chunks, progress
from diffalign.core.types import Batch, Condition
from diffalign.data.buckets import ImageSizes
from diffalign.data.cache import Bank, check_room, filling, fingerprint, open_folder, packed, row_shape, unpacked
from diffalign.data.inputs import InputEncoders, StoredInputs
from diffalign.data.labels import labels_of
from diffalign.data.pixels import Framing, Size, candidate_pixels, conditioning_pixels, record_generator
from diffalign.data.records import Record
from diffalign.data.table import CONDITIONING, Table
from diffalign.data.view import View

Shapes = Mapping[Size, tuple[int, int, int]]  # (height, width) in pixels -> (C, H, W) of the latent


@dataclass(frozen=True, slots=True)
class Encoders:
    """The frozen image and prompt encoders of a backbone, as functions."""

    image: Callable[[Tensor, Tensor], Tensor]  # pixels (N,3,h,w), noise (N,C,H,W) -> latents (N,C,H,W)
    prompt: Callable[[Sequence[str]], Condition]
    latent_shape: Callable[[int, int], tuple[int, int, int]]  # height and width in pixels -> (C, H, W)
    fingerprint: str
    inputs: InputEncoders | None = None  # of an edit model

    @property
    def alone(self) -> bool:
        """Return whether prompts are read alone, and not together with a picture."""
        return self.inputs is None or self.inputs.seen(64, 64) is None


class LivePairs(Dataset[dict[str, Any]]):
    """Training data that decodes, resizes and crops images in loader processes; `to_batch` runs the VAE and the text encoder."""

    def __init__(self, view: View, encoders: Encoders, framing: Framing, variants: int, *, conditioned: bool = False) -> None:
        self.view, self.encoders, self.framing, self.variants, self.conditioned = view, encoders, framing, variants, conditioned
        self.sizes = ImageSizes(view, framing)
        self.buckets = self.sizes.buckets(view)
        self.empty = {name: value.cpu() for name, value in encoders.prompt([""]).items()} if encoders.alone else {}

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        position, epoch = index
        entry = self.view.entries[position]
        size, order = self.sizes[entry.row], list(entry.order)
        if order:
            record, shape = self.view.table[entry.row], self.encoders.latent_shape(*size)
            images = framed(record, epoch % self.variants, self.framing, size, shape, conditioned=self.conditioned)
        else:
            noise = torch.zeros(0, *self.encoders.latent_shape(*size))
            images = {"pixels": torch.zeros(0, 3, *size), "frames": torch.zeros(0, 6), "noise": noise}
        row: dict[str, Any] = {name: value[order] for name, value in images.items()} | {"entry": entry}
        if self.encoders.inputs is not None:
            row["input"] = self.encoders.inputs.pictures(self.view.table[entry.row], epoch % self.variants, self.framing, size)
        return row

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows of one bucket; runs the encoders."""
        pixels, noise = (torch.cat([row[name] for row in rows]) for name in ("pixels", "noise"))
        names = [f"record {row['entry'].id}, candidate {i}" for row in rows for i in range(len(row["pixels"]))]
        latents = encoded(self.encoders, pixels, noise, names) if len(pixels) else noise
        entries = [row["entry"] for row in rows]
        prompts, inputs, empty = [entry.prompt for entry in entries], self.encoders.inputs, self.empty
        if inputs is None:
            condition = self.encoders.prompt(prompts)
        else:
            condition, empty = inputs.conditions(prompts, [row["input"] for row in rows], empty)
        x0 = latents.unflatten(0, (len(rows), len(latents) // len(rows)))
        return _batch(self.view, rows, x0, condition, empty)


def _batch(view: View, rows: Sequence[Mapping[str, Any]], x0: Tensor, condition: Condition, empty: Condition) -> Batch:
    entries = [row["entry"] for row in rows]
    prob, ids = torch.tensor([entry.prob for entry in entries]), tuple(entry.id for entry in entries)
    frames, conditioning = torch.stack([row["frames"] for row in rows]), None
    if CONDITIONING in rows[0]:
        conditioning = torch.stack([row[CONDITIONING] for row in rows]).float() / 255.0  # as diffusers' image processor has it
    return Batch(x0, condition, empty, prob, ids, frames=frames, labels=labels_of(view, entries), conditioning=conditioning)


def framed(
    record: Record, variant: int, framing: Framing, size: Size, latent: tuple[int, int, int], *, conditioned: bool = False
) -> dict[str, Tensor]:
    """Return "pixels" (K, 3, h, w), "frames" (K, 6) and the VAE posterior's "noise" (K, *latent) of a record's images, as in the table.

    With `conditioned` also their "conditioning_image" (K, 3, h, w), uint8. What is random depends on the record's id and `variant` alone.
    """
    generator = record_generator(record.id, variant)
    pixels, frames = candidate_pixels(record, framing, generator, size)
    noise = torch.randn((len(pixels), *latent), generator=generator)
    images = {"pixels": pixels, "frames": frames, "noise": noise}
    if conditioned:
        images[CONDITIONING] = conditioning_pixels(record, framing, record_generator(record.id, variant), size)
    return images


def encoded(encoders: Encoders, pixels: Tensor, noise: Tensor, names: Sequence[str]) -> Tensor:
    """Return latents (N, C, H, W) of N images. Raises CheckpointError with the `names` of the images whose latents are not finite."""
    try:
        return encoders.image(pixels, noise)
    except LatentError as error:
        raise CheckpointError(f"{error}: {'; '.join(names[i] for i in error.images)}") from error


class Pictures(Dataset[dict[str, Any]]):
    """Batches of decoded and framed images for the cache, each of one size; `jobs` are (table row, variant) of a batch."""

    def __init__(
        self,
        table: Table,
        framing: Framing,
        jobs: Sequence[Sequence[tuple[int, int]]],
        sizes: ImageSizes,
        shapes: Shapes,
        *,
        conditioned: bool = False,
    ) -> None:
        self.table, self.framing, self.jobs, self.sizes, self.shapes = table, framing, jobs, sizes, shapes
        self.conditioned = conditioned

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        jobs = self.jobs[number]
        size, records = self.sizes[jobs[0][0]], [self.table[row] for row, _ in jobs]
        how = self.framing, size, self.shapes[size]
        loaded = [framed(r, variant, *how, conditioned=self.conditioned) for r, (_, variant) in zip(records, jobs, strict=True)]
        names = [f"{record.source}, candidate {i}" for record in records for i in range(len(record.candidates))]
        return {name: torch.cat([images[name] for images in loaded]) for name in loaded[0]} | {"jobs": jobs, "names": names}


def prompt_facts(view: View, encoders: Encoders, precision: str) -> dict[str, Any]:
    """Return what embeddings of a table's prompts depend on."""
    facts = {"table": view.table.fingerprint, "model": encoders.fingerprint}
    return facts if precision == "float32" else facts | {"precision": precision}


def latent_facts(view: View, encoders: Encoders, framing: Framing, variants: int, precision: str) -> dict[str, Any]:
    """Return what latents of a table's images depend on."""
    return prompt_facts(view, encoders, precision) | {"framing": asdict(framing), "variants": variants}


class CachedPairs(Dataset[dict[str, Any]]):
    """Training data that reads latents, frames and prompt embeddings from disk; the constructor computes those that are missing.

    The processes of a launch share that work. `precision` is that of latents and embeddings on disk, float32 or bfloat16; `workers`
    processes decode the images. With `conditioned` the conditioning images are kept and read, too, a byte for each number.
    """

    def __init__(
        self,
        view: View,
        encoders: Encoders,
        framing: Framing,
        variants: int,
        root: Path,
        batch_size: int = 16,
        *,
        precision: str = "float32",
        workers: int = 0,
        conditioned: bool = False,
    ) -> None:
        self.view, self.variants, self.precision = view, variants, precision
        counts = [batch.column("candidates").value_lengths().to_numpy() for batch in view.table.batches()]
        self.first = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        facts = prompt_facts(view, encoders, precision)
        folder = open_folder(root, "latents", latent_facts(view, encoders, framing, variants, precision))
        self.folder = folder
        self.sizes = ImageSizes(view, framing, Bank(folder, "buckets", len(view.table), (), "int64") if framing.buckets else None)
        self.buckets = self.sizes.buckets(view)
        self._shapes = {size: encoders.latent_shape(*size) for size in (framing.square, *framing.buckets)}
        self.row_shape = row_shape([self._shapes[size] for size in framing.buckets or (framing.square,)])
        rows = int(self.first[-1]) * variants
        self._latents = Bank(folder, "latents", rows, self.row_shape, precision)
        self._frames = Bank(folder, "frames", rows, (6,), "float32")
        self._pixels_shape = row_shape([(3, *size) for size in framing.buckets or (framing.square,)])
        self._conditioning = Bank(folder, CONDITIONING, rows, self._pixels_shape, "uint8") if conditioned else None
        self._fill_latents(encoders, framing, batch_size, workers)
        self._prompts = {"": 0}
        for prompt in view.table.column("prompt"):
            self._prompts.setdefault(prompt, len(self._prompts))
        transformed = sorted(set(view.entries.prompts) - self._prompts.keys())  # prompts that are not the table's
        self._prompts |= {prompt: len(self._prompts) + i for i, prompt in enumerate(transformed)}
        if transformed:
            facts |= {"made": fingerprint({"prompts": transformed})}
        self._conditions = self._fill_prompts(encoders, open_folder(root, "prompts", facts), batch_size) if encoders.alone else {}
        self.empty = {name: torch.from_numpy(bank.read([0])) for name, bank in self._conditions.items()}
        self._inputs = None if encoders.inputs is None else self._stored_inputs(encoders, encoders.inputs, framing, root, facts, batch_size)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        position, epoch = index
        entry = self.view.entries[position]
        condition = {name: torch.from_numpy(bank.read([self._prompts[entry.prompt]])[0]) for name, bank in self._conditions.items()}
        inputs, empty = self._inputs.read(entry.row, entry.prompt, epoch) if self._inputs is not None else ({}, {})
        return {**self.images(entry.row, entry.order, epoch), "condition": {**condition, **inputs}, "empty": empty, "entry": entry}

    def images(self, row: int, order: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Return "latents" (K, C, H, W) and "frames" (K, 6) of a table row's candidates in `order`; K = 0 for a prompt alone."""
        candidate_rows = self.bank_rows(row, epoch % self.variants, self.variants)
        rows = [candidate_rows[i] for i in order]
        arrays = {"latents": unpacked(self._latents.read(rows), self.latent_shape(row)), "frames": self._frames.read(rows)}
        if self._conditioning is not None:
            arrays[CONDITIONING] = unpacked(self._conditioning.read(rows), (3, *self.sizes[row]))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def latent_shape(self, row: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the latents of a table row."""
        return self._shapes[self.sizes[row]]

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows of one bucket."""
        condition, empty = (
            {name: torch.stack([row[kind][name] for row in rows]) for name in rows[0][kind]} for kind in ("condition", "empty")
        )
        return _batch(self.view, rows, torch.stack([row["latents"] for row in rows]), condition, {**self.empty, **empty})

    def bank_rows(self, row: int, variant: int, variants: int) -> list[int]:
        """Return the rows in which a bank with `variants` rows per candidate holds one variant of all candidates of a table row."""
        return [first * variants + variant for first in range(int(self.first[row]), int(self.first[row + 1]))]

    def _stored_inputs(
        self, encoders: Encoders, inputs: InputEncoders, framing: Framing, root: Path, facts: dict[str, Any], batch_size: int
    ) -> StoredInputs:
        """Return the input pictures of the rows, in the folder of the latents, and what is made of prompts that see them, in another."""
        framed_facts = facts | {"framing": asdict(framing), "variants": self.variants}
        words = self.folder if encoders.alone else open_folder(root, "words", framed_facts)
        shapes = {size: inputs.shapes(size, encoders.latent_shape) for size in self._shapes}
        folders = self.folder, words
        return StoredInputs(inputs, self.view, framing, self.sizes, shapes, self.variants, folders, batch_size, self.precision)

    def _fill_latents(self, encoders: Encoders, framing: Framing, batch_size: int, workers: int) -> None:
        with filling(self.folder):
            for own in shares(self._missing):
                images = sum(len(self.bank_rows(row, 0, 1)) for row, _ in own)
                row_bytes = self._latents.row_bytes + (0 if self._conditioning is None else self._conditioning.row_bytes)
                check_room(self.folder, process_state().num_processes * images * row_bytes)
                groups = [list(group) for _, group in itertools.groupby(own, key=lambda job: self.sizes[job[0]])]
                batches = [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
                conditioned = self._conditioning is not None
                pictures = Pictures(self.view.table, framing, batches, self.sizes, self._shapes, conditioned=conditioned)
                with progress(total=len(own), desc="cache latents", unit="records", hidden=not own) as bar:
                    for part in DataLoader(pictures, batch_size=None, num_workers=workers, generator=torch.Generator()):
                        latents = encoded(encoders, part["pixels"], part["noise"], part["names"])
                        rows = [i for row, variant in part["jobs"] for i in self.bank_rows(row, variant, self.variants)]
                        self._frames.write(rows, part["frames"].numpy())
                        if self._conditioning is not None:
                            self._conditioning.write(rows, packed(part[CONDITIONING].numpy(), self._pixels_shape))
                        self._latents.write(rows, packed(latents.float().cpu().numpy(), self.row_shape))
                        bar.update(len(part["jobs"]))

    def _missing(self) -> list[tuple[int, int]]:
        """Return (table row, variant) of the records whose latents or frames are not on disk yet, those of one size together."""
        rows = self.view.entries.rows_with_images
        jobs = [(row, variant) for row in rows for variant in range(self.variants)]
        places = [self.bank_rows(row, variant, self.variants) for row, variant in jobs]
        banks = [bank for bank in (self._latents, self._frames, self._conditioning) if bank is not None]
        lacking = [job for job, own in zip(jobs, places, strict=True) if any(bank.missing(own) for bank in banks)]
        return sorted(lacking, key=lambda job: self.sizes[job[0]])

    def _fill_prompts(self, encoders: Encoders, folder: Path, batch_size: int) -> dict[str, Bank]:
        empty = encoders.prompt([""])  # embeddings, or tokens
        kinds = {name: self.precision if value.is_floating_point() else str(value.dtype)[len("torch.") :] for name, value in empty.items()}
        banks = {name: Bank(folder, name, len(self._prompts), tuple(value.shape[1:]), kinds[name]) for name, value in empty.items()}
        used = {"": 0} | {prompt: self._prompts[prompt] for prompt in self.view.entries.prompts}

        def missing() -> list[tuple[str, int]]:
            places = {i for bank in banks.values() for i in bank.missing(list(used.values()))}
            return [(prompt, i) for prompt, i in used.items() if i in places]

        with filling(folder):
            for own in shares(missing):
                for part in chunks(own, 4 * batch_size, "cache prompts"):
                    condition = {name: value.cpu() for name, value in encoders.prompt([prompt for prompt, _ in part]).items()}
                    if part[0] == own[0]:  # padding takes no room, and how much of it there is shows in the first ones
                        taken = sum(int(value.count_nonzero()) * banks[name].number_bytes for name, value in condition.items())
                        check_room(folder, process_state().num_processes * len(own) * taken // len(part))
                    for name, value in condition.items():
                        banks[name].write([i for _, i in part], (value.float() if value.is_floating_point() else value).numpy())
        return banks
