"""Distilled models are told by names and configs as they were published, and others are left in peace."""

from __future__ import annotations

import pytest

from diffalign.models.backbones.distilled import distillation, warning
from tests.micro_models import stable_diffusion

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
    for fact in ("models/some-turbo", "`turbo`", "--base_lora", "few steps"):
        assert fact in text
