"""What PAL is worth: one reward for everybody against a reward for each user, on the town of personal_world.py; and users who are new.

python -m scripts.bench_reward --root outputs/reward              draws the town's pictures first, where --root lacks them

Both are trained on the same votes and judged on the votes of the same users on prompts held out. A new user's few numbers are fitted to
their first pairs. Chance is 0.5; users err, so that nobody reaches 1.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.core.types import Labels
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.config_file import from_mapping, load_yaml
from diffalign.methods.recipe import recipe_of
from diffalign.rewards.heads.embeds import PixelEmbeds
from diffalign.rewards.heads.networks import NOBODY, PalHead, RewardHead
from diffalign.rewards.heads.new_user import fit_user
from diffalign.rewards.heads.pairs import RewardBatch, RewardPairs, StoredEmbeds, split
from diffalign.rewards.heads.store import FILE, load_head
from diffalign.train.align import train
from scripts.personal_world import IMAGES, TRAIN, Person, World, vector

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tiny"
SHOTS = (4, 8, 16)
VOTES = 200  # of a new user, those on held-out prompts being judged


def config_of(method: str, world: World, folder: Path, seed: int, head: dict[str, Any] | None) -> TrainConfig:
    """Return the recipe of a method with the votes and a seed."""
    given = load_yaml(CONFIGS / f"{method}.yaml") | {"dataset_name": str(world.table()), "seed": seed}
    given |= {"output_dir": str(folder), "max_train_steps": 1000, "log_every": 50, "overwrite_output_dir": True}
    return from_mapping(given | ({"reward_head": head} if head else {}), "bench_reward")


def right(head: RewardHead, pairs: RewardBatch) -> np.ndarray:
    """Return (P,) whether the preferred image, the first, has the higher reward."""
    with torch.no_grad():
        rewards = head(pairs.images, pairs.prompts, pairs.users)
    return (rewards[:, 0] > rewards[:, 1]).double().numpy()


def interval(gain: np.ndarray, group: np.ndarray) -> str:
    """Return the mean with its 95 % bootstrap interval over groups."""
    _, place = np.unique(group, return_inverse=True)
    total, count = np.bincount(place, gain), np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(total), size=(2000, len(total)))
    low, high = np.quantile(total[drawn].sum(axis=1) / count[drawn].sum(axis=1), (0.025, 0.975))
    return f"{gain.mean():.3f} ({low:.3f} to {high:.3f})"


class Judge:
    """New users' pairs as embeddings, once for all seeds."""

    def __init__(self, world: World) -> None:
        self.world, embeds = world, PixelEmbeds()
        self.images = embeds.images([world.picture(i) for i in range(len(world.pictures))])
        self.prompts = embeds.prompts(world.prompts)

    def batch(self, votes: np.ndarray) -> RewardBatch:
        """Return votes (P, 3) as a batch of nobody's."""
        users, prob = torch.full((len(votes),), NOBODY), torch.ones(len(votes))
        prompt, pair = torch.from_numpy(votes[:, 0]), torch.from_numpy(votes[:, 1:])
        return RewardBatch(self.images[pair], self.prompts[prompt], users, prob, (), Labels())

    def new(self, person: Person, out: set[str]) -> np.ndarray:
        """Return more votes of a user, on held-out prompts."""
        votes = self.world.votes(person.user, VOTES, np.random.default_rng([7, int(person.name.removeprefix("user-"))]))
        return votes[[self.world.prompts[p] in out for p in votes[:, 0]]]


def as_user(head: PalHead, logits: Tensor, pairs: RewardBatch) -> np.ndarray:
    """Return what `right` does, for the user of the logits (P,)."""
    with torch.no_grad():
        rewards = head.by_logits(*head.standard(pairs.images, pairs.prompts), logits.expand(len(pairs.images), -1))
    return (rewards[:, 0] > rewards[:, 1]).double().numpy()


def compare(world: World, judge: Judge, root: Path, seed: int, head: dict[str, Any] | None) -> None:
    """Train both with a seed, and print what they are worth."""
    heads: dict[str, RewardHead] = {}
    config = config_of("reward_bt", world, root / f"bt-{seed}", seed, None)
    for name, own in (("reward_bt", config), ("reward_pal", config_of("reward_pal", world, root / f"pal-{seed}", seed, head))):
        folder = train(own)
        heads[name] = load_head(folder / FILE)[0]
        facts = json.loads((folder / "run.json").read_text())["held_out"]
        print(f"seed {seed} {name}: " + ", ".join(f"{k} {facts[k]:.3f}" for k in ("accuracy", "log_loss", "brier", "calibration_error")))
    view = open_dataset(replace(config, output_dir=str(root)), recipe_of(config, "reward"))
    _, out = split(view.entries, config.held_out_share, seed)
    pal: Any = heads["reward_pal"]
    index = {name: place for place, name in enumerate(pal.sizes.users)}
    held = RewardPairs(view, out, StoredEmbeds(view, PixelEmbeds(), world.table() / "cache"), index).whole()
    gain = right(pal, held) - right(heads["reward_bt"], held)
    by_prompt = np.array([entry.prompt for entry in out])
    print(f"seed {seed} known users, {len(out)} held-out pairs: PAL over Bradley-Terry {interval(gain, by_prompt)} by prompt")
    prompts = {entry.prompt for entry in out}
    people = world.unseen
    votes = [judge.new(person, prompts) for person in people]
    who = np.repeat(np.arange(len(people)), [len(v) for v in votes])
    everybody = np.concatenate([right(heads["reward_bt"], judge.batch(v)) for v in votes])
    truth = np.concatenate([_truth(world, person, v) for person, v in zip(people, votes, strict=True)])
    print(f"seed {seed} new users: Bradley-Terry {interval(everybody, who)}, their true taste {interval(truth, who)}")
    for shots in SHOTS:
        own = []
        for person, v in zip(people, votes, strict=True):
            own.append(as_user(pal, fit_user(pal, judge.batch(person.pairs[:shots])), judge.batch(v)))
        fitted = np.concatenate(own)
        print(f"seed {seed} new users, {shots} pairs: PAL {interval(fitted, who)}, gain {interval(fitted - everybody, who)} by user")


def _truth(world: World, person: Person, votes: np.ndarray) -> np.ndarray:
    liked = world.scores @ vector(person.user)
    return (liked[votes[:, 1]] > liked[votes[:, 2]]).astype(float)


def main() -> None:
    """Run all seeds."""
    parser = argparse.ArgumentParser(description="Compare a reward for everybody with PAL on simulated users.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the world and the runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--head", type=json.loads, help="another head of PAL, as JSON")
    given = parser.parse_args()
    world = World(given.root)
    judge = Judge(world)
    print(f"{TRAIN} users, {len(world.prompts)} prompts of {IMAGES} pictures, {len(world.unseen)} new users")
    for seed in given.seeds:
        compare(world, judge, given.root, seed, given.head)


if __name__ == "__main__":
    main()
