"""Personalised runs as training leaves them, with random weights instead of trained ones, and users' choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from diffalign.data.pictures import encode_image
from diffalign.data.world.captions import random_caption
from diffalign.data.world.scenes import random_scene, render
from diffalign.models.backbones.table import BACKBONES, family_of
from diffalign.models.features import LatentFeatures
from diffalign.models.users import branch
from diffalign.models.users.attach import equip
from diffalign.models.users.encoders import Sizes, make
from diffalign.models.users.settings import USER_ENCODERS
from diffalign.models.users.store import BRANCH, ENCODER, save_encoder
from tests.micro_models import stock

WIDTH, TOKENS = 12, 3
SMALL = {"tokens": TOKENS, "width": WIDTH}


def choices(count: int = 4, seed: int = 0) -> list[tuple[str, Image.Image, Image.Image]]:
    """Return pairs of drawings as a user gives them."""
    rng = np.random.default_rng(seed)
    scenes = [(random_scene(rng), random_scene(rng)) for _ in range(count)]
    return [(random_caption(first, rng), render(first, rng), render(second, rng)) for first, second in scenes]


def write_votes(path: Path, users: tuple[str, ...] = ("ann", "bob"), each: int = 4, *, label: float | None = None) -> Path:
    """Write the pairs of some users in Pick-a-Pic's columns; the second image is the preferred one of every other pair."""
    rows = []
    for seed, user in enumerate(users):
        for number, (prompt, first, second) in enumerate(choices(each, seed)):
            said = float(number % 2 == 0) if label is None else label
            images = (first, second) if said >= 0.5 else (second, first)
            row = {"caption": prompt, "label_0": said, "label_1": 1.0 - said, "user_id": user}
            rows.append(row | {f"jpg_{place}": encode_image(image) for place, image in enumerate(images)})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_user_run(folder: Path, base: Path, encoder: str = "pairs", *, sizes: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Write a personalised run on the model in `base`; `settings` are more constants of the encoder."""
    torch.manual_seed(5)
    pipe = stock(base)
    denoiser = pipe.components.get("unet") or pipe.transformer
    features = 16 if encoder == "profile" else pipe.vae.config.latent_channels * 64
    model = BACKBONES[family_of(pipe)](pipe, str(base))
    seen = LatentFeatures(model.encode_image, model.latent_shape, model.resolution, "", model.vae_fingerprint())
    known = {"users": ("ann", "bob", "cy"), "features": features, "source": seen.source, **(sizes or {})}
    reads = equip(denoiser, make(USER_ENCODERS[encoder](**SMALL | settings), Sizes(**known)))
    generator = torch.Generator().manual_seed(3)
    for parameter in denoiser.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        elif parameter.requires_grad:
            parameter.data += 0.5  # PixArt's words begin as zeros
    folder.mkdir(parents=True)
    branch.save(denoiser, folder / BRANCH, {"encoder": reads.fingerprint()})
    save_encoder(reads, folder / ENCODER)
    component = "unet" if "unet" in pipe.components else "transformer"
    facts = {"base": str(base), "component": component, "method": "ppd", "inference": "user", "train_method": "user"}
    facts |= {"steps": 7, "batch": 16, "records": 24, "table": None, "objective": {"dpo": {"beta": 500.0}}, "resolution": None}
    facts |= {"user_encoder": {encoder: SMALL | settings}, "mixed_precision": "no"}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder
