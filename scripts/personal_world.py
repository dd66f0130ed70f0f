"""A town of users with tastes of their own, for bench_personal.py: what they voted on, and who of them training never sees.

All vote on one pool of the embedded model's own pictures. A user is a random direction over four tastes of the shapes world, one for each
thing that prompts leave open (colour, size, background, place), and the temperature at which their votes err. Shown four pictures of a
prompt, a user marks the best and the worst: that is one pair. Everything follows from the constants below.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from diffalign.data.importing import import_dataset
from diffalign.data.pictures import encode_image
from diffalign.data.world.captions import parse, random_caption
from diffalign.data.world.judge import read
from diffalign.data.world.scenes import random_scene
from diffalign.data.world.tastes import User, taste_score
from diffalign.infer.sample import draw
from diffalign.models.backbones.table import load_pipeline
from diffalign.models.users.choices import Choice

MODEL, SCALE, STEPS = "assets/tiny-sd", 4.0, 20
TRAIN, UNSEEN = 240, 50  # users
PAIRS, SUPPORT = 24, 16  # of a training user; of an unseen one
PROMPTS, HELDOUT, IMAGES = 112, 40, 20  # prompts to vote on and to judge by; pictures of each of the former
OPEN = ("warm", "large", "bright_background", "high")
AGREED = 0.4  # mean of a taste's weight, in deviations: what the population likes, and Diffusion-DPO without users can learn
SHOWN = 4  # pictures a user chooses from
NAMED = 2  # at most so many attributes in a prompt, the shape among them: the others are a matter of taste


@dataclass(frozen=True, slots=True)
class Person:
    """A user, by name, with the pairs that they voted on: (prompt, preferred picture, the other), as indices."""

    name: str
    user: User
    pairs: np.ndarray  # (P, 3)


class World:
    """Users and pictures under one folder, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng([0, 0])
        found = (random_caption(random_scene(rng), rng, keep=0.25) for _ in range(20_000))
        prompts = list(dict.fromkeys(prompt for prompt in found if len(parse(prompt)) <= NAMED))
        order = rng.permutation(len(prompts))
        self.heldout = [prompts[i] for i in order[:HELDOUT]]
        self.prompts = [prompts[i] for i in order[HELDOUT : HELDOUT + PROMPTS]]

    @functools.cached_property
    def pictures(self) -> np.ndarray:
        """Return (PROMPTS * IMAGES, 64, 64, 3) pictures of the model, those of a prompt one after another."""
        file = self.root / "pictures.npy"
        if not file.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            prompts = [prompt for prompt in self.prompts for _ in range(IMAGES)]
            drawn = draw(load_pipeline(MODEL), prompts, range(len(prompts)), num_inference_steps=STEPS, guidance_scale=SCALE, label="draw")
            temporary = file.with_suffix(".tmp.npy")
            np.save(temporary, np.stack([np.asarray(image) for image in drawn]))
            temporary.replace(file)
        return np.load(file)

    @functools.cached_property
    def scores(self) -> np.ndarray:
        """Return (pictures, 4) their scores under every taste."""
        return taste_scores([self.picture(i) for i in range(len(self.pictures))])

    def picture(self, index: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(self.pictures[index])

    @functools.cached_property
    def people(self) -> list[Person]:
        """Return all users: TRAIN to train on, and then UNSEEN others."""
        return [self.person(number) for number in range(TRAIN + UNSEEN)]

    @property
    def unseen(self) -> list[Person]:
        """Return those whom training does not see."""
        return self.people[TRAIN:]

    def person(self, number: int) -> Person:
        """Return user `number` with their votes."""
        rng = np.random.default_rng([1, number])
        drawn = rng.normal(AGREED, 1.0, size=len(OPEN))
        user = User(dict(zip(OPEN, drawn / np.abs(drawn).sum(), strict=True)), temperature=float(rng.uniform(0.01, 0.03)))
        return Person(f"user-{number:03d}", user, self.votes(user, PAIRS if number < TRAIN else SUPPORT, rng))

    def votes(self, user: User, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return (count, 3) votes: prompt, best and worst of the pictures shown, as they look to the user at the time (Gumbel noise)."""
        votes = []
        for _ in range(count):
            prompt = int(rng.integers(PROMPTS))
            shown = prompt * IMAGES + rng.choice(IMAGES, SHOWN, replace=False)
            felt = self.scores[shown] @ vector(user) + rng.gumbel(scale=max(user.temperature, 1e-9), size=SHOWN)
            votes.append((prompt, int(shown[felt.argmax()]), int(shown[felt.argmin()])))
        return np.array(votes)

    def choices(self, person: Person, shots: int) -> list[Choice]:
        """Return a user's first pairs."""
        return [Choice(self.prompts[p], self.picture(a), self.picture(b)) for p, a, b in person.pairs[:shots].tolist()]

    def table(self) -> Path:
        """Return the table of the training users' votes."""
        path = self.root / "table"
        if not path.exists():
            import_dataset(str(self.votes_file("votes", self.people[:TRAIN])), path)
        return path

    def votes_file(self, name: str, people: Sequence[Person]) -> Path:
        """Return the parquet file `name` with the votes of `people`, in Pick-a-Pic's columns."""
        file = self.root / f"{name}.parquet"
        if not file.exists():
            encoded = [encode_image(self.picture(i)) for i in range(len(self.pictures))]
            rows = [
                _row(self.prompts[p], encoded[a], encoded[b], who, n) for who in people for n, (p, a, b) in enumerate(who.pairs.tolist())
            ]
            temporary = file.with_suffix(".tmp")
            pq.write_table(pa.Table.from_pylist(rows), temporary)
            temporary.replace(file)
        return file

    def vectors(self) -> Path:
        """Return the file of the training users' taste vectors, which the oracle knows."""
        path = self.root / "vectors.json"
        path.write_text(json.dumps({person.name: vector(person.user).tolist() for person in self.people[:TRAIN]}))
        return path

    def profiles(self) -> Path:
        """Return the file of texts about the training users, written from four of their votes."""
        path = self.root / "profiles.json"
        path.write_text(json.dumps({person.name: self.profile(person, 4) for person in self.people[:TRAIN]}))
        return path

    def profile(self, person: Person, shots: int) -> str:
        """Return what a careful reader would say of a user: words for what is in preferred pictures rather than in the others."""
        counts: dict[str, int] = {}
        for _, won, lost in person.pairs[:shots].tolist():
            shown, other = (set(read(self.picture(i)).attributes.values()) for i in (won, lost))
            for word in shown - other:
                counts[word] = counts.get(word, 0) + 1
            for word in other - shown:
                counts[word] = counts.get(word, 0) - 1
        liked = sorted((word for word, count in counts.items() if count > 0), key=lambda word: -counts[word])
        return " ".join(liked)


def vector(user: User) -> np.ndarray:
    """Return a user's weights (4,) in the order of the tastes."""
    return np.array([user.weights[name] for name in OPEN])


def taste_scores(images: Sequence[Image.Image]) -> np.ndarray:
    """Return (images, 4) scores under every taste."""
    return np.array([[taste_score(name, reading) for name in OPEN] for reading in map(read, images)])


def _row(prompt: str, won: bytes, lost: bytes, person: Person, number: int) -> dict[str, Any]:
    """Return a vote in Pick-a-Pic's columns; every other one has the preferred picture second."""
    first = number % 2 == 0
    return {
        "caption": prompt,
        "jpg_0": won if first else lost,
        "jpg_1": lost if first else won,
        "label_0": float(first),
        "label_1": float(not first),
        "image_0_uid": "0",
        "image_1_uid": "1",
        "best_image_uid": "0" if first else "1",
        "are_different": True,
        "has_label": True,
        "user_id": person.name,
        "ranking_id": f"{person.name}-{number}",
    }


def main() -> None:
    """Write the votes of both kinds of users."""
    parser = argparse.ArgumentParser(description="Draw pictures and let simulated users vote on them: votes.parquet and unseen.parquet.")
    parser.add_argument("--root", type=Path, required=True, help="folder to write to")
    world = World(parser.parse_args().root)
    torch.set_flush_denormal(True)
    for name, people in (("votes", world.people[:TRAIN]), ("unseen", world.unseen)):
        print(f"{len(people)} users, {sum(len(who.pairs) for who in people)} votes: {world.votes_file(name, people)}")


if __name__ == "__main__":
    main()
