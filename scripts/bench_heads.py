"""What each reward head is worth beside one reward by Bradley and Terry, on simulated voters of the embedded world.

python -m scripts.bench_heads --root outputs/heads --seeds 0 1 2        writes ROOT/SEED/TABLE, the tables of configs/tiny/reward_*.yaml

Both heads are trained on the same votes, and judged on pictures of other prompts. Every table has a structure that one head is made for:
ties, rankings, tastes that hang on the prompt, two groups of voters without ids, preferences that run in a circle, few ratings beside many
votes, one small dataset beside a large one, new pictures without votes, likes alone. Means over seeds, with the least and the most.
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
PICTURES, PAIRS, STEPS = 8, 12, 400
BOTH = ("warm", "bright_background")
FIRST = SHAPES[:4]  # under prompts of these shapes the first taste of BOTH counts, under those of others the second
HUES = [name for name in COLORS if name != "pink"]


class World:
    """Pictures of prompts, with what they show, and pairs of them."""

    def __init__(self, seed: int, prompts: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pictures: list[tuple[str, Any, Reading]] = []
        for number in range(prompts):
            fixed = random_scene(self.rng, shape=SHAPES[number % len(SHAPES)]).attributes()
            prompt = caption({name: fixed[name] for name in ("shape", "position")})
            for _ in range(PICTURES):
                image = render(random_scene(self.rng, shape=fixed["shape"], position=fixed["position"]), self.rng)
                self.pictures.append((prompt, image, read(image)))
        self.groups = [range(first, first + PICTURES) for first in range(0, len(self.pictures), PICTURES)]
        self.pairs = [tuple(self.rng.choice(group, 2, replace=False)) for group in self.groups for _ in range(PAIRS)]

    def value(self, taste: str) -> np.ndarray:
        """Return a taste of every picture, (N,)."""
        return np.array([0.0 if np.isnan(r.radius) else TASTES[taste](r) for _, _, r in self.pictures])

    def turns(self) -> list[tuple[tuple[int, int], bool]]:
        """Return the pairs of unlike colours on the wheel, and whether the second comes next after the first."""
        hue = [HUES.index(c) if (c := r.attributes.get("color")) in HUES else -1 for _, _, r in self.pictures]
        there = [(a, b) for a, b in self.pairs if min(hue[a], hue[b]) >= 0 and hue[a] != hue[b]]
        return [((a, b), (hue[b] - hue[a]) % len(HUES) <= len(HUES) // 2) for a, b in there]

    def by_prompt(self) -> np.ndarray:
        """Return the utility that hangs on the prompt, (N,)."""
        first = np.array([any(shape in prompt.split() for shape in FIRST) for prompt, _, _ in self.pictures])
        return np.where(first, *(self.value(name) for name in BOTH))

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


def ties(world: World) -> list[Record]:
    """Return votes on three sizes, of which two alike are a tie."""
    return world.votes(np.round(2 * world.value("large")), ties=True)


def rankings(world: World) -> list[Record]:
    """Return rankings of five pictures by how light the ground is."""
    light = world.value("bright_background")
    return [world.record(str(n), g[:5], None, ranks=rankdata(-light[list(g[:5])]).tolist()) for n, g in enumerate(world.groups)]


def prompts(world: World) -> list[Record]:
    """Return votes that follow one taste or another by the prompt, with both as scores."""
    return world.votes(world.by_prompt(), {name: world.value(name) for name in BOTH})


def _two(world: World) -> list[tuple[Record, Record]]:
    """Return the votes of both tastes on the same pairs."""
    one, two = ({r.id: r for r in world.votes(world.value(taste))} for taste in BOTH)
    return [(one[name], two[name]) for name in one if name in two]


def groups(world: World) -> list[Record]:
    """Return votes of which two in five follow the first taste, and nothing says which."""
    return [pair[int(world.rng.random() > 0.4)] for pair in _two(world)]


def sources(world: World) -> list[Record]:
    """Return votes of a great dataset by the first taste, and of one a ninth as large by the second."""
    place = ({"place": "great"}, {"place": "small"})
    return [replace(pair[n % 10 == 0], meta=place[n % 10 == 0]) for n, pair in enumerate(_two(world))]


def circle(world: World) -> list[Record]:
    """Return votes for the colour that comes next on the wheel."""
    return [world.record(str(n), pair, float(ahead)) for n, (pair, ahead) in enumerate(world.turns())]


def votes(world: World) -> list[Record]:
    """Return votes by one taste, without error."""
    return world.votes(world.value(BOTH[1]))


def ratings(world: World) -> list[Record]:
    """Return an eighth of these votes, with stars."""
    return world.votes(world.value(BOTH[1]), {"stars": 1.0 + 4.0 * world.value(BOTH[1])})[::8]


def _voted(world: World) -> list[tuple[Record, bool]]:
    """Return the votes on size, and whether each is on a picture of the first shapes."""
    return [(vote, any(shape in vote.prompt.split() for shape in FIRST)) for vote in world.votes(world.value("large"))]


def first_shapes(world: World) -> list[Record]:
    """Return votes on pictures of the first shapes alone."""
    return [vote for vote, first in _voted(world) if first]


def shifted(world: World) -> list[Record]:
    """Return these votes, and pairs of the other shapes, which are new and have none."""
    place = ({"place": "new"}, {"place": "voted"})
    return [replace(vote, meta=place[first], prob=vote.prob if first else 0.5) for vote, first in _voted(world)]


def likes(world: World) -> list[Record]:
    """Return for every picture whether it is liked."""
    value = world.value(BOTH[1])
    return [world.record(str(n), (n,), float(value[n] > np.median(value))) for n in range(len(world.pictures))]


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


class Trial:
    """One seed: its pictures to train on and others to judge, and runs on its tables."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed, self.world, self.other = root, seed, World(seed, 96), World(1000 + seed, 24)

    def run(self, head: str, made: Callable[[World], list[Record]], suffix: str = "", **constants: Any) -> str:
        """Train a head on a table, which is made if it is not there."""
        table = self.root / made.__name__
        if not table.is_dir():
            write_table(table, made(self.world))
        return run(head, table, self.root / f"run-{made.__name__}-{head}{suffix}", self.seed, **constants)

    def both(self, head: str, made: Callable[[World], list[Record]]) -> list[str]:
        """Train a head and Bradley and Terry's on one table."""
        return [self.run(head, made), self.run("bt", made)]

    def accuracy(self, folder: str, utility: np.ndarray, **constants: Any) -> float:
        """Return the share of pairs of other prompts that a run orders as a utility does."""
        return right(self.other, scored(self.other, folder, **constants), utility)


Results = dict[str, list[float]]  # what the head reaches, and what Bradley and Terry's does


def of_ordinal(t: Trial) -> Results:
    """Return how well ties are told from preferences, and preferences apart."""
    runs, level = t.both("ordinal", ties), np.round(2 * t.other.value("large"))
    tied = np.array([level[a] == level[b] for a, b in t.other.pairs])
    return {
        "ordinal: AUROC of ties": [auroc(-np.abs(logits(t.other, r, t.other.pairs)), tied) for r in runs],
        "ordinal: accuracy": [t.accuracy(r, level) for r in runs],
    }


def correlation(of: Callable[..., Any], first: Any, second: Any) -> float:
    """Return a correlation of scipy's."""
    return float(of(first, second).statistic)


def of_ranklist(t: Trial) -> Results:
    """Return the rank correlation within prompts."""
    light, places = t.other.value("bright_background"), [list(group) for group in t.other.groups]
    scores = [scored(t.other, r) for r in t.both("ranklist", rankings)]
    return {"ranklist: Kendall's tau": [float(np.mean([correlation(kendalltau, s[g], light[g]) for g in places])) for s in scores]}


def of_gates(t: Trial) -> Results:
    """Return the accuracy where the taste hangs on the prompt."""
    utility = t.other.by_prompt()
    return {f"{head}: accuracy": [t.accuracy(r, utility) for r in t.both(head, prompts)] for head in ("armo", "micro")}


def of_maxmin(t: Trial) -> Results:
    """Return the accuracy of the group that fares worse, each group judged by the part that fits it."""
    folder, plain = t.both("maxmin", groups)
    tastes = [t.other.value(name) for name in BOTH]
    fits = [[t.accuracy(folder, taste, part=group) for taste in tastes] for group in (0, 1)]
    best = max((fits[0][0], fits[1][1]), (fits[1][0], fits[0][1]), key=sum)
    return {"maxmin: the worse group's accuracy": [min(best), min(t.accuracy(plain, taste) for taste in tastes)]}


def of_user(t: Trial) -> Results:
    """Return the mean accuracy of two users after eight pairs of each, beside that of nobody in particular, all by one run of `micro`."""
    folder, accuracies = t.run("micro", groups), []
    for place, taste in enumerate(BOTH):
        table = t.root / f"user-{taste}"
        write_table(table, [pair[place] for pair in _two(t.world)[::40][:8]], overwrite=True)
        value = t.other.value(taste)
        accuracies.append([t.accuracy(folder, value, user=str(table)), t.accuracy(folder, value)])
    return {"micro: two users' accuracy, beside nobody's": np.mean(accuracies, axis=0).tolist()}


def of_gpm(t: Trial) -> Results:
    """Return the accuracy of preferences in a circle."""
    pairs, ahead = zip(*t.other.turns(), strict=True)
    return {"gpm: accuracy": [float(((logits(t.other, r, pairs) > 0) == np.array(ahead)).mean()) for r in t.both("gpm", circle)]}


def of_regression(t: Trial) -> Results:
    """Return the rank correlation with the rated value, beside the same head without a start."""
    start = t.run("bt", votes)
    runs = [t.run("bt_then_regression", ratings, name, **given) for name, given in (("-on", {"start": start}), ("", {}))]
    value = t.other.value(BOTH[1])
    return {"bt_then_regression: Spearman, beside no start": [correlation(spearmanr, scored(t.other, r), value) for r in runs]}


def of_more(t: Trial) -> Results:
    """Return the accuracy by the taste of each source."""
    runs, named = t.both("more", sources), zip(("great", "small"), BOTH, strict=True)
    return {f"more: the {name} source's accuracy": [t.accuracy(r, t.other.value(taste)) for r in runs] for name, taste in named}


def of_meta(t: Trial) -> Results:
    """Return the accuracy on shapes that nobody has voted on, beside Bradley and Terry's of the votes alone."""
    new = [not any(shape in prompt.split() for shape in FIRST) for prompt, _, _ in t.other.pictures]
    size = np.where(new, t.other.value("large"), 0.0)
    return {"meta: accuracy on new shapes": [t.accuracy(r, size) for r in (t.run("meta", shifted), t.run("bt", first_shapes))]}


def of_like(t: Trial) -> Results:
    """Return the accuracy on pairs, beside votes on pairs of the same pictures."""
    value = t.other.value(BOTH[1])
    return {"like: accuracy on pairs, beside votes": [t.accuracy(r, value) for r in (t.run("like", likes), t.run("bt", votes))]}


TRIALS: dict[str, Callable[[Trial], Results]] = {
    "ordinal": of_ordinal,
    "ranklist": of_ranklist,
    "gates": of_gates,
    "maxmin": of_maxmin,
    "user": of_user,
    "gpm": of_gpm,
    "regression": of_regression,
    "more": of_more,
    "meta": of_meta,
    "like": of_like,
}


def measured(root: Path, seed: int, names: list[str]) -> Results:
    """Return what every head named reaches on one seed, and what one reward by Bradley and Terry does."""
    trial, results = Trial(root, seed), {}
    for name in names:
        results |= (new := TRIALS[name](trial))
        for about, values in new.items():
            print(seed, about, *(f"{value:.3f}" for value in values), flush=True)
    return results


def main() -> None:
    """Run the comparison of every seed, and write and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", type=Path, default=Path("outputs/heads"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--heads", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    given = parser.parse_args()
    seeds = [measured(given.root / str(seed), seed, given.heads) for seed in given.seeds]
    write({given.root / "heads.json": json.dumps(seeds, indent=2) + "\n"})
    print("| | the head | Bradley and Terry |\n| --- | --- | --- |")
    for name in seeds[0]:
        cells = [np.array([one[name][side] for one in seeds]) for side in (0, 1)]
        print(f"| {name} | {' | '.join(f'{c.mean():.3f} ({c.min():.3f} to {c.max():.3f})' for c in cells)} |")


if __name__ == "__main__":
    main()
