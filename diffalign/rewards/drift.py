"""How pictures look, and how that drifts where a reward is chased: colours, edges, fine patterns, and how alike those of one prompt are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffalign.core.specs import Spec, bind
from diffalign.data.colours import flattened
from diffalign.rewards.hacking import Change, change
from diffalign.rewards.scorers.clip import CLIP_L, vision
from diffalign.rewards.scorers.network import BATCH

Features = Callable[[Sequence[Image.Image]], np.ndarray]
"""Images -> (N, D), whose Euclidean distance says how different two images are."""

AREA = 16  # pixels, over which a grid has to keep in step
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))  # of linear sRGB, IEC 61966-2-1


def saturation(image: Image.Image) -> float:
    """Return the mean chroma in [0, 1]: the largest minus the smallest of R, G and B, over all pixels.

    That is the chroma of HSV (Smith 1978), saturation times value: a dark pixel, whose hue nobody sees, does not count as vivid.
    """
    rgb = _rgb(image)
    return float((rgb.max(axis=-1) - rgb.min(axis=-1)).mean())


def brightness(image: Image.Image) -> float:
    """Return the mean luma in [0, 1]: 0 for black, 1 for white."""
    return float((_rgb(image) @ np.array(LUMA)).mean())


def contrast(image: Image.Image) -> float:
    """Return the standard deviation of luma in [0, 1/2], the root mean square contrast (Peli 1990); 0 for a flat picture."""
    return float((_rgb(image) @ np.array(LUMA)).std())


def warmth(image: Image.Image) -> float:
    """Return the mean of red minus blue in [-1, 1]: above 0 for orange light, below for blue."""
    rgb = _rgb(image)
    return float((rgb[..., 0] - rgb[..., 2]).mean())


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian (0 1 0, 1 -4 1, 0 1 0) of the luma in [0, 1], borders left out; 0 for a flat picture.

    As Pech-Pacheco et al. 2000 measure focus. It depends on the size: compare pictures of one size. NaN for less than 3 by 3 pixels.
    """
    luma = _rgb(image) @ np.array(LUMA)
    if min(luma.shape) < 3:
        return float("nan")
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4.0 * luma[1:-1, 1:-1]).var())


def high_frequency(image: Image.Image) -> float:
    """Return the share in [0, 1] of the luma's variance at more than a quarter of a cycle a pixel, along either axis; 0 if it is flat.

    Half of what an image can hold lies above that; natural pictures have little there. It rises with noise, checkerboards and
    over-sharpening, and falls with blur.
    """
    luma = _rgb(image) @ np.array(LUMA)
    energy = np.abs(np.fft.fft2(luma - luma.mean())) ** 2
    down, across = (np.abs(np.fft.fftfreq(size)) for size in luma.shape)
    total = energy.sum()
    fine = np.maximum(down[:, None], across[None, :]) > 0.25
    return float(energy[fine].sum() / total) if total > 1e-12 * luma.size else 0.0


def pixel_grid(image: Image.Image) -> float:
    """Return how strong a grid of two pixels is, the mesh that a chased reward leaves: its amplitude in luma, in [0, 1/2].

    A grid alternates along rows, columns or both, in step over a whole area of 16 by 16 pixels (of smaller pictures all), which texture
    does not. Of each area the strongest of the three counts, and their mean over the areas. Below half a level of 255 it counts as that,
    for nobody sees it. NaN for less than 2 by 2 pixels.
    """
    luma = _rgb(image) @ np.array(LUMA)
    side = min(AREA, *luma.shape) // 2 * 2
    if not side:
        return float("nan")
    rows, columns = (size // side for size in luma.shape)
    areas = luma[: rows * side, : columns * side].reshape(rows, side, columns, side)
    down, across = (-1.0) ** np.arange(side)[:, None, None], (-1.0) ** np.arange(side)
    waves = [np.abs((areas * wave).mean(axis=(1, 3))) for wave in (down, across, down * across)]
    return max(float(np.max(waves, axis=0).mean()), 0.5 / 255.0)


def diversity(images: Sequence[Image.Image], features: Features) -> float:
    """Return the mean distance between the features of every two of a prompt's images; NaN for fewer than two."""
    return _spread(features(images)) if len(images) > 1 else float("nan")


def _spread(described: np.ndarray) -> float:
    """Return the mean distance between every two rows; NaN for fewer than two."""
    distances = [np.linalg.norm(first - second) for first, second in combinations(described, 2)]
    return float(np.mean(distances)) if distances else float("nan")


@dataclass(frozen=True, slots=True)
class Appearance:
    """How one model's pictures look, whatever they score: a number for each prompt (P,), the mean over its pictures."""

    diversity: list[float]
    """NaN for a prompt with one picture."""
    saturation: list[float]
    sharpness: list[float]
    high_frequency: list[float]
    pixel_grid: list[float]
    prompt_diversity: list[float]
    """How far a prompt's pictures are from those of the other prompts; NaN for one prompt."""

    def means(self) -> dict[str, float]:
        """Return the mean of each look over the prompts."""
        return {name: float(np.mean(values)) for name, values in asdict(self).items()}

    def changes(self, other: Appearance, prompts: Sequence[str], seed: int = 0) -> list[Change]:
        """Return how each look changes from these pictures to `other` ones of the same prompts."""
        return [change(values, getattr(other, name), prompts, name, seed) for name, values in asdict(self).items()]


def appearance(groups: Iterable[Sequence[Image.Image]], features: Features) -> Appearance:
    """Return how pictures look; each of `groups` holds those of one prompt."""
    looks = {"saturation": saturation, "sharpness": sharpness, "high_frequency": high_frequency, "pixel_grid": pixel_grid}
    values: dict[str, list[float]] = {name: [] for name in ("diversity", *looks)}
    centres = []
    for images in groups:
        described = features(images)
        centres.append(described.mean(axis=0))
        values["diversity"].append(_spread(described))
        for name, look in looks.items():
            values[name].append(float(np.mean([look(image) for image in images])))
    distances = np.array([[np.linalg.norm(one - other) for other in centres] for one in centres])
    apart = (distances.sum(axis=1) / (len(centres) - 1)).tolist() if len(centres) > 1 else [float("nan")]
    return Appearance(**values, prompt_diversity=apart)


def features(spec: Spec, *, device: str = "cpu") -> Features:
    """Return the features that `spec` names: pixels, or {clip: {model: ...}}. Raises ConfigError for a spec that is none."""
    return bind("feature", FEATURES, spec, device=device)()


def pixels(*, side: int = 8) -> Features:
    """Return features without weights: the CIELAB colours of `side` by `side` areas.

    The distance of two images is the root mean square over areas of the CIE 1976 colour difference: 100 between black and white.
    """

    def described(images: Sequence[Image.Image]) -> np.ndarray:
        small = [flattened(image).resize((side, side), Image.Resampling.BOX) for image in images]
        return np.stack([_lab(_rgb(image)).ravel() / side for image in small])

    return described


def clip(*, model: str = CLIP_L, revision: str | None = None, device: str = "cpu") -> Features:
    """Return the unit image embeddings of a CLIP in a folder or on the hub; distances are in [0, 2]."""
    clip, frame = vision(model, revision, device)

    @torch.no_grad()
    def embedded(images: Sequence[Image.Image]) -> np.ndarray:
        parts = [frame.pixels(images[start : start + BATCH]).to(device) for start in range(0, len(images), BATCH)]
        rows = [F.normalize(clip.images(part), dim=-1) for part in parts]
        return torch.cat(rows).double().cpu().numpy()

    return embedded


FEATURES: dict[str, Callable[..., Features]] = {"pixels": pixels, "clip": clip}


def _rgb(image: Image.Image) -> np.ndarray:
    """Return (H, W, 3) in [0, 1]."""
    return np.asarray(flattened(image), dtype=np.float64) / 255.0


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Return CIELAB (H, W, 3) of sRGB (H, W, 3) in [0, 1], with D65 as white: L in [0, 100]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(XYZ)
    ratio = linear @ matrix.T / matrix.sum(axis=1)
    x, y, z = np.moveaxis(np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
