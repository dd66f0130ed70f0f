"""What each way of combining rewards picks out, on the embedded world: python -m scripts.prove_combining

Of sixteen drawings a prompt the best by two opposed tastes of unlike scales (100 times "high", 0.01 times "centred"), and of pictures that
fade to white the best by brightness and by how well they keep to their prompt. Nothing is trained: this is what `pairs generate --rank_by`
puts first, and what rounds and online training learn from. Turns of eight prompts, so that combiners that learn, or look at all prompts,
change their minds as they do in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from diffalign.cli.demo.images import open_prompts
from diffalign.core.intervals import bootstrapped
from diffalign.core.specs import Spec, bind
from diffalign.data.combiners import COMBINERS
from diffalign.data.world.captions import parse
from diffalign.data.world.judge import adherence, read
from diffalign.data.world.scenes import random_scene, render
from diffalign.data.world.tastes import taste_score
from diffalign.rewards.drift import brightness

PROMPTS, DRAWN, TURN = 96, 16, 8
Table = dict[str, np.ndarray]  # (prompts, drawings) by reward


def tastes(seed: int) -> Table:
    """Return the tastes of drawings to prompts that leave the place open, in unlike scales."""
    rng = np.random.default_rng(seed)
    prompts = open_prompts("high", PROMPTS, rng)
    readings = [[read(render(random_scene(rng, **parse(prompt)), rng)) for _ in range(DRAWN)] for prompt in prompts]
    scales = {"high": 100.0, "centred": 0.01}
    return {name: scale * np.array([[taste_score(name, one) for one in row] for row in readings]) for name, scale in scales.items()}


def fading(seed: int) -> Table:
    """Return brightness and adherence of drawings that are mixed with white, from not at all to nothing else."""
    rng, white = np.random.default_rng(seed), Image.new("RGB", (64, 64), "white")
    rows: dict[str, list[list[float]]] = {"brightness": [], "adherence": []}
    for prompt in open_prompts("bright_background", PROMPTS, rng):
        drawn = [Image.blend(render(random_scene(rng, **parse(prompt)), rng), white, share) for share in np.linspace(0.0, 1.0, DRAWN)]
        rows["brightness"].append([brightness(image) for image in drawn])
        rows["adherence"].append([adherence(prompt, read(image)) for image in drawn])
    return {name: np.array(values) for name, values in rows.items()}


def chosen(rewards: Table, how: Spec) -> Table:
    """Return each reward of the best drawing of each prompt (prompts,), turn by turn."""
    combiner, best = bind("combine", COMBINERS, how)(), []
    for start in range(0, PROMPTS, TURN):
        turn = {name: table[start : start + TURN] for name, table in rewards.items()}
        best.append(combiner.combine(turn).argmax(axis=1))
        combiner = combiner.updated(turn)
    place = np.concatenate(best)
    return {name: table[np.arange(PROMPTS), place] for name, table in rewards.items()}


def ways(rewards: Table, kept: str, least: float) -> dict[str, Spec]:
    """Return the ways of combining, with the constants that the drawings of all prompts give."""
    names = tuple(rewards)
    centres, scales = ({name: float(f(rewards[name])) for name in names} for f in (np.mean, np.std))
    first, *others = names
    made: dict[str, Spec] = {f"{first} alone": {"weighted": {"weights": dict.fromkeys(others, 0.0)}}}
    made |= {name: name for name in ("weighted", "standardised", "log_sigmoid", "product")}
    made["maxmin"] = {"maxmin": {"centres": centres, "scales": scales}}
    made["hypervolume"] = {"hypervolume": {"reference": dict.fromkeys(names, 0.0)}}
    return made | {"lagrange": {"lagrange": {"thresholds": {kept: least}, "rate": 5.0}}}


def report(title: str, of_seeds: Sequence[Table], kept: str, least: float, units: Mapping[str, float]) -> None:
    """Print a row for each way: every reward of what it picks out, in units of its scale, with the interval over prompts and seeds."""
    print(f"\n{title}\n\n| combined by | {' | '.join(of_seeds[0])} |\n| --- " + "| --- " * len(of_seeds[0]) + "|")
    for name in ways(of_seeds[0], kept, least):
        picked = [chosen(rewards, ways(rewards, kept, least)[name]) for rewards in of_seeds]
        cells = []
        for reward, unit in units.items():
            values = np.concatenate([own[reward] for own in picked]) / unit
            low, high = bootstrapped(values, 0)
            cells.append(f"{values.mean():.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Print both tables.

    Args:
        seeds: of prompts and drawings, pooled.
    """
    report("opposed tastes", [tastes(seed) for seed in seeds], "centred", 0.005, {"high": 100.0, "centred": 0.01})
    report("brightness", [fading(seed) for seed in seeds], "adherence", 0.95, {"brightness": 1.0, "adherence": 1.0})


if __name__ == "__main__":
    auto_cli(main)
