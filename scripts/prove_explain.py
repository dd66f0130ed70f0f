"""What `data explain` recovers on the embedded world: python -m scripts.prove_explain --seeds 0 1 2

Simulated users of random tastes, whose weights are known; a liking for bright pictures beside one for large shapes, with nothing but looks
measured; and a fifth of the votes turned around, of which the least likely are looked up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from scipy.special import expit
from scipy.stats import mannwhitneyu

from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.transforms.labels import flip_labels
from diffalign.data.world.judge import Reading, read
from diffalign.data.world.scenes import random_scene, render
from diffalign.data.world.tastes import TASTES, User, random_user, taste_score
from diffalign.evaluate.explain.attributes import attributes, directions
from diffalign.evaluate.explain.regression import chances, design, likelihood
from diffalign.evaluate.explain.report import explain
from diffalign.evaluate.explain.votes import Votes, votes_of_table
from diffalign.rewards.drift import brightness

USERS, VOTES, TEMPERATURE, FLIPPED = 3, 300, 0.1, 0.2
Seen = tuple[Image.Image, Reading]


def pair_records(
    rng: np.random.Generator, count: int, prob: Callable[[Seen, Seen], float], user: str = "ann", *, scored: bool
) -> list[Record]:
    """Return records of random scenes, two votes a prompt, labelled by a draw from `prob`; with `scored` the tastes are scores."""
    records = []
    for number in range(count):
        images = [render(random_scene(rng), rng) for _ in range(2)]
        both = [(image, read(image)) for image in images]
        scores = [{taste: taste_score(taste, reading) for taste in TASTES} if scored else {} for _, reading in both]
        candidates = tuple(Candidate(image=encode_image(image), scores=own) for image, own in zip(images, scores, strict=True))
        label = float(rng.random() < prob(*both))
        records.append(Record(f"{user}-{number}", f"prompt {user} {number // 2}", candidates, label, user, f"world row {number}"))
    return records


def votes_on(records: Sequence[Record]) -> Votes:
    """Return the votes of a table of these records, which stays until the process ends."""
    return votes_of_table(write_table(Path(tempfile.mkdtemp(prefix="diffalign-")) / "table", records))


def recover(seed: int) -> None:
    """Print how the weights of each user's tastes are recovered."""
    rng, records, truth = np.random.default_rng(seed), [], {}
    for number in range(USERS):
        user = random_user(rng, TEMPERATURE)
        truth[f"user{number}"] = user
        records += pair_records(rng, VOTES, lambda a, b, who=user: who.prob(a[1], b[1]), f"user{number}", scored=True)
    votes = votes_on(records)
    facts = explain(votes, {name: values for name, values in attributes(votes).items() if name in TASTES}, resamples=300, seed=seed).facts
    scale = {row["name"]: row["typical_difference"] for row in facts["attributes"]}
    for row in facts["users"]:
        true = np.array([truth[row["name"]].weights[taste] * scale[taste] / TEMPERATURE for taste in TASTES])
        fitted = np.array([row["weights"][taste]["weight"] for taste in TASTES])
        low, high = np.array([row["weights"][taste]["ci95"] for taste in TASTES]).T
        cosine = true @ fitted / np.linalg.norm(true) / np.linalg.norm(fitted)
        inside = int(((low <= true) & (true <= high)).sum())
        print(f"seed {seed} {row['name']}: cosine {cosine:.3f}, {inside} of {len(true)} true weights inside their intervals", flush=True)


def bias(seed: int, votes: int = 400) -> None:
    """Print what is rewarded where both large shapes and bright pictures are, and looks alone are measured."""

    def prob(a: Seen, b: Seen) -> float:
        large = taste_score("large", a[1]) - taste_score("large", b[1])
        return float(expit(large / 0.4 + (brightness(a[0]) - brightness(b[0])) / 0.25))

    made = votes_on(pair_records(np.random.default_rng(100 + seed), votes, prob, scored=False))
    facts = explain(made, attributes(made), resamples=300, seed=seed).facts
    sure = [
        f"{row['name']} {row['weight']:+.2f} ({row['ci95'][0]:+.2f} to {row['ci95'][1]:+.2f})"
        for row in facts["attributes"]
        if row["finding"]
    ]
    print(f"seed {seed}: findings {', '.join(sure)}", flush=True)


def wrong(seed: int, votes: int = 384) -> None:
    """Print how well the least likely votes are those that were turned around, by what is measured."""
    user = User({"high": 1.0})
    records = pair_records(np.random.default_rng(200 + seed), votes, lambda a, b: user.prob(a[1], b[1]), scored=True)
    turned = [flip_labels(record, share=FLIPPED, seed=seed)[0] for record in records]
    made = votes_on([replace(record) for record in turned])
    flipped = np.array([new.prob != old.prob for new, old in zip(turned, records, strict=True)])
    every = attributes(made)
    looks = {name: values for name, values in every.items() if name not in TASTES}
    more = directions(made, "pixels", count=16, sparse_code=None, device="cpu", seed=0)
    tried: dict[str, dict[str, Any]] = {"looks": looks, "looks and 16 directions": {**looks, **more}, "looks and tastes": every}
    for name, differences in tried.items():
        chance = chances(design(made, differences, position=True), made, seed=seed)
        if chance is not None:
            unlikely = -likelihood(chance, made.prob)
            area = mannwhitneyu(unlikely[flipped], unlikely[~flipped]).statistic / (flipped.sum() * (~flipped).sum())
            print(f"seed {seed} {name}: AUROC of {flipped.sum()} turned votes {area:.3f}", flush=True)


def main(seeds: Sequence[int] = (0, 1, 2), parts: Sequence[str] = ("recover", "bias", "wrong")) -> None:
    """Run the proofs.

    Args:
        seeds: of worlds, users and redraws.
        parts: recover, bias, wrong.
    """
    for part in parts:
        for seed in seeds:
            {"recover": recover, "bias": bias, "wrong": wrong}[part](seed)


if __name__ == "__main__":
    auto_cli(main)
