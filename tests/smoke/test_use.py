"""What a run leaves behind works where people use it: in stock diffusers, without this package."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import diffalign
from diffalign.api import align
from diffalign.backbones.sd import load_pipeline
from diffalign.errors import CheckpointError

STOCK = """
import sys
sys.modules["diffalign"] = None  # as if it were not installed
import numpy as np, torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
model, run, out, full = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
if full == "full":
    pipe.unet = UNet2DConditionModel.from_pretrained(run, subfolder="unet")
else:
    pipe.load_lora_weights(run)
np.save(out, pipe("a red star", num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="np").images)
"""


def picture(pipe):
    return pipe("a red star", num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="np").images


@pytest.mark.parametrize("train_method", ["lora", "dora", "full"])
def test_stock_diffusers_draws_what_diffalign_load_draws(micro_sd, pairs_file, tmp_path, train_method):
    # An alpha other than the rank: a loader that loses it draws something else.
    options = {
        "rank": 2,
        "lora_alpha": 6.0,
        "max_train_steps": 4,
        "train_batch_size": 8,
        "learning_rate": 3e-2,
        "train_method": train_method,
    }
    run = align(str(micro_sd), pairs_file, output_dir=tmp_path / "run", **options)
    out = tmp_path / "stock.npy"
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(micro_sd), str(run), str(out), train_method],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, stock, base = picture(diffalign.load(run)), np.load(out), picture(load_pipeline(str(micro_sd)))
    np.testing.assert_allclose(ours, stock, atol=1e-6)
    assert np.abs(ours - base).max() > 1e-3


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no finished training run \(it has no run.json\)"):
        diffalign.load(tmp_path)
