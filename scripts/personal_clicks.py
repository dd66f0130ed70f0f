"""What do a few clicks on the page Yours tell? Unseen users of personal_world.py click through the page's own code.

python -m scripts.personal_clicks --root outputs/personal --run assets/tiny-sd/personal

Pairs are asked that tell most, or at random, at equal clicks. Two measures: how many of a user's preferences between pictures of
one prompt the run then tells (of many users, nothing is drawn), and how often the pictures that it draws beat nobody's, judged as in
bench_personal.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffalign.app.pages.yours import AHEAD
from diffalign.app.studio import Studio
from diffalign.core.intervals import bootstrapped
from diffalign.core.progress import progress
from diffalign.data.pictures import decode_image
from diffalign.data.store import VoteStore
from scripts.bench_personal import Bench
from scripts.personal_report import against
from scripts.personal_world import IMAGES, TRAIN, UNSEEN, Person, World, taste_scores, vector

CLICKS = (1, 2, 4, 8, 12)
DRAWN = (4, 8)  # clicks after which pictures are drawn
ACTIVE, RANDOM = "active", "random"
STORE = "choices.db"
MORE = 100  # unseen users of the first measure
ASKED_OF = 15  # prompts whose pictures' order is told


class Clicker:
    """Simulated visitors of the page, of one seed; `strategy` chooses the pairs."""

    def __init__(self, world: World, run: Path, strategy: str, seed: int) -> None:
        self.strategy, self.seed = strategy, seed
        self.studio = Studio(run, VoteStore(_fresh(world.root / "clicks", f"{strategy}-{seed}", run)))
        for _ in self.studio.prepare():
            pass
        store = self.studio.store
        files = [file for prompt in store.prompts() for file in store.pictures(prompt, "").values()]
        scores = taste_scores([decode_image(file.read_bytes(), file.name) for file in files])
        self.scores = {file.name: row for file, row in zip(files, scores, strict=True)}

    def choices(self, person: Person, count: int) -> list[tuple[str, Path, Path]]:
        """Return the first choices of a user, who clicks as long as there are fewer."""
        studio, name = self.studio, person.name
        rng, sides = np.random.default_rng([self.seed, int(name[-3:])]), random.Random(f"{self.seed} {name}")  # noqa: S311  # of what is shown
        choose = (lambda pairs: studio.next_pair(name, pairs)) if self.strategy == ACTIVE else None
        while len(studio.choices(name)) < count:
            question = studio.store.questions(name, AHEAD, choose=choose, rng=sides)[0]
            felt = [
                self.scores[picture.file.name] @ vector(person.user) + rng.gumbel(scale=person.user.temperature)
                for picture in question.pictures
            ]
            studio.store.vote(question.id, name, "left" if felt[0] > felt[1] else "right")
        return studio.choices(name)[:count]


def _fresh(folder: Path, name: str, run: Path) -> Path:
    """Return a vote store without votes, of the pictures that the page draws for everybody to choose from; they are drawn once."""
    pool = folder / "pool"
    if not pool.exists():
        with VoteStore(pool / STORE) as store:
            for _ in progress(Studio(run, store).prepare(), desc="pictures to choose from", unit="prompts"):
                pass
    shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(pool, folder / name)
    return folder / name / STORE


def shares_told(clicker: Clicker, people: Sequence[Person], numbers: torch.Tensor, scores: np.ndarray) -> np.ndarray:
    """Return (people, CLICKS) shares of preferences between pictures of one prompt that the run tells after so many clicks."""
    shares = []
    for person in progress(people, desc=f"{clicker.strategy}, seed {clicker.seed}", unit="users"):
        chosen = clicker.choices(person, max(CLICKS))
        liked = (scores @ vector(person.user)).reshape(-1, IMAGES)
        row = []
        for count in CLICKS:
            liking = clicker.studio.personal.liking(chosen[:count], numbers).numpy().reshape(-1, IMAGES)
            row.append(_agreement(liking, liked))
        shares.append(row)
    return np.array(shares)


def _agreement(liking: np.ndarray, liked: np.ndarray) -> float:
    """Return the share of pairs of a row's pictures that two (prompts, IMAGES) put into one order."""
    first, second = np.triu_indices(liking.shape[1], 1)
    return float(((liking[:, first] > liking[:, second]) == (liked[:, first] > liked[:, second])).mean())


def first_measure(world: World, run: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the shares of preferences told, by strategy and clicks, and the differences with their 95 % intervals over users."""
    people = [world.person(number) for number in range(TRAIN + UNSEEN, TRAIN + UNSEEN + MORE)]
    tables: dict[str, list[np.ndarray]] = {ACTIVE: [], RANDOM: []}
    numbers = None
    for seed in seeds:
        for strategy, rows in tables.items():
            clicker = Clicker(world, run, strategy, seed)
            if numbers is None:
                numbers = clicker.studio.personal.numbers([world.picture(i) for i in range(ASKED_OF * IMAGES)])
            rows.append(shares_told(clicker, people, numbers, world.scores[: len(numbers)]))
    means = {strategy: np.mean(rows, axis=0) for strategy, rows in tables.items()}
    gains = means[ACTIVE] - means[RANDOM]  # (users, CLICKS), each user the mean over seeds
    return {
        "users": len(people),
        "seeds": len(seeds),
        **{strategy: dict(zip(CLICKS, rows.mean(axis=0).tolist(), strict=True)) for strategy, rows in means.items()},
        "gain": {count: [float(gain.mean()), *bootstrapped(gain, 0)] for count, gain in zip(CLICKS, gains.T, strict=True)},
        "gain_by_seed": [(a - r).mean(axis=0).tolist() for a, r in zip(tables[ACTIVE], tables[RANDOM], strict=True)],
    }


def second_measure(bench: Bench, run: Path, strategy: str, count: int) -> dict[str, Any]:
    """Return how often the pictures drawn after so many clicks beat nobody's, with the 95 % interval over users."""
    clicker, name = Clicker(bench.world, run, strategy, bench.seed), f"clicks-{strategy}-{count}"
    personal = clicker.studio.personal
    bench.scores(name, bench.world.unseen, lambda person: personal.for_user(clicker.choices(person, count)))
    rate = against(bench.world, bench.seed, name, "base")
    assert rate is not None
    return {"win_rate": rate.rate, "ci95": [rate.low, rate.high], **json.loads((bench.root / f"{name}.json").read_text())}


def main() -> None:
    """Measure, and write what was found to clicks.json of the root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of users and pictures, as of bench_personal.py")
    parser.add_argument("--run", type=Path, required=True, help="personalised run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--drawn", nargs="*", default=[f"{strategy}-{count}" for count in DRAWN for strategy in (ACTIVE, RANDOM)])
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    world, file = World(given.root), given.root / "clicks.json"
    facts = json.loads(file.read_text()) if file.exists() else {}
    bench = Bench(world, given.seeds[0])
    if given.drawn:
        bench.base()
    for name in given.drawn:
        strategy, _, count = name.partition("-")
        facts[name] = second_measure(bench, given.run, strategy, int(count))
        print(name, facts[name], flush=True)
        file.write_text(json.dumps(facts, indent=2) + "\n")
    facts["told"] = first_measure(world, given.run, given.seeds)
    file.write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(given.root / "clicks")
    print(json.dumps(facts["told"], indent=2))


if __name__ == "__main__":
    main()
