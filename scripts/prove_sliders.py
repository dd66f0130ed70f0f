"""Sliders on the embedded world: is each monotone, does it leave the others alone, and is all off the base? Trains and measures.

python -m scripts.prove_sliders --seeds 0 1 2

Pictures are drawings whose background (luma), size (half-extent) and warmth (red minus blue of the shape) are continuous and independent,
and whose captions name the shape and perhaps the place; one combination in four is never trained on, and measured by. Measured by the
world's exact judge on pictures of the same noise for every value of a slider:

  monotone    Spearman of the slider's value and what is measured, over all pictures, and the mean of those of each prompt and noise
  cross       |Spearman| of the slider's value and each other measure, which should not move (below 0.1); and the other's change from 0
              to 1 in deviations of the base's pictures
  adherence   share of shapes and places that pictures show, beside the base's
  selection   mean distance of the measures from random values of all sliders, in levels: of one picture, and of the best of five
"""

from __future__ import annotations

import colorsys
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from scipy.stats import spearmanr

from diffalign.core.intervals import bootstrapped
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.world.captions import caption
from diffalign.data.world.judge import Reading, adherence, read
from diffalign.data.world.scenes import POSITIONS, SHAPES, SIZE, draw
from diffalign.data.world.tastes import bright_background, warm
from diffalign.infer.load import load
from diffalign.infer.sample import draw as sample
from diffalign.infer.sample import grid
from diffalign.infer.users.neighbours import rps_select
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.models.backbones.table import load_pipeline
from diffalign.train import align as api

MODEL, SCALE, STEPS = "assets/tiny-sd", 4.0, 20
RADII, GRAYS = (7.0, 18.0), (15.0, 250.0)
VALUES = tuple(round(0.1 * i, 1) for i in range(11))
NOISE = 7_000_000


def size(reading: Reading) -> float:
    """Return the largest half-extent of the shape, in pixels."""
    return reading.radius


MEASURES: dict[str, Callable[[Reading], float]] = {"background": bright_background, "size": size, "warmth": warm}


def captions(held_out: bool) -> list[dict[str, str]]:
    """Return what captions name: every shape, alone or with a place; a quarter of the combinations is held out."""
    named = [{"shape": s} | ({} if p is None else {"position": p}) for s, p in itertools.product(SHAPES, (None, *POSITIONS))]
    held = set(np.random.default_rng(3).permutation(len(named))[: len(named) // 4].tolist())
    return [one for place, one in enumerate(named) if (place in held) == held_out]


def drawing(named: dict[str, str], rng: np.random.Generator) -> Image.Image:
    """Return a drawing of what a caption names, everything else uniformly random."""
    place = named.get("position") or str(rng.choice(list(POSITIONS)))
    center = np.array(POSITIONS[place]) + rng.uniform(-1.5, 1.5, size=2) + SIZE / 2
    gray = int(rng.uniform(*GRAYS))
    fill = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), 0.85, 0.9))
    return draw(named["shape"], fill, (gray,) * 3, tuple(center.tolist()), rng.uniform(*RADII), rng.uniform(-0.08, 0.08))


def table(root: Path, pictures: int) -> Path:
    """Return the table of drawings with their scores, made if it is not there yet."""
    path = root / f"drawings-{pictures}"
    if not path.exists():
        rng, named = np.random.default_rng([8, 0]), captions(held_out=False)

        def record(number: int) -> Record:
            own = named[number % len(named)]
            image = drawing(own, rng)
            reading = read(image)
            scores = {name: measure(reading) for name, measure in MEASURES.items()}
            return Record(f"{number:05d}", caption(own), (Candidate(image=encode_image(image), scores=scores),), source=f"row {number}")

        write_table(path, map(record, range(pictures)))
    return path


def train(root: Path, data: Path, seed: int, steps: int) -> Path:
    """Return the folder of the run, trained if it is not there yet."""
    folder = root / f"run-{seed}-{steps}"
    if not (folder / "run.json").exists():
        written = load_yaml("configs/tiny/slider.yaml")
        changes = {"dataset_name": str(data), "output_dir": str(folder), "seed": seed, "max_train_steps": steps}
        api.train(from_mapping({**written, **changes, "checkpointing_steps": 10**6, "overwrite_output_dir": True}, "prove_sliders"))
    return folder


def measured(pipe: Any, prompts: Sequence[str], noises: int, scale: float) -> tuple[np.ndarray, np.ndarray, list[Image.Image]]:
    """Return the measures (P * noises, A), how the pictures keep to their prompts (P * noises,), and the pictures."""
    each = [prompt for prompt in prompts for _ in range(noises)]
    images = sample(pipe, each, range(NOISE, NOISE + len(each)), num_inference_steps=STEPS, guidance_scale=scale, label="draw")
    readings = [read(image) for image in images]
    values = np.array([[measure(reading) for measure in MEASURES.values()] for reading in readings])
    return values, np.array([adherence(prompt, reading) for prompt, reading in zip(each, readings, strict=True)]), images


def rank_correlation(values: np.ndarray, measures: np.ndarray) -> float:
    """Return Spearman's correlation without the pictures that show no shape."""
    there = np.isfinite(measures)
    correlation: Any = spearmanr(values[there], measures[there])
    return float(correlation.statistic)


def report(root: Path, folder: Path, seed: int, noises: int, others: float | None, scale: float) -> dict[str, Any]:
    """Return the facts of one run, printed, with a sheet of pictures beside it."""
    prompts = [caption(named) for named in captions(held_out=True)]
    personal = load(folder)
    base, kept, plain = measured(load_pipeline(MODEL), prompts, noises, scale)
    off = measured(personal.for_user({}), prompts, noises, scale)[2]
    facts: dict[str, Any] = {"seed": seed, "off_is_base": all(a.tobytes() == b.tobytes() for a, b in zip(off, plain, strict=True))}
    facts["base_adherence"] = float(kept.mean())
    print(f"seed {seed}: off = base in {len(off)} pictures: {facts['off_is_base']}; base's adherence {kept.mean():.3f}", flush=True)
    still = {} if others is None else dict.fromkeys(MEASURES, others)
    spread, rows = np.nanstd(base, axis=0), list[Image.Image]()
    for own, name in enumerate(MEASURES):
        drawn = [measured(personal.for_user(still | {name: value}), prompts, noises, scale) for value in VALUES]
        tensor = np.stack([one for one, _, _ in drawn])  # (values, P * noises, A)
        rows += [images[noises * 5] for _, _, images in drawn]
        one: dict[str, Any] = slider_facts(tensor, own, noises, spread) | {"adherence": float(np.mean([kept for _, kept, _ in drawn]))}
        facts[name] = one
        cross = ", ".join(f"{other} {rho:+.3f} ({slope:+.2f} sd)" for other, (rho, slope) in one["cross"].items())
        print(f"seed {seed} {name}: Spearman {one['pooled']:.3f} ({one['low']:.3f} to {one['high']:.3f}), within prompt and noise "
              f"{one['within']:.3f}; cross {cross}; adherence {one['adherence']:.3f}", flush=True)  # fmt: skip
    grid(rows, len(VALUES)).save(root / f"sheet-{seed}{'' if others is None else '-others'}.png")
    return facts


def slider_facts(tensor: np.ndarray, own: int, noises: int, spread: np.ndarray) -> dict[str, Any]:
    """Return correlations of a slider's values with the measures (values, P * noises, A), with an interval over prompts."""
    values, count = np.broadcast_to(np.array(VALUES)[:, None], tensor.shape[:2]), tensor.shape[1] // noises
    by_prompt = [slice(start * noises, (start + 1) * noises) for start in range(count)]
    each = np.array([rank_correlation(values[:, part].ravel(), tensor[:, part, own].ravel()) for part in by_prompt])
    low, high = bootstrapped(each, 0)
    moved = (np.nanmean(tensor[-1] - tensor[0], axis=0) / spread).tolist()
    cross = {
        name: (rank_correlation(values.ravel(), tensor[:, :, place].ravel()), moved[place])
        for place, name in enumerate(MEASURES)
        if place != own
    }
    within = [rank_correlation(np.array(VALUES), tensor[:, place, own]) for place in range(tensor.shape[1])]
    return {
        "pooled": rank_correlation(values.ravel(), tensor[:, :, own].ravel()),
        "low": low,
        "high": high,
        "within": float(np.nanmean(within)),
        "cross": cross,
        "means": np.nanmean(tensor[:, :, own], axis=1).tolist(),
    }


def selection(personal: Any, seed: int) -> dict[str, float]:
    """Return how far pictures are from random values of all sliders: one, and the best of five of these values and of nearby ones (RPS)."""
    rng, measures = np.random.default_rng([9, seed]), {name: lambda image, m=measure: m(read(image)) for name, measure in MEASURES.items()}
    ways = {"one": (1, 0.0), "five": (5, 0.0), "rps": (5, 0.1)}
    away: dict[str, list[float]] = {way: [] for way in ways}
    for number, named in enumerate(captions(held_out=True) * 2):
        wanted = dict(zip(MEASURES, rng.uniform(0.1, 0.9, len(MEASURES)).tolist(), strict=True))
        for way, (candidates, reach) in ways.items():
            own = {"seed": NOISE + 100 * number, "num_inference_steps": STEPS, "guidance_scale": SCALE}
            away[way].append(rps_select(personal, wanted, caption(named), measures, candidates=candidates, reach=reach, **own).distance)
    low, high = bootstrapped(np.array(away["rps"]) - np.array(away["five"]), 0)
    facts = {way: float(np.mean(values)) for way, values in away.items()} | {"rps_less_five_low": low, "rps_less_five_high": high}
    print(f"seed {seed}: distance from the values wanted {facts['one']:.3f}, best of five {facts['five']:.3f}, RPS {facts['rps']:.3f}; "
          f"RPS less best of five {facts['rps'] - facts['five']:+.4f} ({low:+.4f} to {high:+.4f})", flush=True)  # fmt: skip
    return facts


def main(
    seeds: Sequence[int] = (0,),
    steps: int = 1500,
    pictures: int = 2000,
    noises: int = 4,
    others: float | None = None,
    select: bool = False,
    guidance_scale: float = SCALE,
    root: str = "outputs/sliders",
) -> None:
    """Train, measure and print.

    Args:
        seeds: of trainings.
        steps: of each training.
        pictures: drawings to train on.
        noises: pictures of each held-out prompt for every value of a slider.
        others: value of the sliders that are not moved; off if not given.
        select: whether RPS is measured, too, at guidance 4.
        guidance_scale: of the pictures that are measured.
        root: folder of the table, the runs and the results.
    """
    torch.set_flush_denormal(True)
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    data = table(folder, pictures)
    for seed in seeds:
        facts = report(folder, train(folder, data, seed, steps), seed, noises, others, guidance_scale)
        if select:
            facts["selection"] = selection(load(folder / f"run-{seed}-{steps}"), seed)
        (folder / f"result-{seed}{'' if others is None else '-others'}.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    auto_cli(main)
