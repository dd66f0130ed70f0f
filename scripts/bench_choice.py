"""Does it pay to choose what one is asked next? Simulated voters of the embedded world, the same number of votes for each strategy.

    python -m scripts.bench_choice --users 40 --votes '[15, 30, 60]'

A voter has a random taste and errs now and then. After so many votes, how often does a model of these votes name the picture of a held-out
pair that the voter likes better? Asked of the model by which `active` chooses, and of a finer one that did not choose.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from scipy.stats import t as student

from diffalign.app.choice import Numbers, Strategy, chooser, of_colours
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.questions import Order, ShownPicture
from diffalign.data.store import VoteStore
from diffalign.data.world.captions import parse, random_caption
from diffalign.data.world.judge import Reading, read
from diffalign.data.world.scenes import random_scene, render
from diffalign.data.world.tastes import User, random_user
from diffalign.infer.users.next_pair import posterior

EACH = 4  # pictures of a prompt
HELD_OUT = 400  # pairs
FINE = 12  # places across and down, of the model that did not choose


def bench_choice(users: int = 40, votes: list[int] | None = None, prompts: int = 60, seed: int = 0) -> None:
    """Print accuracies on held-out pairs, and what `active` gains on the others with its 95 % interval over voters.

    Args:
        users: voters, each with a taste of its own.
        votes: after how many the models are fitted; 15, 30 and 60 if not given.
        prompts: of the pool, each with four pictures.
        seed: of tastes, pictures and errors.
    """
    counts = votes or [15, 30, 60]
    models = {"of ten numbers, which chooses": of_colours, "of 12 x 12 colours": _fine}
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, VoteStore(f"{folder}/a.db") as store, VoteStore(f"{folder}/b.db") as other:
        readings = {**_draw(store, prompts, rng), **_draw(other, prompts, rng)}
        held_out = [question.pictures for question in other.questions("judge", HELD_OUT)]
        people = [random_user(rng) for _ in range(users)]
        accuracy = {
            (strategy, count, name): np.array([row[count][name] for row in rows])
            for strategy in get_args(Strategy)
            for rows in [[_vote(store, strategy, n, person, readings, counts, models, held_out) for n, person in enumerate(people)]]
            for count in counts
            for name in models
        }
    print(
        "| votes | model | balanced | random | active | active - balanced | active - random |", "|".join(["", *[" --- "] * 7, ""]), sep="\n"
    )
    for name in models:
        for count in counts:
            means = [f"{accuracy[one, count, name].mean():.3f}" for one in ("balanced", "random", "active")]
            gains = [_interval(accuracy["active", count, name] - accuracy[one, count, name]) for one in ("balanced", "random")]
            print(f"| {count} | {name} | {' | '.join([*means, *gains])} |", flush=True)


def _draw(store: VoteStore, prompts: int, rng: np.random.Generator) -> dict[str, Reading]:
    """Fill a store with pictures of random prompts, and return what each shows, by the name of its file."""
    for _ in range(prompts):
        prompt = random_caption(random_scene(rng), rng, keep=0.25)
        images = [render(random_scene(rng, **parse(prompt)), rng) for _ in range(EACH)]
        store.add_pictures(prompt, [encode_image(image) for image in images])
    return {file.name: read(Image.open(file)) for file in store.folder.rglob("*.png")}


def _vote(
    store: VoteStore,
    strategy: Strategy,
    number: int,
    person: User,
    readings: dict[str, Reading],
    counts: list[int],
    models: dict[str, Numbers],
    held_out: Sequence[Sequence[ShownPicture]],
) -> dict[int, dict[str, float]]:
    """Let a voter vote, and return the accuracy of every model after each number of votes."""
    rng, voter, choose = np.random.default_rng(number), f"{strategy} {number}", chooser(strategy, store)
    liking = np.array([[person.utility(readings[picture.file.name]) for picture in pair] for pair in held_out])
    better = liking[:, 0] - liking[:, 1]
    accuracy: dict[int, dict[str, float]] = {}
    for count in range(1, max(counts) + 1):
        order: Order = "random" if strategy == "random" else "balanced"
        (question,) = store.questions(voter, order=order, choose=choose(voter) if choose else None)
        left, right = (readings[picture.file.name] for picture in question.pictures)
        label = person.vote(left, right, rng)
        store.vote(question.id, voter, "tie" if label == 0.5 else "left" if label else "right")
        if count in counts:
            decided = [picture for pair in store.decided(voter) for picture in pair]
            accuracy[count] = {}
            for name, numbers in models.items():
                likes, shown = numbers(decided), numbers([picture for pair in held_out for picture in pair])
                gap = (shown[0::2] - shown[1::2]) @ posterior(likes[0::2] - likes[1::2]).mean
                accuracy[count][name] = float(np.mean((gap > 0) == (better > 0)))
    return accuracy


def _fine(pictures: Sequence[ShownPicture]) -> np.ndarray:
    return np.array([_places(picture.file) for picture in pictures])


def _places(file: Path) -> np.ndarray:
    image = decode_image(file.read_bytes(), str(file)).resize((FINE, FINE))
    return 3.0 * (np.asarray(image, dtype=np.float64).ravel() / 64.0 - 2.0) / np.sqrt(3 * FINE**2)


def _interval(gains: np.ndarray) -> str:
    half = float(student.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return f"{gains.mean():+.3f} ({gains.mean() - half:+.3f} to {gains.mean() + half:+.3f})"


if __name__ == "__main__":
    auto_cli(bench_choice)
