"""What a forked process finds imported: the libraries, and nothing of this package."""

# ruff: noqa: E402, F401  # they are imported to be there, after the collector is off
import gc

gc.disable()  # until a process is forked from this one, which then does not walk over them either

import accelerate
import peft
import scipy.stats
import torch
import torch.distributed
import transformers
from diffusers import (
    FluxPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
