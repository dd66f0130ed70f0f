"""What bench_personal.py found, as tables: win rates by each user's own taste, intervals bootstrapped over users."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr, wilcoxon

from diffalign.evaluate.win_rate import WinRate, win_rate
from scripts.personal_world import UNSEEN, Person, World, vector

SHOTS = (1, 2, 4, 8, 16)
NAMES = {
    "pairs-4": "PPD, pairs, 4 shots",
    "pairs_vpl-4": "PPD, pairs (VPL), 4 shots",
    "mixture-4": "PPD, mixture, 4 shots",
    "profile": "PPD, profile text from 4 votes",
    "vector": "PPD, told the taste vector (oracle)",
    "population": "population Diffusion-DPO",
    "one_hot-seen": "PPD, one-hot, on users of the training",
}


def utilities(file: Path, people: Sequence[Person]) -> np.ndarray:
    """Return (people, pictures) how much everybody likes the pictures that were drawn for them."""
    return np.stack([found @ vector(person.user) for found, person in zip(np.load(file), people, strict=True)])


def against(world: World, seed: int, name: str, other: str) -> WinRate | None:
    """Return how often users like the pictures `name` better than `other`'s of the same noise; None where one is not there."""
    files = [world.root / f"seed-{seed}" / f"{which}.npy" for which in (name, other)]
    if not all(file.exists() for file in files):
        return None
    people = world.people[:UNSEEN] if name.endswith("-seen") else world.unseen
    first, second = (utilities(file, people) for file in files)
    names = [person.name for person in people for _ in range(first.shape[1])]
    return win_rate(second.ravel().tolist(), first.ravel().tolist(), names)


def cell(found: WinRate | None) -> str:
    """Return a rate with its interval."""
    return "" if found is None else f"{found.rate:.3f} ({found.low:.3f}-{found.high:.3f})"


def table(world: World, seeds: Sequence[int], names: dict[str, str], others: Sequence[str]) -> list[str]:
    """Return a row for each name: its win rate against each of `others`, seed by seed."""
    heads = [f"against {other}, seed {seed}" for other in others for seed in seeds]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for name, label in names.items():
        cells = [cell(against(world, seed, name, other)) for other in others for seed in seeds]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def paired(world: World, seed: int) -> str:
    """Return how one's own tokens do against somebody else's: mean difference of utility, and Wilcoxon's one-sided p."""
    files = [world.root / f"seed-{seed}" / f"pairs-{which}.npy" for which in ("4", "other")]
    if not all(file.exists() for file in files):
        return ""
    own, other = (utilities(file, world.unseen).mean(axis=1) for file in files)
    found: Any = wilcoxon(own, other, alternative="greater")
    return f"seed {seed}: own minus other {float((own - other).mean()):+.4f} in mean utility, p = {found.pvalue:.2g}"


def rising(rates: Sequence[float]) -> bool:
    """Return whether rates follow the number of pairs, by Spearman's rank correlation."""
    found: Any = spearmanr(SHOTS, rates)
    return float(found.statistic) > 0.8


def claims(world: World, seed: int) -> list[str]:
    """Return whether what is claimed of unseen users with four pairs holds for a seed."""
    base, population = against(world, seed, "pairs-4", "base"), against(world, seed, "pairs-4", "population")
    curve = [against(world, seed, f"pairs-{count}", "base") for count in SHOTS]
    file = world.root / f"seed-{seed}" / "opposites.json"
    way = [value for name, value in json.loads(file.read_text()).items() if name != "nobody"] if file.exists() else []
    held = {
        "against base, lower end above 0.70": base and base.low > 0.70,
        "against population, lower end above 0.55": population and population.low > 0.55,
        "more pairs do better, over all of 1 to 16 (rank correlation above 0.8)": all(curve)
        and rising([found.rate for found in curve if found]),
        "from one user to the opposite one the taste rises at each of the steps": way and sorted(way) == way,
    }
    return [f"seed {seed}: {'yes' if found else 'NO' if found is not None else 'not measured'}: {claim}" for claim, found in held.items()]


def report(world: World, seeds: Sequence[int]) -> str:
    """Return all tables of what is there, in Markdown."""
    lines = table(world, seeds, NAMES, ("base", "population"))
    shots = {f"pairs-{count}": f"{count} pairs" for count in SHOTS} | {"pairs-other": "4 pairs of another user"}
    lines += ["", *table(world, seeds, shots, ("base",)), "", *filter(None, (paired(world, seed) for seed in seeds))]
    for seed in seeds:
        lines += ["", *claims(world, seed)]
        for file in sorted((world.root / f"seed-{seed}").glob("*.json")):
            lines.append(f"seed {seed} {file.stem}: {json.dumps(json.loads(file.read_text()))}")
    return "\n".join(lines)
