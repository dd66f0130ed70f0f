# python -m scripts.bench_pareto --problem tastes --seeds "[0, 1, 2]"
"""Where online training ends by each way to combine two rewards: one model, one loss and one budget, three seeds.

`tastes` are opposed: a shape at the top has 1 by "high" and 0 by "centred", one in the middle 0.5 and 1, and one at the left, right or
bottom less of both. `bait` is the brightness of a picture, which a white sheet has most of, beside how well it keeps to its prompt. Each
run is kept in a file of its own under the root and not run twice; the table, by way, is printed at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli

from diffalign.core.intervals import bootstrapped
from diffalign.core.specs import Spec
from diffalign.data.world.judge import mean_adherence
from diffalign.infer.load import load
from diffalign.infer.sample import grid
from diffalign.models.backbones.table import load_pipeline
from diffalign.rewards.table import load_scorer
from scripts.arena import Arena
from scripts.bench_online import Budget, play

METHOD, HELD_OUT = "online_rank_dpo", 100


@dataclass(frozen=True, slots=True)
class Problem:
    """Two rewards by name, the taste whose attribute the prompts leave open, ways to combine, budget and what else is set."""

    rewards: Mapping[str, Spec]
    open_for: str
    ways: Mapping[str, Spec]
    budget: Budget
    options: Mapping[str, Any] = field(default_factory=dict)


SOFT = {"centres": {"high": 0.5, "centred": 0.5}, "temperatures": {"high": 0.2, "centred": 0.2}}
TASTES = Problem(
    {"high": {"taste": {"name": "high"}}, "centred": {"taste": {"name": "centred"}}},
    "high",
    {
        "high alone": {"weighted": {"weights": {"high": 1.0, "centred": 0.0}}},
        "weighted, 3 high": {"weighted": {"weights": {"high": 3.0, "centred": 1.0}}},
        "weighted, 2 high": {"weighted": {"weights": {"high": 2.0, "centred": 1.0}}},
        "weighted": "weighted",
        "log_sigmoid": {"log_sigmoid": SOFT},
        "lagrange, centred at least 0.5": {"lagrange": {"thresholds": {"centred": 0.5}, "rate": 5.0}},
        "maxmin": "maxmin",
    },
    Budget(prompts=7, updates=12),  # short turns, six of them, so that lagrange can learn
)
BRIGHT = "bright_sheet"
BAIT = Problem(
    {BRIGHT: {"function": {"path": f"scripts.prove_alarm:{BRIGHT}"}}, "adherence": "adherence"},
    "bright_background",
    {
        "brightness alone": {"weighted": {"weights": {BRIGHT: 1.0, "adherence": 0.0}}},
        "weighted": "weighted",
        "standardised": "standardised",
        "log_sigmoid": {"log_sigmoid": {"centres": {BRIGHT: 0.5, "adherence": 0.95}, "temperatures": {BRIGHT: 0.2, "adherence": 0.02}}},
        "product": "product",
        "lagrange, adherence at least 0.95": {"lagrange": {"thresholds": {"adherence": 0.95}, "rate": 20.0}},
    },
    Budget(images=336, prompts=7, updates=12),
    {"learning_rate": 3e-3, "beta": 125},  # in a hurry, with little that holds the policy back
)
PROBLEMS = {"tastes": TASTES, "bait": BAIT}


def scored(problem: Problem, arena: Arena, pipe: Any, name: str, seed: int) -> dict[str, Any]:
    """Return the scores of held-out prompts' pictures by each reward, and their adherence; a contact sheet goes beside the results."""
    prompts = arena.eval_prompts[:HELD_OUT]
    images = arena.pictures(pipe, prompts, seed * 1000, f"draw {name}")
    grid(images[:32], 16).save(arena.root / "results" / f"{name}-{seed}.png")
    scores = {reward: [float(value) for value in load_scorer(spec)(images, prompts)] for reward, spec in problem.rewards.items()}
    return {"scores": scores, "adherence": mean_adherence(prompts, images)}


def run(problem: Problem, arena: Arena, way: str, seed: int) -> dict[str, Any]:
    """Return what one way ended with from one seed: from its file, if it was run before."""
    name = way.replace(" ", "_").replace(",", "")
    path = arena.root / "results" / f"{name}-{seed}.json"
    if not path.exists():
        folder = arena.root / "runs" / f"{name}-{seed}"
        options = {"scorers": list(problem.rewards.values()), "combine": problem.ways.get(way), "output_dir": str(folder)}
        if way != "base":
            play(arena, METHOD, seed, problem.budget, {**problem.options, **options}, next(iter(problem.rewards)))
        facts = scored(problem, arena, load_pipeline(arena.model) if way == "base" else load(folder), name, seed)
        path.write_text(json.dumps({"way": way, "seed": seed, **facts}))
    return json.loads(path.read_text())


def table(rows: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Return a Markdown table: a row a way, its seeds pooled by prompt; how much each reward rose, and the one that rose least.

    A rise is against the base's pictures of the same noise.
    """
    rewards = list(rows["base"][0]["scores"])
    heads = ("combined by", *rewards, "rise of the worse", "of each seed", "adherence of each seed")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for way, own in rows.items():
        rises = {name: _pooled(own)[name] - _pooled(rows["base"])[name] for name in rewards}
        worse = min(rewards, key=lambda name: rises[name].mean())
        of_seeds = [min(_means(row)[name] - _means(base)[name] for name in rewards) for row, base in zip(own, rows["base"], strict=True)]
        risen = ["", ""] if way == "base" else [f"{worse} {_interval(rises[worse])}", ", ".join(f"{value:+.3f}" for value in of_seeds)]
        adherences = ", ".join(f"{row['adherence']:.3f}" for row in own)
        lines.append(f"| {' | '.join([way, *map(_interval, _pooled(own).values()), *risen, adherences])} |")
    return "\n".join(lines)


def _means(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in row["scores"].items()}


def _pooled(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the mean over the seeds of each prompt's score (P,), by reward."""
    return {name: np.mean([row["scores"][name] for row in rows], axis=0) for name in rows[0]["scores"]}


def _interval(values: np.ndarray) -> str:
    low, high = bootstrapped(values, 0)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def main(
    problem: str = "tastes", ways: Sequence[str] | None = None, seeds: Sequence[int] = (0, 1, 2), root: str = "outputs/bench_pareto"
) -> None:
    """Train every way from every seed, and print the table.

    Args:
        problem: tastes or bait.
        ways: some of the problem's ways; all, if not given. The base is always there.
        seeds: of trainings and of the pictures that are judged.
        root: folder of the runs and results.
    """
    torch.set_flush_denormal(True)
    own = PROBLEMS[problem]
    arena = Arena(Path(root) / problem, taste=own.open_for)
    rows = {way: [run(own, arena, way, seed) for seed in seeds] for way in ("base", *(ways or own.ways))}
    print(table(rows))


if __name__ == "__main__":
    auto_cli(main)
