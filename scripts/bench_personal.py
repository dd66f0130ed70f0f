"""Does a model draw what an unseen user likes, from a few of their choices? Trains and judges on the users of personal_world.py.

python -m scripts.bench_personal --root outputs/personal                     the whole comparison: hours on two cores; goes on where it was
python -m scripts.bench_personal --root outputs/personal --seeds 0 --runs pairs population
python -m scripts.bench_personal --root outputs/personal --report            tables and pictures of what is there

Every number is judged by each user's own taste, on prompts and noise that training did not see, against pictures of the same noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffalign.core.errors import ConfigError
from diffalign.core.runs import RUN
from diffalign.data.world.judge import mean_adherence
from diffalign.data.world.tastes import User
from diffalign.infer.load import load
from diffalign.infer.sample import draw, grid
from diffalign.methods.config_file import from_mapping
from diffalign.models.backbones.table import load_pipeline
from diffalign.train import align as api
from scripts.personal_report import SHOTS, report
from scripts.personal_world import MODEL, SCALE, STEPS, UNSEEN, Person, World, taste_scores, vector

EACH = 8  # pictures for each user
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
COMMON: dict[str, Any] = {
    "train_batch_size": 32,
    "max_train_steps": 300,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 50,
    "beta": 700.0,
    "trajectory": {"ddim_inversion": {"steps": 5, "eta": 0.1, "end": "exact", "driver": "reference"}},
    "trajectory_cache": 1,
    "checkpointing_steps": 10**6,
}


def runs(world: World) -> dict[str, dict[str, Any]]:
    """Return what is trained, by name."""
    return {
        "pairs": {"method": "ppd"},
        "population": {"method": "diffusion_dpo", "rank": 8},
        "vector": {"method": "ppd", "user_encoder": {"vector": {"vectors": str(world.vectors())}}},
        "pairs_narrow": {"method": "ppd", "user_encoder": {"pairs": {"width": 64}}},  # which comes with the embedded model
        "pairs_vpl": {"method": "ppd", "user_encoder": {"pairs": {"variational": True}}},
        "mixture": {"method": "ppd", "user_encoder": {"mixture": {"prototypes": 8}}},
        "one_hot": {"method": "ppd", "user_encoder": "one_hot"},
        "profile": {"method": "ppd", "user_encoder": {"profile": {"profiles": str(world.profiles())}}},
    }


class Bench:
    """Trainings of one seed, and the pictures they are judged by; results are kept, and not made twice."""

    def __init__(self, world: World, seed: int, shots: Sequence[int] = SHOTS) -> None:
        self.world, self.seed, self.shots, self.root = world, seed, shots, world.root / f"seed-{seed}"
        self.root.mkdir(parents=True, exist_ok=True)

    def train(self, name: str) -> Path:
        """Return the folder of a finished training."""
        folder = self.root / name
        if not (folder / RUN).exists():
            own = {"pretrained_model_name_or_path": MODEL, "dataset_name": str(self.world.table()), "seed": self.seed}
            values = {**COMMON, **runs(self.world)[name], **own, "output_dir": str(folder), "overwrite_output_dir": True}
            for stale in self.root.glob(f"{name}*.npy"):
                stale.unlink()  # pictures of an earlier training
            api.train(from_mapping(values, "bench_personal"))
        return folder

    def scores(self, name: str, people: Sequence[Person], make: Callable[[Person], Any]) -> np.ndarray:
        """Return (people, EACH, 4) scores of what `make`'s pipeline draws for everybody; kept under `name`."""
        file = self.root / f"{name}.npy"
        if not file.exists():
            found, followed = [], []
            for place, person in enumerate(people):
                prompts = self.prompts(place)
                images = self.draw(make(person), prompts, place * EACH)
                found.append(taste_scores(images))
                followed.append(mean_adherence(prompts, images))
                if place % 10 == 9:
                    print(f"seed {self.seed} {name}: {place + 1} of {len(people)} users", flush=True)
            temporary = file.with_suffix(".tmp.npy")
            np.save(temporary, np.stack(found))
            temporary.replace(file)
            file.with_suffix(".json").write_text(json.dumps({"adherence": float(np.mean(followed))}))
        return np.load(file)

    def draw(self, pipe: Any, prompts: Sequence[str], first: int) -> list[Any]:
        """Return one picture a prompt, from noises that count up."""
        start = 1_000_000 * (self.seed + 1) + first
        return draw(pipe, prompts, range(start, start + len(prompts)), num_inference_steps=STEPS, guidance_scale=SCALE)

    def prompts(self, place: int) -> list[str]:
        """Return the held-out prompts of the user at a place."""
        chosen = np.random.default_rng([2, place]).choice(len(self.world.heldout), EACH, replace=False)
        return [self.world.heldout[i] for i in chosen]

    def base(self) -> np.ndarray:
        """Return the base model's scores."""
        pipe = load_pipeline(MODEL)
        return self.scores("base", self.world.unseen, lambda _: pipe)

    def judge(self, name: str) -> None:
        """Draw what a run is judged by."""
        folder, world = self.train(name), self.world
        pipe = load(folder)
        if name == "population":
            self.scores(name, world.unseen, lambda _: pipe)
        elif name == "one_hot":
            self.scores("one_hot-seen", world.people[:UNSEEN], lambda person: pipe.for_user(person.name))
            with contextlib.suppress(ConfigError):
                pipe.for_user(world.choices(world.unseen[0], 4))
                raise AssertionError("one_hot served a user whom it was not trained on")
        elif name == "vector":
            self.scores(name, world.unseen, lambda person: pipe.for_user(torch.from_numpy(vector(person.user)).float()))
        elif name == "profile":
            self.scores(name, world.unseen, lambda person: pipe.for_user(profile=world.profile(person, 4)))
        else:
            self._shots(name, pipe)

    def _shots(self, name: str, pipe: Any) -> None:
        world = self.world
        for shots in self.shots if name == "pairs" else (4,):
            self.scores(f"{name}-{shots}", world.unseen, lambda person, shots=shots: pipe.for_user(world.choices(person, shots)))
        if name == "pairs" and len(self.shots) > 1:
            others = dict(zip([person.name for person in world.unseen], [*world.unseen[1:], world.unseen[0]], strict=True))
            self.scores("pairs-other", world.unseen, lambda person: pipe.for_user(world.choices(others[person.name], 4)))
            self.opposites(pipe)

    def opposites(self, pipe: Any) -> None:
        """Draw for a user, for one of the opposite taste, and on the way: the same prompts and noises."""
        file = self.root / "opposites.json"
        if file.exists():
            return
        user = User({"warm": 0.4, "large": 0.3, "bright_background": 0.3, "high": 0.0})
        person = Person("", user, self.world.votes(user, 4, np.random.default_rng(5)))
        there = pipe.for_user(self.world.choices(person, 4))
        back = Person("", user, person.pairs[:, [0, 2, 1]])
        here = pipe.for_user(self.world.choices(back, 4))
        rows = {"nobody": pipe.for_user(None), **{f"{weight:g}": here.mixed(there, weight) for weight in WEIGHTS}}
        drawn = {label: self.draw(own, self.world.heldout, 500_000) for label, own in rows.items()}
        grid([image for images in drawn.values() for image in images[:12]], 12).save(self.root / "opposites.png")
        means = {label: float((taste_scores(images) @ vector(user)).mean()) for label, images in drawn.items()}
        file.write_text(json.dumps(means))


def main() -> None:
    """Train, draw and judge what is asked for, and print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder for users, trainings and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", default=None, help="which trainings; all if not given")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS, help="pairs of an unseen user; one number leaves out what is beside")
    parser.add_argument("--report", action="store_true", help="make nothing, report what is there")
    chosen = parser.parse_args()
    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    world = World(chosen.root)
    for seed in () if chosen.report else chosen.seeds:
        bench = Bench(world, seed, chosen.shots)
        bench.base()
        for name in chosen.runs or runs(world):
            bench.judge(name)
    print(report(world, chosen.seeds))


if __name__ == "__main__":
    main()
