"""Distilled models are told by names and configs as they were published, and others are left in peace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.distilled import distillation, turbo_times, warning
from diffalign.models.backbones.sd import StableDiffusion
from diffalign.models.backbones.sdxl import StableDiffusionXL
from tests.contracts.calls import recorded
from tests.micro_models import SIDE, picture, stable_diffusion, stable_diffusion_xl

EULER, ANCESTRAL, DDIM = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"
# Name, family, the denoiser's config, the scheduler's, and what the model was distilled in.
MODELS = [
    ("stabilityai/sdxl-turbo", "sdxl", {}, {"_class_name": ANCESTRAL, "timestep_spacing": "trailing"}, "steps"),
    ("models/my-model", "sdxl", {}, {"_class_name": ANCESTRAL, "timestep_spacing": "trailing"}, "steps"),
    ("models/my-model", "sd", {}, {"_class_name": "LCMScheduler"}, "steps"),
    ("Tongyi-MAI/Z-Image-Turbo", "z_image", {}, {"shift": 3.0}, "steps"),
    ("dreamshaper-xl-lightning.safetensors", "sdxl", {}, {"_class_name": EULER}, "steps"),
    ("black-forest-labs/FLUX.1-schnell", "flux", {"guidance_embeds": False}, {}, "steps"),
    ("models/my-flux", "flux", {"guidance_embeds": False}, {}, "steps"),
    ("black-forest-labs/FLUX.1-dev", "flux", {"guidance_embeds": True}, {}, "guidance"),
    ("black-forest-labs/FLUX.2-dev", "flux2", {"guidance_embeds": True}, {}, "guidance"),
    ("black-forest-labs/FLUX.2-klein-base-4B", "flux2", {"guidance_embeds": False}, {}, None),
    ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", {}, {"_class_name": EULER, "timestep_spacing": "leading"}, None),
    ("models/noobai-vpred", "sdxl", {}, {"_class_name": EULER, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, None),
    ("models/zsnr", "sd", {}, {"_class_name": DDIM, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}, None),
    ("models/HiDream-I1-Dev", "hidream", {}, {"_class_name": "FlowMatchLCMScheduler"}, "steps"),
    ("Tongyi-MAI/Z-Image", "z_image", {}, {"shift": 6.0}, None),
    ("models/hyperion", "sdxl", {}, {"_class_name": EULER}, None),
]


@pytest.mark.parametrize(("name", "family", "denoiser", "scheduler", "expected"), MODELS)
def test_a_model_is_distilled_in_what_it_was_published_as(name, family, denoiser, scheduler, expected):
    found = distillation(name, family, {}, denoiser, scheduler)
    assert (found and found[0]) == expected


def test_a_pipeline_that_says_so_was_distilled_in_steps():
    assert distillation("models/my-model", "krea2", {"is_distilled": True}, {}, {}) == ("steps", "`is_distilled` is true in its index")


def test_the_warning_names_the_model_and_what_to_do():
    assert warning("models/plain", stable_diffusion(), "sd", "unet") is None
    text = warning("models/some-turbo", stable_diffusion(), "sd", "unet")
    assert text is not None
    for fact in ("models/some-turbo", "`turbo`", "--base_lora", "few steps", "--guidance_scale 0"):
        assert fact in text


@pytest.mark.parametrize(
    ("family", "make", "name", "scheduler"),
    [
        (StableDiffusionXL, stable_diffusion_xl, "models/my-model", EulerAncestralDiscreteScheduler),  # as SDXL-Turbo
        (StableDiffusion, stable_diffusion, "stabilityai/sd-turbo", EulerDiscreteScheduler),
    ],
)
def test_a_turbo_unet_is_trained_where_its_stock_pipeline_draws(family, make, name, scheduler):
    """With its own settings, four steps without guidance, each call of the pipeline is one of `predict` at a time of training."""
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with recorded(pipe.unet) as calls:
        drawn = picture(pipe, ["a red star"], steps=4, guidance_scale=0.0, height=SIDE, width=SIDE)
    assert np.isfinite(drawn).all()
    model = family(pipe, name, settings=BackboneSettings(SIDE))
    assert model.path.times == (249, 499, 749, 999)
    assert [int(call.inputs["timestep"]) for call in calls] == [999, 749, 499, 249]
    assert set(model.path.sample_t(50, torch.Generator().manual_seed(0)).tolist()) == set(model.path.times)
    for call, t in zip(calls, reversed(model.path.times), strict=True):
        with torch.no_grad():
            found = model.predict(model.denoiser, call.x, torch.tensor([t]), model.encode_prompt(["a red star"]))
        torch.testing.assert_close(found, call.output, rtol=1e-5, atol=1e-5)


def test_other_models_are_trained_at_every_time():
    assert turbo_times("/data/turbo/models/sd15", stable_diffusion().scheduler) == ()
