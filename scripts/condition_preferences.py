# python -m scripts.condition_preferences --output_dir outputs/condition_preferences
"""A ControlNet on the embedded model that reads a layout, the outline of a shape: supervised, then by preferences of two kinds.

The base is `assets/tiny-sd`; prompts name neither place nor size, so only the layout says them. After `supervised_steps` of training
on pictures three runs go on from the same ControlNet for equally many steps: `more` of the same; `pictures`, Diffusion-DPO on pairs that
the supervised ControlNet drew to one layout, of which the one nearer to it is preferred; and `conditions`, Diffusion-DPO on layouts, a
picture's own against one of another place and size. The judge reads place and size from pictures to held-out layouts, drawn with the same
noise by all: mean errors in pixels of 64, and the share of pictures that show a shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image, ImageDraw

from diffalign.core.progress import progress
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import is_table, write_table
from diffalign.data.world.captions import caption
from diffalign.data.world.judge import read
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

    def error(self, picture: Image.Image) -> tuple[float, float]:
        """Return the distance of a picture's shape from the layout's place, and the difference of half-extents, in pixels."""
        reading = read(picture)
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
    pairs: int = 256
    """Layouts that the supervised ControlNet draws four pictures to, for the pairs of pictures."""
    layouts: int = 100
    """Held-out layouts, two pictures each."""
    supervised_steps: int = 600
    steps: int = 150
    beta: float = 500.0
    supervised_rate: float = 1e-3
    rate: float = 1e-4
    batch: int = 16
    seed: int = 0


def main(plan: Plan) -> None:
    """Run what was not run before, and print and write the table of errors."""
    torch.set_flush_denormal(True)
    root = plan.output_dir
    root.mkdir(parents=True, exist_ok=True)
    tables = {name: root / f"{name}-data" for name in ("supervised", "conditions", "pictures")}
    if not is_table(tables["supervised"]):
        write_table(tables["supervised"], _drawings(plan, rejected=False))
        write_table(tables["conditions"], _drawings(plan, rejected=True))
    alone = {"objective": "denoise", "reference": "none", "transforms": ["preferred"], "beta": None}
    first = {**alone, "learning_rate": plan.supervised_rate, "max_train_steps": plan.supervised_steps}
    start = _trained(plan, root / "supervised", tables["supervised"], first)
    if not is_table(tables["pictures"]):
        write_table(tables["pictures"], _ranked(plan, start))
    onward = {"controlnet_model_name_or_path": str(start / "controlnet"), "learning_rate": plan.rate, "max_train_steps": plan.steps}
    runs = {"supervised": start, "more": _trained(plan, root / "more", tables["supervised"], {**alone, **onward})}
    for kind in ("pictures", "conditions"):
        runs[kind] = _trained(plan, root / kind, tables[kind], {**onward, "beta": plan.beta})
    results = {name: _judged(plan, run) for name, run in runs.items()}
    (root / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("| training | place, px | size, px | shape seen |\n| --- | --- | --- | --- |")
    for name, errors in results.items():
        print(f"| {name} | {errors['place']} | {errors['size']} | {errors['seen']} |")


def _scene(rng: np.random.Generator) -> tuple[Scene, str]:
    """Return a scene, and its caption without place and size."""
    scene = random_scene(rng)
    return scene, caption({name: getattr(scene, name) for name in ("color", "shape", "background")})


def _drawings(plan: Plan, *, rejected: bool) -> Iterator[Record]:
    """Yield pictures with their own layouts, and with `rejected` as pairs of that and a layout of another place and size."""
    rng = np.random.default_rng([plan.seed, 0])
    for number in range(plan.pictures):
        scene, prompt = _scene(rng)
        layout, other = (Layout.random(scene.shape, rng) for _ in range(2))
        picture = encode_image(draw(scene.shape, COLORS[scene.color], BACKGROUNDS[scene.background], layout.center, layout.radius, 0.0))
        shown = (layout, other) if rejected else (layout,)
        candidates = tuple(Candidate(image=picture, conditioning_image=one.image()) for one in shown)
        yield Record(str(number), prompt, candidates, prob=1.0, source=f"layout {number}")


def _ranked(plan: Plan, run: Path) -> Iterator[Record]:
    """Yield the picture nearest to a layout and the farthest one, of four that a ControlNet draws to each layout."""
    rng = np.random.default_rng([plan.seed, 1])
    tasks = [(Layout.random(scene.shape, rng), prompt) for scene, prompt in (_scene(rng) for _ in range(plan.pairs))]
    images = _draw(run, [task for task in tasks for _ in range(4)], plan.seed + 1000)
    for number, (layout, prompt) in enumerate(tasks):
        own = sorted(images[4 * number : 4 * number + 4], key=lambda image, layout=layout: sum(layout.error(image)))
        both = tuple(Candidate(image=encode_image(image)) for image in (own[0], own[-1]))
        yield Record(str(number), prompt, both, prob=1.0, source=f"layout {number}", conditioning_image=layout.image())


def _draw(run: Path, tasks: Sequence[tuple[Layout, str]], seed: int) -> list[Image.Image]:
    """Return a picture for each layout and prompt, with seeds from `seed` on."""
    conditions = [decode_image(layout.image(), "layout") for layout, _ in tasks]
    prompts = [prompt for _, prompt in tasks]
    return draw_pictures(load(run), prompts, range(seed, seed + len(tasks)), conditioning_images=conditions)


def _trained(plan: Plan, folder: Path, table: Path, values: dict[str, Any]) -> Path:
    """Return the finished run in `folder`, trained now if it is not there."""
    if (folder / "run.json").is_file():
        return folder
    shared = {"pretrained_model_name_or_path": MODEL, "train_method": "controlnet", "seed": plan.seed, "train_batch_size": plan.batch}
    shared |= {"dataset_name": str(table), "output_dir": str(folder), "checkpointing_steps": 10**6, "resume_from_checkpoint": "latest"}
    return train(from_mapping({**shared, **{name: value for name, value in values.items() if value is not None}}, "here"))


def _judged(plan: Plan, run: Path) -> dict[str, Any]:
    """Return the errors of pictures to held-out layouts, mean and standard error, and the share that shows a shape."""
    rng = np.random.default_rng([plan.seed, 2])
    tasks = [(Layout.random(scene.shape, rng), prompt) for scene, prompt in (_scene(rng) for _ in range(plan.layouts))]
    tasks = [task for task in tasks for _ in range(2)]
    images = progress(_draw(run, tasks, 0), desc=f"judge {run.name}", unit="images")
    errors = np.array([layout.error(image) for (layout, _), image in zip(tasks, images, strict=True)])
    means, spread = errors.mean(axis=0), errors.std(axis=0, ddof=1) / np.sqrt(len(errors))
    place, size = (f"{mean:.2f} +- {error:.2f}" for mean, error in zip(means, spread, strict=True))
    return {"place": place, "size": size, "seen": round(float((errors[:, 0] < LOST).mean()), 3), "pictures": len(errors)}


if __name__ == "__main__":
    main(auto_cli(Plan, as_positional=False))
