# python -m scripts.bench_cache
"""Filling a cache beside encoding in every step: where the time goes, what the disk holds, and after how many epochs a cache pays.

On the reduced SD1.5 of bench_step.py with random weights, at 128 pixels, without a GPU. Sides are measured in turns, in CPU time of one
thread, which neighbours on the machine disturb least, and the least of all rounds counts. `at once` is how many pixels the VAE reads in
one call: the present number, and the former one, a megapixel.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from jsonargparse import auto_cli
from transformers.utils import logging as transformers_logging

from diffalign.core.files import readable
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.cache import Bank
from diffalign.data.importing import import_dataset
from diffalign.data.pixels import Framing
from diffalign.data.transforms import drop_ties, orient
from diffalign.data.transforms import pairs as only_pairs
from diffalign.data.view import View
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.backbones.table import load_backbone
from scripts.bench_step import write_pairs, write_reduced_sd

SIDE, BATCH = 128, 4  # pixels, and pairs of a step
FORMER = 2**20  # pixels at once


class Spent:
    """CPU seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def on(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, whose time counts under `name`."""

        def timed(*args: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args)
            finally:
                self.seconds[name] += time.process_time() - start

        return timed

    def whole(self, work: Callable[[], Any]) -> dict[str, float]:
        """Return the seconds of `work`, "all", and of its parts."""
        self.seconds.clear()
        start = time.process_time()
        work()
        return {**self.seconds, "all": time.process_time() - start}


def epoch(pairs: LivePairs | CachedPairs) -> None:
    """Make the batches of one epoch."""
    for start in range(0, len(pairs), BATCH):
        pairs.to_batch([pairs[position, 0] for position in range(start, min(start + BATCH, len(pairs)))])


def least(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the round that took the least time."""
    return min(rounds, key=lambda one: one["all"])


def former(self: Pretrained) -> int:  # noqa: ARG001  # in place of a method
    """Return how many pixels the VAE used to read at once."""
    return FORMER


def sides(model: Any, view: View, root: Path, spent: Spent, number: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each side in one round."""
    framing = Framing(SIDE)
    encoders = Encoders(
        spent.on("VAE", model.encode_image), spent.on("text encoder", model.prompt_for_training), model.latent_shape, "reduced"
    )
    now, found = Pretrained._pixels_at_once, {}
    for name, pixels in (("filling, a megapixel at once", former), ("filling", now)):
        Pretrained._pixels_at_once = pixels
        folder = root / f"{name}-{number}"
        found[name] = spent.whole(lambda folder=folder: CachedPairs(view, encoders, framing, 1, folder, precision="bfloat16"))
    stored = CachedPairs(view, encoders, framing, 1, root / f"filling-{number}", precision="bfloat16")
    found["an epoch from the cache"] = spent.whole(lambda: epoch(stored))
    live = LivePairs(view, encoders, framing, 1)
    found["an epoch encoded in its steps"] = spent.whole(lambda: epoch(live))
    return found


def main(pairs: int = 32, rounds: int = 3, out: str | None = None) -> None:
    """Print the table.

    Args:
        pairs: Of pictures, each with a prompt of its own.
        rounds: Of which the fastest counts, for each side.
        out: JSON file for the numbers.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    spent = Spent()
    Bank.write = spent.on("disk", Bank.write)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_reduced_sd(root / "sd")
        write_pairs(root / "pairs.parquet", SIDE, pairs)
        view = View(import_dataset(str(root / "pairs.parquet"), root / "table"), [only_pairs, drop_ties, orient])
        model = load_backbone(str(root / "sd"), torch.device("cpu"))
        model.settings = replace(model.settings, resolution=SIDE)
        measured = [sides(model, view, root, spent, number) for number in range(rounds)]
        files = {file.stem: file.stat().st_blocks * 512 for file in (root / "filling-0").glob("*/*.npy")}
    table = {side: least([one[side] for one in measured]) for side in measured[0]}
    kinds = ("VAE", "text encoder", "disk")
    print(f"| {pairs} pairs, CPU seconds of one thread | all | {' | '.join(kinds)} | the rest |", "| --- " * 6 + "|", sep="\n")
    for side, own in table.items():
        rest = own["all"] - sum(own.get(kind, 0.0) for kind in kinds)
        print(f"| {side} | {own['all']:.2f} | {' | '.join(f'{own.get(kind, 0.0):.2f}' for kind in kinds)} | {rest:.2f} |")
    former, filling, cached, live = (own["all"] for own in table.values())
    print(
        f"\nfilling {former / filling:.2f} x as fast as with a megapixel at once; {filling / (2 * pairs):.4f} s a picture, prompts included"
    )
    print(f"a cache pays from {filling / (live - cached):.2f} epochs on; an epoch from it takes {cached / live:.4f} of one without")
    print("on disk:", ", ".join(f"{stem} {readable(size)}" for stem, size in files.items() if not stem.endswith(".checks")))
    if out:
        Path(out).write_text(json.dumps({"torch": torch.__version__, "pairs": pairs, "seconds": table, "bytes": files}, indent=1) + "\n")


if __name__ == "__main__":
    auto_cli(main)
