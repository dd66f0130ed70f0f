"""Whether latents and prompts are kept on disk or made in every step, where the config leaves it to the costs (`cache: auto`)."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from diffalign.core.files import readable
from diffalign.core.processes import process_state
from diffalign.data.batch import Encoders, encoded, framed, latent_facts
from diffalign.data.cache import SIZES, filled, folder_of
from diffalign.data.pixels import Framing
from diffalign.data.view import View
from diffalign.methods.builders.common import cache_precision, cache_root
from diffalign.methods.config import TrainConfig

logger = logging.getLogger(__name__)
SAMPLE = 4  # prompts that are encoded to see what one takes


@dataclass(frozen=True, slots=True)
class Costs:
    """What a cache takes and saves. `pictures`, with their variants, and `prompts` are those that are not on disk yet."""

    picture: float  # seconds to decode and encode one
    prompt: float  # seconds
    pictures: int
    prompts: int
    size: int  # bytes
    free: int  # bytes, where the cache lies
    of_record: float  # pictures
    records: int
    samples: int  # records of the whole run, each as often as it is trained on

    @property
    def filling(self) -> float:
        """Return the seconds of one process that what is missing takes."""
        return self.pictures * self.picture + self.prompts * self.prompt

    @property
    def epochs(self) -> float:
        """Return how often the run trains on each record."""
        return self.samples / self.records

    @property
    def break_even(self) -> float:
        """Return after how many epochs encoding in every step has taken as long as filling."""
        return self.filling / (self.records * (self.of_record * self.picture + self.prompt))


def verdict(costs: Costs, folder: Path) -> tuple[bool, str]:
    """Return whether to keep latents and prompts on disk, and why, in a line.

    >>> picture = {"picture": 0.05, "prompt": 0.01, "of_record": 2.0, "size": 2**30, "free": 2**33, "records": 1000}
    >>> verdict(Costs(**picture, pictures=2000, prompts=500, samples=3000), Path("votes"))[1]
    'on disk: 3 epochs, paying from 0.955 on; filling takes 1.75 min (0.05 s a picture, 0.01 s a prompt) and 1.00 GiB of the 8.00 GiB free'
    >>> verdict(Costs(**picture, pictures=2000, prompts=500, samples=500), Path("votes"))[1]
    'made in every step: 0.5 epochs, and a cache pays from 0.955 on (0.05 s a picture, 0.01 s a prompt)'
    """
    each = f"{costs.picture:.2g} s a picture, {costs.prompt:.2g} s a prompt"
    size, free = readable(costs.size), readable(costs.free)
    if not costs.pictures and not costs.prompts:
        return True, f"on disk: all are there, in {folder}"
    if costs.size > costs.free:
        return False, f"made in every step: a cache takes {size}, and {free} are free in {folder}"
    if costs.epochs < costs.break_even:
        return False, f"made in every step: {costs.epochs:.3g} epochs, and a cache pays from {costs.break_even:.3g} on ({each})"
    takes = f"filling takes {costs.filling / 60:.3g} min ({each}) and {size} of the {free} free"
    return True, f"on disk: {costs.epochs:.3g} epochs, paying from {costs.break_even:.3g} on; {takes}"


def keeps(config: TrainConfig, view: View, encoders: Encoders, framing: Framing) -> bool:
    """Return whether a run keeps latents and prompts on disk: as the config says, or as the first process of a launch finds it pays.

    To see what encoding takes, the first record and a few prompts are encoded.
    """
    if config.cache != "auto":
        return config.cache == "disk"
    chosen: list[Any] = [(True, "on disk: points of a trajectory are kept beside latents")]
    if not encoders.alone:
        chosen = [(True, "on disk: the text encoder sees the input pictures")]
    elif not config.trajectory_cache and process_state().is_main_process:
        root = cache_root(config, view)
        chosen = [verdict(_costs(config, view, encoders, framing, root), root)]
    kept, why = broadcast_object_list(chosen)[0]
    if process_state().is_main_process:
        logger.info("cache auto: latents and prompts are %s", why)
    return kept


def _costs(config: TrainConfig, view: View, encoders: Encoders, framing: Framing, root: Path) -> Costs:
    variants, precision, inputs = config.cache_variants, cache_precision(config), int(encoders.inputs is not None)
    rows = view.entries.rows_with_images
    candidates = np.concatenate([batch.column("candidates").value_lengths().to_numpy() for batch in view.table.batches()])
    pictures = int(candidates[rows].sum()) * variants
    folder = folder_of(root, "latents", latent_facts(view, encoders, framing, variants, precision))
    missing = 1.0 - min(1.0, filled(folder, "latents") / pictures) if pictures else 1.0
    texts = view.entries.prompts
    prompt, numbers = _prompt(encoders, texts[:SAMPLE])
    pictures, prompts = (round(missing * count) for count in (pictures + inputs * variants * len(rows), len(texts)))
    latent = math.prod(encoders.latent_shape(*(framing.buckets or (framing.square,))[0]))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return Costs(
        picture=_picture(view, encoders, framing, rows[0]) if rows else 0.0,
        prompt=prompt,
        pictures=pictures,
        prompts=prompts,
        size=round((pictures * latent + prompts * numbers) * SIZES[precision]),
        free=shutil.disk_usage(next(path for path in (root, *root.resolve().parents) if path.exists())).free,
        of_record=float(view.entries.counts.mean()) + inputs,
        records=len(view),
        samples=config.max_train_steps * config.train_batch_size * config.gradient_accumulation_steps * processes,
    )


def _picture(view: View, encoders: Encoders, framing: Framing, row: int) -> float:
    """Return the seconds that one picture takes, by those of a row."""
    record, size = view.table[row], (framing.buckets or (framing.square,))[0]

    def encode() -> None:
        images = framed(record, 0, framing, size, encoders.latent_shape(*size))
        encoded(encoders, images["pixels"], images["noise"], [record.id] * len(record.candidates)).cpu()

    return _seconds(encode) / len(record.candidates)


def _prompt(encoders: Encoders, prompts: Sequence[str]) -> tuple[float, float]:
    """Return the seconds that one prompt takes, and how many numbers besides zeros are kept of it."""
    condition = {name: value.cpu() for name, value in encoders.prompt(prompts).items()}
    numbers = sum(int(value.count_nonzero()) for value in condition.values())
    return _seconds(lambda: [value.cpu() for value in encoders.prompt(prompts).values()]) / len(prompts), numbers / len(prompts)


def _seconds(work: Callable[[], Any]) -> float:
    """Return how long `work` takes when it has been done before."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
