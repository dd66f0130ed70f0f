"""What each reward head is worth beside one reward by Bradley and Terry, on simulated voters of the embedded world.

python -m scripts.bench_heads --root outputs/heads --seeds 0 1 2        writes ROOT/SEED/TABLE, the tables of configs/tiny/reward_*.yaml

Both heads are trained on the same votes, and judged on pictures of other prompts. Every table has a structure that one head is made for:
ties, rankings, tastes that hang on the prompt, two groups of voters without ids, preferences that run in a circle, few ratings beside many
votes, one small dataset beside a large one, likes alone. Means over seeds, with the least and the most.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, rankdata, spearmanr

from diffalign.core.files import write
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.world.captions import caption
from diffalign.data.world.judge import Reading, read
from diffalign.data.world.scenes import COLORS, SHAPES, random_scene, render
from diffalign.data.world.tastes import TASTES
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.rewards.heads.networks import NOBODY
from diffalign.rewards.table import load_scorer
from diffalign.train.align import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tiny"
PICTURES, PAIRS, STEPS = 8, 8, 200
WARM = SHAPES[:4]  # under prompts of these shapes warm pictures are preferred, under those of others large ones
HUES = [name for name in COLORS if name != "pink"]


class World:
    """Pictures of prompts, with what they show, and pairs of them."""

    def __init__(self, seed: int, prompts: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pictures: list[tuple[str, Any, Reading]] = []
        for number in range(prompts):
            fixed = random_scene(self.rng, shape=SHAPES[number % len(SHAPES)]).attributes()
            other = "position" if number % 2 else "background"
            prompt = caption({"shape": fixed["shape"], other: fixed[other]})
            for _ in range(PICTURES):
                image = render(random_scene(self.rng, shape=fixed["shape"], **{other: fixed[other]}), self.rng)
                self.pictures.append((prompt, image, read(image)))
        self.groups = [range(first, first + PICTURES) for first in range(0, len(self.pictures), PICTURES)]
        self.pairs = [tuple(self.rng.choice(group, 2, replace=False)) for group in self.groups for _ in range(PAIRS)]

    def value(self, taste: str) -> np.ndarray:
        """Return a taste of every picture, (N,)."""
        return np.array([0.0 if np.isnan(r.radius) else TASTES[taste](r) for _, _, r in self.pictures])

    def hue(self) -> np.ndarray:
        """Return the place of every picture's colour on the wheel, (N,), -1 for none."""
        return np.array([HUES.index(c) if (c := r.attributes.get("color")) in HUES else -1 for _, _, r in self.pictures])

    def by_prompt(self) -> np.ndarray:
        """Return the utility that hangs on the prompt, (N,)."""
        first = np.array([any(shape in prompt.split() for shape in WARM) for prompt, _, _ in self.pictures])
        return np.where(first, self.value("warm"), self.value("large"))

    def record(self, name: str, places: Any, prob: float | None, scores: dict[str, np.ndarray] | None = None, **more: Any) -> Record:
        """Return pictures as a record."""
        ranks = more.pop("ranks", [None] * len(places))
        candidates = tuple(
            Candidate(image=encode_image(self.pictures[p][1]), scores={k: float(v[p]) for k, v in (scores or {}).items()}, rank=rank)
            for p, rank in zip(places, ranks, strict=True)
        )
        return Record(name, self.pictures[places[0]][0], candidates, prob=prob, source=f"world line {name}", **more)

    def votes(self, utility: np.ndarray, scores: dict[str, np.ndarray] | None = None, *, ties: bool = False) -> list[Record]:
        """Return the votes of one utility."""
        gaps = [utility[a] - utility[b] for a, b in self.pairs]
        return [
            self.record(str(n), pair, 0.5 + 0.5 * float(np.sign(gap)), scores)
            for n, (pair, gap) in enumerate(zip(self.pairs, gaps, strict=True))
            if gap or ties
        ]


def tables(world: World) -> dict[str, list[Record]]:
    """Return every table by name."""
    rng, warm, large = world.rng, world.value("warm"), world.value("large")
    level, hue = np.round(2 * large), world.hue()
    made = {"ties": world.votes(level, ties=True), "prompts": world.votes(world.by_prompt(), {"warm": warm, "large": large})}
    made["rankings"] = [world.record(str(n), g[:5], None, ranks=rankdata(-large[list(g[:5])]).tolist()) for n, g in enumerate(world.groups)]
    one, two = ({r.id: r for r in world.votes(taste)} for taste in (warm, large))
    both = [name for name in one if name in two]
    made["groups"] = [one[name] if rng.random() < 0.4 else two[name] for name in both]
    turns = {pair: (hue[pair[1]] - hue[pair[0]]) % len(HUES) for pair in world.pairs if min(hue[pair[0]], hue[pair[1]]) >= 0}
    made["circle"] = [world.record(str(n), pair, float(turn <= len(HUES) // 2)) for n, (pair, turn) in enumerate(turns.items()) if turn]
    made["votes"] = world.votes(large)
    made["ratings"] = world.votes(large, {"stars": 1.0 + 4.0 * large})[::8]
    small = [n % 10 == 0 for n in range(len(both))]
    made["sources"] = [
        replace((two if few else one)[name], meta={"place": "small" if few else "great"}) for name, few in zip(both, small, strict=True)
    ]
    made["likes"] = [world.record(str(n), (n,), float(large[n] > 0.5)) for n in range(len(world.pictures))]
    return made


def run(method: str, table: Path, folder: Path, seed: int, **head: Any) -> str:
    """Train a head by its recipe, and return the folder of the run."""
    given = load_yaml(CONFIGS / f"reward_{method}.yaml") | {"dataset_name": str(table), "seed": seed, "output_dir": str(folder)}
    given |= {"max_train_steps": STEPS, "log_every": STEPS, "overwrite_output_dir": True, "held_out_share": 0.05}
    if head:
        given["reward_head"] = {method: given["reward_head"][method] | head}
    return str(train(from_mapping(given, "bench_heads")))


def scored(world: World, folder: str, **constants: Any) -> np.ndarray:
    """Return the scores of all pictures by a run, (N,)."""
    scorer = load_scorer({"trained": {"path": folder, **constants}})
    return scorer([image for _, image, _ in world.pictures], [prompt for prompt, _, _ in world.pictures])


def right(world: World, scores: np.ndarray, utility: np.ndarray) -> float:
    """Return the share of pairs that scores order as the utility does."""
    pairs = [(a, b) for a, b in world.pairs if utility[a] != utility[b]]
    return float(np.mean([(scores[a] > scores[b]) == (utility[a] > utility[b]) for a, b in pairs]))


def logits(world: World, folder: str, pairs: Any) -> np.ndarray:
    """Return the logits of pairs by a run's head, (P,)."""
    scorer: Any = load_scorer({"trained": {"path": folder}})
    seen = scorer.embeds.images([image for _, image, _ in world.pictures])
    words = scorer.embeds.prompts([world.pictures[a][0] for a, _ in pairs])
    with torch.no_grad():
        nobody = torch.full((len(pairs),), NOBODY)
        return scorer.head.pair_logits(seen[torch.tensor(np.array(pairs))], words, nobody)[:, 0, 1].numpy()


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the chance that a positive has a higher value than a negative."""
    ranks, count = rankdata(values), positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(values) - count)))


def measured(root: Path, seed: int) -> dict[str, tuple[float, float]]:
    """Return for each head what it reaches, and what one reward by Bradley and Terry does."""
    world, other = World(seed, 48), World(1000 + seed, 24)
    for name, records in tables(world).items():
        write_table(root / name, records, overwrite=True)
    warm, large = other.value("warm"), other.value("large")

    def both(head: str, table: str, **constants: Any) -> tuple[str, str]:
        return run(head, root / table, root / f"run-{head}", seed, **constants), run("bt", root / table, root / f"run-{head}-bt", seed)

    results: dict[str, tuple[float, float]] = {}

    def note(name: str, measure: Callable[[str], float], *runs: str) -> None:
        results[name] = (measure(runs[0]), measure(runs[1]))
        print(seed, name, *(f"{value:.3f}" for value in results[name]), flush=True)

    runs = both("ordinal", "ties")
    level = np.round(2 * large)
    tied = np.array([level[a] == level[b] for a, b in other.pairs])
    note("ordinal: AUROC of ties", lambda r: auroc(-np.abs(logits(other, r, other.pairs)), tied), *runs)
    note("ordinal: accuracy", lambda r: right(other, scored(other, r), level), *runs)
    runs = both("ranklist", "rankings")
    groups = [list(group) for group in other.groups]
    note(
        "ranklist: Kendall's tau",
        lambda r: float(np.mean([kendalltau(s[g], large[g]).statistic for s in [scored(other, r)] for g in groups])),
        *runs,
    )
    for head in ("armo", "micro"):
        note(f"{head}: accuracy", lambda r: right(other, scored(other, r), other.by_prompt()), *both(head, "prompts"))
    folder, plain = both("maxmin", "groups")
    fits = np.array([[right(other, scored(other, folder, part=g), taste) for taste in (warm, large)] for g in (0, 1)])
    found = max((fits[0, 0], fits[1, 1]), (fits[0, 1], fits[1, 0]), key=sum)
    one = [right(other, scored(other, plain), taste) for taste in (warm, large)]
    note("maxmin: the worse group's accuracy", lambda r: min(found) if r == folder else min(one), folder, plain)
    hue = other.hue()
    wheel = [(a, b) for a, b in other.pairs if min(hue[a], hue[b]) >= 0 and hue[a] != hue[b]]
    ahead = np.array([(hue[b] - hue[a]) % len(HUES) <= len(HUES) // 2 for a, b in wheel])
    note("gpm: accuracy", lambda r: float(((logits(other, r, wheel) > 0) == ahead).mean()), *both("gpm", "circle"))
    start = run("bt", root / "votes", root / "run-start", seed)
    runs = tuple(
        run("bt_then_regression", root / "ratings", root / f"run-regression-{n}", seed, **given)
        for n, given in enumerate(({"start": start}, {}))
    )
    note("bt_then_regression: Spearman (beside no start)", lambda r: float(spearmanr(scored(other, r), large).statistic), *runs)
    note("more: the small source's accuracy", lambda r: right(other, scored(other, r), large), *both("more", "sources"))
    note(
        "more: the great source's accuracy",
        lambda r: right(other, scored(other, r), warm),
        str(root / "run-more"),
        str(root / "run-more-bt"),
    )
    runs = (run("like", root / "likes", root / "run-like", seed), start)
    note("like: accuracy on pairs (beside votes)", lambda r: right(other, scored(other, r), large), *runs)
    return results


def main() -> None:
    """Run the comparison of every seed, and write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", type=Path, default=Path("outputs/heads"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    found = [measured(given.root / str(seed), seed) for seed in given.seeds]
    write({given.root / "heads.json": json.dumps(found, indent=2) + "\n"})
    print("| | the head | Bradley and Terry |\n| --- | --- | --- |")
    for name in found[0]:
        cells = [np.array([one[name][side] for one in found]) for side in (0, 1)]
        print(f"| {name} | {' | '.join(f'{c.mean():.3f} ({c.min():.3f} to {c.max():.3f})' for c in cells)} |")


if __name__ == "__main__":
    main()
