"""Draws for a user with diffusers alone, in a process of its own: `python stock_draw.py REQUESTS.json`, a list of requests.

A request has the folder of a "model" and of its "branch", the safetensors file of its "user"'s tokens, and a file for the "picture".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

BRANCH = "ip_adapter.safetensors"


def draw(model: str, branch: str, user: str, picture: str) -> None:
    """Load a stock pipeline and a branch, and draw."""
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    kind = type(pipe).__name__
    encoder = "image_encoder_pretrained_model_name_or_path" if kind.startswith("Flux") else "image_encoder_folder"
    pipe.load_ip_adapter(branch, subfolder="", weight_name=BRANCH, **{encoder: None})
    tokens = load_file(user)["tokens"][None]
    zero = torch.zeros_like(tokens)
    if kind.startswith("Flux"):
        told = {"ip_adapter_image_embeds": [tokens], "negative_ip_adapter_image_embeds": [zero], "height": 32, "width": 32}
    elif kind.startswith("StableDiffusion3"):
        told = {"ip_adapter_image_embeds": torch.cat([zero, tokens])}
    else:
        told = {"ip_adapter_image_embeds": [torch.cat([zero, tokens])[:, None]]}
    generator = torch.Generator().manual_seed(3)
    told |= {"num_inference_steps": 2, "guidance_scale": 5.0, "generator": generator, "output_type": "np"}
    np.save(picture, pipe(["a red star", "a blue heart"], **told).images)


if __name__ == "__main__":
    for request in json.loads(Path(sys.argv[1]).read_text()):
        draw(**request)
    assert not any(name.startswith("diffalign") for name in sys.modules)
