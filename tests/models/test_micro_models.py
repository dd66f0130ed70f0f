"""The random models that other tests train are models: the stock pipelines load and draw them, offline."""

from __future__ import annotations

import filecmp

import numpy as np
import pytest

from tests.edit_models import small_references
from tests.micro_models import MODELS, SIDE, picture, stock, write_micro

STAR = "a red star"


@pytest.mark.parametrize("name", MODELS)
def test_the_stock_pipeline_draws_with_a_micro_model(name, tmp_path):
    kind, options = MODELS[name]
    folder = write_micro(kind, tmp_path / "model", **options)
    assert not list(folder.rglob("*.bin"))
    pipe = stock(folder)
    denoiser = pipe.components.get("unet") or pipe.transformer
    # Fixed are the widths of Z-Image's time embedding, and of HiDream's experts, a multiple of 256.
    free = (p for part, p in denoiser.named_parameters() if not part.startswith("t_embedder") and ".ff_i." not in part)
    assert sum(p.numel() for p in free) < 100_000
    with small_references():
        star, heart, other, again = (
            picture(pipe, text, seed=seed) for text, seed in ((STAR, 3), ("a big blue heart", 3), (STAR, 4), (STAR, 3))
        )
    assert star.shape == (1, SIDE, SIDE, 3)
    assert np.isfinite(star).all()
    assert np.abs(star - heart).max() > 1e-3, "the picture does not depend on the prompt"
    assert np.abs(star - other).max() > 1e-2, "the picture does not depend on the noise"
    np.testing.assert_array_equal(star, again)


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_a_micro_model_is_the_same_every_time(kind, tmp_path):
    one, two = (write_micro(kind, tmp_path / name) for name in ("one", "two"))
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert filecmp.cmpfiles(one, two, files, shallow=False)[0] == files
