# python -m scripts.condition_preferences --output_dir outputs/condition_preferences --seeds '[0, 1]'
"""A ControlNet on the embedded model that reads a layout, the outline of a shape: supervised, then by preferences of two kinds.

The base is `assets/tiny-sd`; prompts name neither place nor size, so only the layout says them. After `supervised_steps` of training
on pictures five runs go on from the same ControlNet for equally many steps: `more` of the same; `pictures`, Diffusion-DPO on pairs that
the supervised ControlNet drew to one layout, of which the one nearer to it is preferred; `conditions`, Diffusion-DPO on layouts, a
picture's own against one of another place or another size; both also `anchored`, with a share of the denoising error (`rpo`). The judge
reads pictures to held-out layouts, drawn with the same noise by all: errors of place and size in pixels of 64, and the share with colour,
shape and background as in the prompt. Intervals (95 %) are bootstrapped by layout over all seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image, ImageDraw

from diffalign.core.intervals import bootstrapped
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import is_table, write_table
from diffalign.data.world.captions import caption
from diffalign.data.world.judge import Reading, read
from diffalign.data.world.scenes import BACKGROUNDS, COLORS, SIZE, SUPERSAMPLE, Scene, draw, outline, random_scene
from diffalign.infer.load import load
from diffalign.infer.sample import draw as draw_pictures
from diffalign.methods.config_file import from_mapping
from diffalign.train.align import train

MODEL = "assets/tiny-sd"
REACH, SMALLEST, LARGEST = 14.0, 8.0, 17.0  # pixels: of a centre from the middle across and down, and of half-extents
LINE = 2  # pixels, of an outline
LOST = 32.0  # pixels of error where a picture shows no shape: half its side


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a shape stands, and how large it is, in pixels of 64."""

    shape: str
    center: tuple[float, float]
    radius: float

    @classmethod
    def random(cls, shape: str, rng: np.random.Generator) -> Layout:
        """Return a layout drawn uniformly."""
        x, y = (float(SIZE / 2 + offset) for offset in rng.uniform(-REACH, REACH, size=2))
        return cls(shape, (x, y), float(rng.uniform(SMALLEST, LARGEST)))

    def image(self) -> bytes:
        """Return the outline, white on black."""
        canvas = Image.new("L", (SIZE * SUPERSAMPLE, SIZE * SUPERSAMPLE))
        points = [tuple(point) for point in (outline(self.shape) * self.radius + self.center) * SUPERSAMPLE]
        ImageDraw.Draw(canvas).line([*points, points[0]], fill=255, width=LINE * SUPERSAMPLE)
        return encode_image(canvas.reduce(SUPERSAMPLE).convert("RGB"))

    def error(self, reading: Reading) -> tuple[float, float]:
        """Return the distance of a picture's shape from the layout's place, and the difference of half-extents, in pixels."""
        if np.isnan(reading.radius):
            return LOST, LOST
        middle = np.array(self.center) - SIZE / 2
        return float(np.hypot(*(np.array(reading.center) - middle))), abs(reading.radius - self.radius)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A ControlNet that reads layouts: supervised, by pairs of pictures, and by pairs of conditions."""

    output_dir: Path = Path("outputs/condition_preferences")
    pictures: int = 512
    """Pictures of the supervised training and of the pairs of conditions."""
    pairs: int = 64
    """Layouts that the supervised ControlNet draws three pictures to, for the pairs of pictures."""
    layouts: int = 40
    """Held-out layouts, two pictures each."""
    num_inference_steps: int = 12
    supervised_steps: int = 300
    steps: int = 100
    beta: float = 500.0
    anchor: float = 0.1
    """The constant `eta` of `rpo`."""
    supervised_rate: float = 1e-3
    rate: float = 3e-4
    """Of preferences; `more` keeps the supervised one, which did better for it on seed 1000."""
    batch: int = 8
    seeds: tuple[int, ...] = (0, 1)


def main(plan: Plan) -> None:
    """Run what was not run before, and print and write the table of errors."""
    torch.set_flush_denormal(True)
    results = [_of_seed(plan, seed, plan.output_dir / f"seed-{seed}") for seed in plan.seeds]
    errors = {name: np.concatenate([np.array(one[name]) for one in results]) for name in results[0]}
    print("| training | place, px | size, px | as the prompt | place, size against `more` | place, size against `pictures` |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, own in errors.items():
        place, size, right = own.mean(axis=0)
        intervals = " | ".join(_differences(own, errors[other]) for other in ("more", "pictures"))
        print(f"| {name} | {place:.2f} | {size:.2f} | {right:.3f} | {intervals} |")


def _differences(own: np.ndarray, other: np.ndarray) -> str:
    """Return the intervals of how much larger the errors of place and size are than another run's."""
    both = (bootstrapped(own[:, column] - other[:, column], seed=0) for column in (0, 1))
    return ", ".join(f"{low:+.2f} to {high:+.2f}" for low, high in both)


def _of_seed(plan: Plan, seed: int, root: Path) -> dict[str, list[list[float]]]:
    """Return by run the errors of place and size to each held-out layout, and the share of pictures as the prompt says."""
    if (file := root / "results.json").is_file():
        return json.loads(file.read_text())
    root.mkdir(parents=True, exist_ok=True)
    tables = {name: root / f"{name}-data" for name in ("supervised", "conditions", "pictures")}
    if not is_table(tables["conditions"]):
        write_table(tables["supervised"], _drawings(plan, seed, rejected=False))
        write_table(tables["conditions"], _drawings(plan, seed, rejected=True))
    shared = {"train_batch_size": plan.batch, "seed": seed}
    alone = {**shared, "objective": "denoise", "reference": "none", "transforms": ["preferred"]}
    first = {**alone, "learning_rate": plan.supervised_rate, "max_train_steps": plan.supervised_steps}
    start = _trained(root / "supervised", tables["supervised"], first)
    if not is_table(tables["pictures"]):
        write_table(tables["pictures"], _ranked(plan, seed, start))
    onward = {"controlnet_model_name_or_path": str(start / "controlnet"), "max_train_steps": plan.steps}
    pairs, rpo = {**shared, **onward, "learning_rate": plan.rate, "beta": plan.beta}, {"rpo": {"eta": plan.anchor}}
    runs = {
        "supervised": start,
        "more": _trained(root / "more", tables["supervised"], {**first, **onward}),
        "pictures": _trained(root / "pictures", tables["pictures"], pairs),
        "conditions": _trained(root / "conditions", tables["conditions"], pairs),
        "pictures, anchored": _trained(root / "pictures-anchored", tables["pictures"], {**pairs, "objective": rpo}),
        "conditions, anchored": _trained(root / "conditions-anchored", tables["conditions"], {**pairs, "objective": rpo}),
    }
    results = {name: _judged(plan, seed, run) for name, run in runs.items()}
    file.write_text(json.dumps(results) + "\n")
    return results


def _scene(rng: np.random.Generator) -> tuple[Scene, str]:
    """Return a scene, and its caption without place and size."""
    scene = random_scene(rng)
    return scene, caption({name: getattr(scene, name) for name in ("color", "shape", "background")})


def _drawings(plan: Plan, seed: int, *, rejected: bool) -> Iterator[Record]:
    """Yield pictures with their own layouts, and with `rejected` as pairs of that and a layout of another size, or of another place."""
    rng = np.random.default_rng([seed, 0])
    for number in range(plan.pictures):
        scene, prompt = _scene(rng)
        layout, random = (Layout.random(scene.shape, rng) for _ in range(2))
        other = replace(layout, center=random.center) if number % 2 else replace(layout, radius=random.radius)
        picture = encode_image(draw(scene.shape, COLORS[scene.color], BACKGROUNDS[scene.background], layout.center, layout.radius, 0.0))
        shown = (layout, other) if rejected else (layout,)
        candidates = tuple(Candidate(image=picture, conditioning_image=one.image()) for one in shown)
        yield Record(str(number), prompt, candidates, prob=1.0, source=f"layout {number}")


def _ranked(plan: Plan, seed: int, run: Path) -> Iterator[Record]:
    """Yield the picture nearest to a layout and the farthest one, of three that a ControlNet draws to each layout."""
    rng = np.random.default_rng([seed, 1])
    tasks = [(Layout.random(scene.shape, rng), prompt) for scene, prompt in (_scene(rng) for _ in range(plan.pairs))]
    images = _draw(plan, run, [task for task in tasks for _ in range(3)], 1000 * (seed + 1))
    for number, (layout, prompt) in enumerate(tasks):
        own = sorted(images[3 * number : 3 * number + 3], key=lambda image, layout=layout: sum(layout.error(read(image))))
        both = tuple(Candidate(image=encode_image(image)) for image in (own[0], own[-1]))
        yield Record(str(number), prompt, both, prob=1.0, source=f"layout {number}", conditioning_image=layout.image())


def _draw(plan: Plan, run: Path, tasks: Sequence[tuple[Layout, str]], seed: int) -> list[Image.Image]:
    """Return a picture for each layout and prompt, with seeds from `seed` on."""
    conditions = [decode_image(layout.image(), "layout") for layout, _ in tasks]
    prompts = [prompt for _, prompt in tasks]
    seeds, steps = range(seed, seed + len(tasks)), plan.num_inference_steps
    return draw_pictures(load(run), prompts, seeds, num_inference_steps=steps, conditioning_images=conditions)


def _trained(folder: Path, table: Path, values: dict[str, Any]) -> Path:
    """Return the finished run in `folder`, trained now if it is not there."""
    if (folder / "run.json").is_file():
        return folder
    shared = {"pretrained_model_name_or_path": MODEL, "train_method": "controlnet", "dataset_name": str(table), "output_dir": str(folder)}
    return train(from_mapping({**shared, "checkpointing_steps": 10**6, "resume_from_checkpoint": "latest", **values}, "here"))


def _judged(plan: Plan, seed: int, run: Path) -> list[list[float]]:
    """Return of each held-out layout the errors of place and size and the share as the prompt says, means over two pictures."""
    rng = np.random.default_rng([seed, 2])
    scenes = [_scene(rng) for _ in range(plan.layouts)]
    tasks = [(Layout.random(scene.shape, rng), prompt) for scene, prompt in scenes]
    images = _draw(plan, run, [task for task in tasks for _ in range(2)], 0)
    rows = []
    for number, image in enumerate(images):
        scene, reading = scenes[number // 2][0], read(image)
        right = all(reading.attributes.get(name) == getattr(scene, name) for name in ("color", "shape", "background"))
        rows.append([*tasks[number // 2][0].error(reading), float(right)])
    return np.array(rows).reshape(plan.layouts, 2, 3).mean(axis=1).tolist()


if __name__ == "__main__":
    main(auto_cli(Plan, as_positional=False))
