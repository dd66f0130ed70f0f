"""What people draw with diffusers alone: for a process of its own, in which this package cannot be imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

BRANCH = "ip_adapter.safetensors"
SEED = 3


def alone() -> None:
    """Take this package away, as if it were not installed."""
    assert not any(name.startswith("diffalign") for name in sys.modules)
    sys.modules["diffalign"] = None  # pyright: ignore[reportArgumentType]


def draw_trained(model: Path, runs: Sequence[Path]) -> None:
    """Draw with what training left in each folder of `runs`, and write the picture beside it."""
    alone()
    for run in runs:
        pipe: Any = StableDiffusionPipeline.from_pretrained(model)
        if (run / "unet").is_dir():
            pipe.unet = UNet2DConditionModel.from_pretrained(run, subfolder="unet")
        else:
            pipe.load_lora_weights(run)
        generator = torch.Generator().manual_seed(SEED)
        np.save(run.with_suffix(".npy"), pipe("a red star", num_inference_steps=4, generator=generator, output_type="np").images)


def run_snippets(folder: Path, snippets: Mapping[str, str]) -> None:
    """Run code by the names of the files that `drawn`, what each draws, is written to."""
    alone()
    os.chdir(folder)
    for file, code in snippets.items():
        scope: dict[str, Any] = {}
        exec(compile(code, file, "exec"), scope)
        np.save(file, scope["drawn"])


def draw_for_users(folders: Sequence[Path]) -> None:
    """Draw with the model, the branch and the tokens of the user in each of the folders, and leave the picture there."""
    alone()
    for folder in folders:
        pipe: Any = DiffusionPipeline.from_pretrained(folder / "model")
        pipe.set_progress_bar_config(disable=True)
        kind = type(pipe).__name__
        encoder = "image_encoder_pretrained_model_name_or_path" if kind.startswith("Flux") else "image_encoder_folder"
        pipe.load_ip_adapter(str(folder), subfolder="", weight_name=BRANCH, **{encoder: None})
        tokens = load_file(folder / "user.safetensors")["tokens"][None]
        zero = torch.zeros_like(tokens)
        if kind.startswith("Flux"):
            user: Any = {"ip_adapter_image_embeds": [tokens], "negative_ip_adapter_image_embeds": [zero], "height": 32, "width": 32}
        elif kind.startswith("StableDiffusion3"):
            user = {"ip_adapter_image_embeds": torch.cat([zero, tokens])}
        else:
            user = {"ip_adapter_image_embeds": [torch.cat([zero, tokens])[:, None]]}
        options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np", "generator": torch.Generator().manual_seed(SEED)}
        np.save(folder / "picture.npy", pipe(["a red star", "a blue heart"], **user, **options).images)
