"""What a forked process finds imported: the libraries, and nothing of this package."""

# ruff: noqa: F401  # they are imported to be there
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
