# python -m scripts.overoptimise
"""A run made to over-optimise: the alarm fires, training stops early, and the weights in best/ are better than the last ones.

Its voter likes bright pictures, which a white sheet satisfies best; with almost no beta and a high rate nothing holds the model back.
Adherence, which training does not see, is the held-out judge. Afterwards both results draw prompts that the watch has not seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from diffalign.core.runs import Run
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.world.captions import random_caption
from diffalign.data.world.scenes import random_scene, render
from diffalign.infer.kinds.image import base_of
from diffalign.infer.load import load
from diffalign.infer.sample import draw
from diffalign.rewards.hacking import change
from diffalign.rewards.table import load_scorer
from diffalign.train.align import align
from diffalign.train.overoptimisation import BEST, EVALUATIONS

SETTINGS = {"beta": 1.0, "learning_rate": 5e-3, "train_batch_size": 8, "max_train_steps": 150, "eval_every": 15}


def bright(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """Return the mean luma of each picture in [0, 1]: 1 for a white sheet."""
    del prompts
    return [float(np.asarray(image.convert("L")).mean()) / 255 for image in images]


def votes(count: int, seed: int) -> Iterator[Record]:
    """Yield pairs of drawings whose prompts leave the background open; the brighter one is preferred."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        scene = random_scene(rng)
        prompt = random_caption(scene, rng, without=("background",))
        shape = {name: value for name, value in scene.attributes().items() if name != "background"}
        drawn = sorted((render(random_scene(rng, **shape), rng) for _ in range(2)), key=lambda image: -bright([image], [""])[0])
        yield Record(f"{number}", prompt, tuple(Candidate(image=encode_image(image)) for image in drawn), prob=1.0)


def captions(count: int, seed: int) -> list[str]:
    """Return different captions."""
    rng, found = np.random.default_rng(seed), dict[str, None]()
    while len(found) < count:
        found[random_caption(random_scene(rng), rng)] = None
    return list(found)


def main(output_dir: Path = Path("outputs/overoptimise"), seed: int = 0, prompts: int = 24, fresh_prompts: int = 48) -> None:
    """Train, and say what the watch saw and what the two results draw."""
    known = captions(prompts + fresh_prompts, seed)
    folder = align(
        "assets/tiny-sd",
        votes(200, seed),
        output_dir=output_dir,
        eval_prompts=known[:prompts],
        eval_reward={"function": {"path": "scripts.overoptimise:bright"}},
        seed=seed,
        **SETTINGS,
    )
    for row in map(json.loads, (folder / EVALUATIONS).read_text().splitlines()):
        fired = f"ALARM: {'; '.join(row['alarm'])}" if row["alarm"] else "silent"
        print(f"step {row['step']}: bright {row['bright']:.3f}, adherence {row['adherence']:.3f}, {fired}")
    facts = json.loads((folder / "run.json").read_text())
    print(f"{facts['steps']} of {SETTINGS['max_train_steps']} steps; stopped: {facts['stopped']}; best: {facts['best']}")
    fresh, adherence = known[prompts:], load_scorer("adherence")
    pipes = {"base": base_of(Run.open(folder)), "best": load(folder / BEST), "end": load(folder)}
    scores = {name: adherence(draw(pipe, fresh, range(len(fresh)), label=name), fresh) for name, pipe in pipes.items()}
    for name, values in scores.items():
        print(f"adherence to {len(fresh)} other prompts, {name}: {values.mean():.3f}")
    better = change(scores["end"].tolist(), scores["best"].tolist(), fresh, "adherence", seed)
    print(f"best over end: {better.value:+.3f} [{better.low:.3f}, {better.high:.3f}], {better.wins:.0%} of draws won")


if __name__ == "__main__":
    auto_cli(main)
