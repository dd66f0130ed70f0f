# python -m scripts.bench_pareto --way maxmin
"""Two opposed rewards, and where each way to combine them ends: the tastes "high" and "centred", on one model, one loss and one budget.

One call trains one way from one seed and appends a line to the results file; `--table` prints all lines that are there. A shape at the
top has (1, 0), one in the middle (0.5, 1), and one at the left, right or bottom less of both.
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
from diffalign.core.specs import Spec
from diffalign.data.world.judge import mean_adherence, read
from diffalign.data.world.tastes import taste_score
from diffalign.infer.load import load
from diffalign.infer.sample import grid
from diffalign.models.backbones.table import load_pipeline
from scripts.arena import Arena
from scripts.bench_online import Budget, play

REWARDS = ("high", "centred")
METHOD = "online_rank_dpo"
SOFT = {"centres": {"high": 0.5, "centred": 0.5}, "temperatures": {"high": 0.2, "centred": 0.2}}
SHORT_TURNS = Budget(prompts=7, updates=12)  # six of them, so that lagrange can learn
WAYS: dict[str, Spec] = {
    "high alone": {"weighted": {"weights": {"high": 1.0, "centred": 0.0}}},
    "weighted, 3 high": {"weighted": {"weights": {"high": 3.0, "centred": 1.0}}},
    "weighted, 2 high": {"weighted": {"weights": {"high": 2.0, "centred": 1.0}}},
    "weighted": "weighted",
    "log_sigmoid": {"log_sigmoid": SOFT},
    "lagrange, centred at least 0.5": {"lagrange": {"thresholds": {"centred": 0.5}, "rate": 5.0}},
    "maxmin": "maxmin",
}


def run(arena: Arena, way: str, seed: int, budget: Budget, held_out: int) -> dict[str, Any]:
    """Return the line of one way: the means of both rewards on held-out prompts with their intervals, and the adherence."""
    folder = arena.root / "runs" / f"{way.replace(' ', '_')}-{seed}"
    scorers = [{"taste": {"name": name}} for name in REWARDS]
    options = {"scorers": scorers, "combine": WAYS[way], "output_dir": str(folder)}
    taken = play(arena, METHOD, seed, budget, options)
    prompts = arena.eval_prompts[:held_out]
    images = arena.pictures(load(folder), prompts, seed * 1000, "draw aligned")
    grid(images[:32], 16).save(arena.root / "results" / f"{folder.name}.png")
    return {"way": way, "seed": seed, "images": taken["images"], **point(prompts, images)}


def point(prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Any]:
    """Return the mean of each reward with its interval, the share of pictures that have half of both, and the adherence."""
    readings = [read(image) for image in images]
    scores = {name: np.array([taste_score(name, reading) for reading in readings]) for name in REWARDS}
    facts: dict[str, Any] = {name: [float(values.mean()), *bootstrapped(values, 0)] for name, values in scores.items()}
    return facts | {"adherence": mean_adherence(prompts, images)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table; a row is best where no other has more of one reward and as much of the other."""
    points = np.array([[row[name][0] for name in REWARDS] for row in rows])
    lines = [f"| combined by | seed | {' | '.join(REWARDS)} | adherence | no other is better in both |", "| --- " * 6 + "|"]
    for row, own in zip(rows, points, strict=True):
        beaten = ((points >= own).all(axis=1) & (points > own).any(axis=1)).any()
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in (row[name] for name in REWARDS)]
        lines.append(f"| {row['way']} | {row['seed']} | {' | '.join(cells)} | {row['adherence']:.3f} | {'' if beaten else 'yes'} |")
    return "\n".join(lines)


def main(
    way: str | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    held_out: int = 100,
    root: str = "outputs/bench_pareto",
) -> None:
    """Train one way of combining and append a line to the results, or print the table of all that are there.

    Args:
        way: base, or a key of WAYS; the table if not given.
        seed: Seed of the training and of the pictures that are judged.
        budget: What is drawn and trained; 168 pictures in six turns, if not given.
        held_out: Prompts that are judged.
        root: Folder of the runs and of results.jsonl.
    """
    file = Path(root) / "results.jsonl"
    if way is None:
        print(table([json.loads(line) for line in file.read_text().splitlines()]))
        return
    torch.set_flush_denormal(True)
    arena = Arena(Path(root))
    if way == "base":
        prompts = arena.eval_prompts[:held_out]
        images = arena.pictures(load_pipeline(arena.model), prompts, seed * 1000, "draw base")
        row: dict[str, Any] = {"way": way, "seed": seed, "images": 0, **point(prompts, images)}
    else:
        row = run(arena, way, seed, budget or SHORT_TURNS, held_out)
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    print(row)


if __name__ == "__main__":
    auto_cli(main)
