"""Scenes: five named attributes of one shape on a background, drawn as antialiased 64x64 RGB images with random jitter."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # pixels
SUPERSAMPLE = 4

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 25),
    "yellow": (248, 220, 45),
    "green": (45, 160, 65),
    "cyan": (50, 200, 215),
    "blue": (40, 75, 210),
    "purple": (130, 50, 170),
    "pink": (248, 120, 185),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "gray": (145, 145, 145),
    "black": (18, 18, 18),
    "beige": (222, 200, 165),
}
SIZES: dict[str, tuple[float, float]] = {"small": (8.0, 10.0), "large": (15.0, 17.0)}  # half-extent, pixels
POSITIONS: dict[str, tuple[float, float]] = {  # offset of the centre from the middle of the image, pixels
    "center": (0.0, 0.0),
    "left": (-12.0, 0.0),
    "right": (12.0, 0.0),
    "top": (0.0, -12.0),
    "bottom": (0.0, 12.0),
}


def _regular(angles: np.ndarray, radii: np.ndarray | float = 1.0) -> np.ndarray:
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _outlines() -> dict[str, np.ndarray]:
    turn = np.linspace(0.0, 2 * np.pi, 65)[:-1]
    corners = np.arange(4) * np.pi / 2
    star = np.arange(10) * np.pi / 5
    heart = np.stack(
        [
            16 * np.sin(turn) ** 3,
            -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)),
        ],
        axis=1,
    )
    arm = 0.36
    cross = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    cross += [(-x, -y) for x, y in cross]
    return {
        "circle": _regular(turn),
        "square": _regular(corners + np.pi / 4),
        "triangle": _regular(np.arange(3) * 2 * np.pi / 3),
        "star": _regular(star, np.where(np.arange(10) % 2 == 0, 1.0, 0.42)),
        "heart": heart,
        "diamond": _regular(corners, np.array([1.0, 0.68, 1.0, 0.68])),
        "cross": np.array(cross),
        "ring": _regular(turn),
    }


OUTLINES = _outlines()
SHAPES = tuple(OUTLINES)
RING_HOLE = 0.55  # inner radius of a ring, as a share of the outer one

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "color": tuple(COLORS),
    "shape": SHAPES,
    "position": tuple(POSITIONS),
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """The five attributes of one image; each field holds one of the values in `ATTRIBUTES`."""

    shape: str
    color: str
    size: str
    position: str
    background: str

    def attributes(self) -> dict[str, str]:
        """Return the attributes by name, in caption order."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def all_scenes() -> list[Scene]:
    """Return every combination of attributes (2560), in a fixed order."""
    names = list(ATTRIBUTES)
    return [Scene(**dict(zip(names, values, strict=True))) for values in itertools.product(*ATTRIBUTES.values())]


def withheld_scenes(share: float = 0.125) -> frozenset[Scene]:
    """Return the combinations that no embedded model is trained on: a fixed pseudo-random `share` of all."""
    scenes = all_scenes()
    order = np.random.default_rng(64).permutation(len(scenes))
    return frozenset(scenes[i] for i in order[: round(share * len(scenes))])


def outline(shape: str, angle: float = 0.0) -> np.ndarray:
    """Return the polygon (P, 2) of `shape` turned by `angle` radians, its bounding box centred, largest half-extent 1."""
    cos, sin = np.cos(angle), np.sin(angle)
    points = OUTLINES[shape] @ np.array([[cos, sin], [-sin, cos]])
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / ((high - low).max() / 2)


def draw(
    shape: str, fill: tuple, ground: tuple, center: tuple[float, float], radius: float, angle: float, mode: str = "RGB"
) -> Image.Image:
    """Return an image of one antialiased shape; `center` and `radius` (largest half-extent) are in pixels of the 64x64 image."""
    scale = SUPERSAMPLE
    image = Image.new(mode, (SIZE * scale, SIZE * scale), ground if mode == "RGB" else ground[0])
    pen = ImageDraw.Draw(image)
    points = outline(shape, angle) * radius
    ink, paper = (fill, ground) if mode == "RGB" else (fill[0], ground[0])
    pen.polygon([tuple(p) for p in (points + center) * scale], fill=ink)
    if shape == "ring":
        pen.polygon([tuple(p) for p in (points * RING_HOLE + center) * scale], fill=paper)
    return image.reduce(scale)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Return a 64x64 drawing of `scene`; place, size, angle and colours are random within the range of the attribute's value."""
    offset = np.array(POSITIONS[scene.position]) + rng.uniform(-1.5, 1.5, size=2)
    fill, ground = (
        tuple(int(v) for v in np.clip(np.array(base) + rng.normal(0.0, spread, size=3), 0, 255))
        for base, spread in ((COLORS[scene.color], 6.0), (BACKGROUNDS[scene.background], 4.0))
    )
    center = (float(SIZE / 2 + offset[0]), float(SIZE / 2 + offset[1]))
    return draw(scene.shape, fill, ground, center, rng.uniform(*SIZES[scene.size]), rng.uniform(-0.08, 0.08))


def random_scene(rng: np.random.Generator, **fixed: str) -> Scene:
    """Return a scene whose attributes are uniformly random, except those in `fixed`."""
    return Scene(**{name: fixed.get(name) or str(rng.choice(values)) for name, values in ATTRIBUTES.items()})
