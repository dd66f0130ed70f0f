"""The random models that other tests train are models: the stock pipelines load and draw them, offline."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from tests.micro_models import SIDE, picture, write_micro

MODELS = {
    "sd": ("sd", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "pixart-sigma": ("pixart", {}),
    "pixart-alpha": ("pixart", {"alpha": True}),
    "pixart-alpha-1024": ("pixart", {"alpha": True, "use_additional_conditions": True}),
    "sd3": ("sd3", {}),
    "sd3-4-channels-no-t5": ("sd3", {"channels": 4, "absent": ["text_encoder_3"]}),
    "flux-dev": ("flux", {}),
    "flux-schnell": ("flux", {"schnell": True}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_stock_pipeline_draws_with_a_micro_model(name, tmp_path):
    kind, options = MODELS[name]
    folder = write_micro(kind, tmp_path / "model", **options)
    assert not list(folder.rglob("*.bin"))
    absent = [part for name in options.get("absent", ()) for part in (name, name.replace("text_encoder", "tokenizer"))]
    pipe = DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(absent))  # which the stock loader wants to be told
    denoiser = pipe.components.get("unet") or pipe.transformer
    assert sum(p.numel() for p in denoiser.parameters()) < 100_000
    star, heart, other = picture(pipe), picture(pipe, "a big blue heart"), picture(pipe, seed=4)
    assert star.shape == (1, SIDE, SIDE, 3)
    assert np.isfinite(star).all()
    assert np.abs(star - heart).max() > 1e-3, "the picture does not depend on the prompt"
    assert np.abs(star - other).max() > 1e-2, "the picture does not depend on the noise"
    np.testing.assert_array_equal(star, picture(pipe))


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_a_micro_model_is_the_same_every_time(kind, tmp_path):
    one, two = (write_micro(kind, tmp_path / name) for name in ("one", "two"))
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert filecmp.cmpfiles(one, two, files, shallow=False)[0] == files
