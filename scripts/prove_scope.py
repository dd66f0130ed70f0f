"""A taste for some prompts only, on the embedded world: python -m scripts.prove_scope --seeds 0 1

The taste "high" is meant for prompts that leave the place open. Diffusion-DPO on these, and the same with an anchor on prompts that name a
place; judged on open prompts (win rate) and on other prompts that name one (adherence, against the base's pictures of the same noise).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image

from diffalign.core.intervals import bootstrapped
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.world.captions import parse, random_caption
from diffalign.data.world.judge import adherence, read
from diffalign.data.world.scenes import random_scene
from diffalign.infer.load import load
from diffalign.models.backbones.table import load_pipeline
from scripts.arena import Arena, Run
from scripts.compare_rank import pooled
from scripts.prove_repair import OPTIONS, PROMPTS, STEPS, Repairs

ANCHORED, DRAWS, NAMED = 64, 2, 128  # prompts of the anchor, pictures of each, and prompts that are judged
NOISE = 5_000_000


def naming_prompts(count: int) -> list[str]:
    """Return distinct captions that name a place."""
    rng, prompts = np.random.default_rng([4, 0]), dict[str, None]()
    while len(prompts) < count:
        caption = random_caption(random_scene(rng), rng)
        if "position" in parse(caption):
            prompts[caption] = None
    return list(prompts)


def anchor_table(arena: Arena, prompts: Sequence[str]) -> Path:
    """Return the table of the base's own pictures to `prompts`, made if it is not there yet."""
    path = arena.root / "tables" / "anchor"
    if not path.exists():
        pipe = load_pipeline(arena.model)
        drawn = [arena.pictures(pipe, prompts, NOISE + 1000 * draw, "draw anchor") for draw in range(DRAWS)]
        write_table(path, (_record(i, prompt, own) for i, (prompt, *own) in enumerate(zip(prompts, *drawn, strict=True))))
    return path


def _record(number: int, prompt: str, images: Sequence[Image.Image]) -> Record:
    return Record(f"{number:04d}", prompt, tuple(Candidate(image=encode_image(image)) for image in images), source=f"row {number}")


def adherences(arena: Arena, name: str, pipe: Any, prompts: Sequence[str]) -> np.ndarray:
    """Return how each picture (P,) that `pipe` draws keeps to its prompt, from the folder if it was drawn before."""
    path = arena.root / f"named-{name}.json"
    if not path.exists():
        images = arena.pictures(pipe() if callable(pipe) else pipe, prompts, NOISE + 100_000, f"draw {name}")
        path.write_text(json.dumps([adherence(prompt, read(image)) for prompt, image in zip(prompts, images, strict=True)]))
    return np.array(json.loads(path.read_text()))


def main(seeds: Sequence[int] = (0, 1), weights: Sequence[float] = (0.0, 500.0), steps: int = STEPS, root: str = "outputs/repair") -> None:
    """Train and judge, and print a line for each run, and one for each weight with its seeds pooled by prompt.

    Args:
        seeds: of trainings and evaluations.
        weights: of the anchor; 0 is none.
        steps: of each training.
        root: folder of tables and results; that of prove_repair.py has the runs without an anchor.
    """
    torch.set_flush_denormal(True)
    arena = Repairs(Path(root))
    arena.eval_prompts = arena.eval_prompts[:PROMPTS]
    prompts = naming_prompts(ANCHORED + NAMED)
    held, named = prompts[:ANCHORED], prompts[ANCHORED:]
    base = adherences(arena, "base", lambda: load_pipeline(arena.model), named)
    print(f"base: adherence to prompts that name a place {base.mean():.3f}", flush=True)
    results = {weight: (list[dict[str, Any]](), list[np.ndarray]()) for weight in weights}
    for seed in seeds:
        for weight in weights:
            anchor = {"anchor_dataset_name": str(anchor_table(arena, held)), "anchor_weight": weight} if weight else {}
            run = Run(f"right-{seed}", "diffusion_dpo", OPTIONS | anchor, steps, seed, PROMPTS)
            facts = arena.result(run)
            own = adherences(arena, run.key, lambda run=run: load(arena.root / "runs" / run.key), named)
            results[weight][0].append(facts)
            results[weight][1].append(own - base)
            report(f"seed {seed} anchor {weight:g}", (facts["win_rate"], facts["low"], facts["high"]), own - base)
    for weight, (runs, changes) in results.items():
        won = pooled(arena, runs, [arena.base(seed)["taste"] for seed in seeds])
        report(f"all seeds anchor {weight:g}", (won.rate, won.low, won.high), np.mean(changes, axis=0))


def report(label: str, won: tuple[float, float, float], change: np.ndarray) -> None:
    """Print a line: the wins in scope, and how far the adherence (P,) to other prompts is from the base's, with intervals."""
    low, high = bootstrapped(change, 0)
    in_scope = f"{won[0]:.3f} ({won[1]:.3f} to {won[2]:.3f})"
    print(f"{label}: in scope {in_scope}, adherence elsewhere {change.mean():+.4f} ({low:+.4f} to {high:+.4f}) of the base", flush=True)


if __name__ == "__main__":
    auto_cli(main)
