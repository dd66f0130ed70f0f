"""What is trained on is what was drawn: the latents that a pipeline hands over decode to its pictures, in every family."""

from __future__ import annotations

import numpy as np
import torch

from diffalign.infer.sample import draw
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.table import load_backbone
from tests.edit_models import EDITS
from tests.micro_models import FIRSTS, MODELS, write_micro
from tests.micro_parts import SIDE


def test_the_latents_that_are_kept_decode_to_the_pictures_of_the_stock_pipeline(tmp_path):
    for name in (*FIRSTS, "playground"):  # whose path has other units than its pipeline
        kind, options = MODELS[name]
        if kind in EDITS:
            continue
        length = {"max_sequence_length": 8} if kind in ("sd3", "flux", "pixart") else {}
        folder = write_micro(kind, tmp_path / name, **options)
        model = load_backbone(str(folder), torch.device("cpu"), settings=BackboneSettings(SIDE, **length))
        kept = []
        prompts, seeds = ["a red star", "a blue circle", "a star"], [3, 4, 5]
        images = draw(model.pipeline(), prompts, seeds, num_inference_steps=2, resolution=SIDE, batch_size=2, keep=kept.append, **length)
        latents = torch.cat(kept)
        assert tuple(latents.shape) == (3, *model.latent_shape(SIDE, SIDE)), name
        for own, image in zip(model.decode_latents(latents), images, strict=True):
            assert np.abs(np.asarray(own, dtype=float) - np.asarray(image, dtype=float)).max() <= 1.0, name
