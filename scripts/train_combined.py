"""What a model becomes that learns from pairs ranked by two rewards, by each way to combine them: python -m scripts.train_combined

The problems, and the two tables, are those of bench_pareto.py; but the model learns offline, from the best and the worst of eight drawings
a prompt: the tastes in scales of 100 and 0.01, and drawings that are mixed with white, which are the brighter the less they show. All
trainings are Diffusion-DPO with the settings of prove_repair.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image

from diffalign.core.specs import bind
from diffalign.data.combiners import COMBINERS
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.world.captions import parse
from diffalign.data.world.scenes import random_scene, render
from diffalign.infer.load import load
from diffalign.models.backbones.table import load_pipeline
from diffalign.rewards.table import load_scorer
from diffalign.train.trainer import trainer_for
from scripts.arena import Arena, Run
from scripts.bench_pareto import PROBLEMS, scored, table
from scripts.prove_combining import ways
from scripts.prove_repair import OPTIONS, STEPS

PROMPTS, DRAWN, TURN = 192, 8, 8  # to learn from, drawings of each, and prompts between which a combiner that learns changes its mind


@dataclass(frozen=True, slots=True)
class Setting:
    """In which units the rewards come, by name; what is kept and how much of it; whether drawings fade to white."""

    units: dict[str, float]
    kept: str
    least: float
    fading: bool = False


SETTINGS = {
    "tastes": Setting({"high": 100.0, "centred": 0.01}, "centred", 0.005),
    "bait": Setting({"bright_sheet": 1.0, "adherence": 1.0}, "adherence", 0.95, fading=True),
}


class Combined(Arena):
    """An arena whose tables, named WAY-SEED, have the best and the worst drawing of each prompt."""

    def __init__(self, root: Path, problem: str) -> None:
        super().__init__(root / problem, taste=PROBLEMS[problem].open_for)
        self.problem, self.setting = PROBLEMS[problem], SETTINGS[problem]

    def table(self, kind: str) -> Path:
        """Return the table of a kind, made if it is not there yet."""
        path = self.root / "tables" / kind
        if not path.exists():
            write_table(path, self._pairs(*kind.rsplit("-", 1)))
        return path

    def _pairs(self, way: str, seed: str) -> Iterator[Record]:
        prompts, images = self.train_prompts[:PROMPTS], self._drawings(int(seed))
        flat, texts = [image for row in images for image in row], [prompt for prompt in prompts for _ in range(DRAWN)]
        rewards = {
            name: self.setting.units[name] * np.reshape(load_scorer(spec)(flat, texts), (PROMPTS, DRAWN))
            for name, spec in self.problem.rewards.items()
        }
        combiner = bind("combine", COMBINERS, ways(rewards, self.setting.kept, self.setting.least)[way])()
        for start in range(0, PROMPTS, TURN):
            turn = {name: values[start : start + TURN] for name, values in rewards.items()}
            for place, total in enumerate(combiner.combine(turn), start):
                pair = tuple(Candidate(image=encode_image(images[place][which])) for which in (total.argmax(), total.argmin()))
                yield Record(f"{place:04d}", prompts[place], pair, prob=1.0, source=f"row {place}")
            combiner = combiner.updated(turn)

    def _drawings(self, seed: int) -> list[list[Image.Image]]:
        rng, white = np.random.default_rng([seed, 6]), Image.new("RGB", (64, 64), "white")
        drawn = [[render(random_scene(rng, **parse(prompt)), rng) for _ in range(DRAWN)] for prompt in self.train_prompts[:PROMPTS]]
        if not self.setting.fading:
            return drawn
        shares = np.linspace(0.0, 1.0, DRAWN)
        return [[Image.blend(image, white, share) for image, share in zip(row, shares, strict=True)] for row in drawn]

    def facts(self, way: str, seed: int, steps: int) -> dict[str, Any]:
        """Return the scores that a way ends with: from its file, if it was trained before."""
        run, name = Run(f"{way}-{seed}", "diffusion_dpo", OPTIONS, steps, seed), way.replace(" ", "_").replace(",", "")
        path = self.root / "results" / f"{name}-{seed}-{steps}.json"
        if not path.exists():
            if way != "base":
                trainer_for(self._config(run)).fit()
            pipe = load_pipeline(self.model) if way == "base" else load(self.root / "runs" / run.key)
            path.write_text(json.dumps({"way": way, "seed": seed, **scored(self.problem, self, pipe, name, seed)}))
        return json.loads(path.read_text())


def main(
    problem: str = "tastes",
    by: Sequence[str] = ("weighted", "standardised", "log_sigmoid", "maxmin"),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = STEPS,
    root: str = "outputs/train_combined",
) -> None:
    """Train by every way from every seed, and print the table.

    Args:
        problem: tastes or bait.
        by: ways of prove_combining.py: REWARD alone, weighted, standardised, log_sigmoid, product, maxmin, hypervolume, lagrange.
        seeds: of drawings, trainings and of the pictures that are judged.
        steps: of each training.
        root: folder of the runs and results.
    """
    torch.set_flush_denormal(True)
    arena = Combined(Path(root), problem)
    print(table({way: [arena.facts(way, seed, steps) for seed in seeds] for way in ("base", *by)}))


if __name__ == "__main__":
    auto_cli(main)
