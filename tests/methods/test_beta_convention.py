"""Betas as other programs count them, by the model that is trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from diffalign.core.errors import ConfigError
from diffalign.methods.beta_convention import latent_shape, with_beta_of
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.folders import resolve


def config(model, **values):
    return TrainConfig(dataset_name="votes", pretrained_model_name_or_path=str(model), **values)


@pytest.mark.parametrize(
    ("model", "convention", "beta", "here"),
    [
        ("assets/tiny-sd", "diffalign", 2500, 2500),
        ("assets/tiny-sd", "diffusers", 2500, 5000),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "diffusers", 2500, 5000),
        ("stabilityai/stable-diffusion-xl-base-1.0", "diffusers", 5000, 5000),
        ("assets/tiny-sd3", "flow_grpo", 100, 100),
        ("assets/tiny-lm", "trl", 0.1, 0.1),
    ],
)
def test_a_beta_becomes_what_it_means_here_and_the_log_has_both(model, convention, beta, here, caplog):
    with caplog.at_level(logging.INFO):
        converted = with_beta_of(config(model, beta=beta), convention)
    assert converted == config(model, beta=here)
    assert convention == "diffalign" or f"{beta:g}" in caplog.text


def test_simpletuners_beta_is_multiplied_by_the_size_of_the_latent():
    size = json.loads((Path(resolve("assets/tiny-sd")) / "vae" / "config.json").read_text())
    shape = latent_shape(config("assets/tiny-sd"))
    assert shape[0] == size["latent_channels"]
    made = config("assets/tiny-sd", beta=0.5, resolution=64)
    factor = 2 ** (len(size["block_out_channels"]) - 1)
    assert with_beta_of(made, "simpletuner").beta == 0.5 * shape[0] * (64 // factor) ** 2


@pytest.mark.parametrize(
    ("values", "convention", "facts"),
    [
        ({"model": "assets/tiny-sd"}, "diffusers", ["no `beta`", "--beta"]),
        ({"model": "assets/tiny-sd", "beta": 0.1}, "trl", ["trl", "nats"]),
        ({"model": "assets/tiny-lm", "beta": 2500}, "diffusers", ["language model", "nats"]),
        ({"model": "assets/tiny-sd", "beta": 0.1, "method": "mapo"}, "diffusers", ["MaPO"]),
        ({"model": "owner/model", "beta": 0.1}, "simpletuner", ["owner/model", "C * H * W"]),
    ],
)
def test_what_has_no_beta_of_that_convention_is_refused(values, convention, facts):
    with pytest.raises(ConfigError) as refusal:
        with_beta_of(config(**values), convention)
    assert [fact for fact in facts if fact not in str(refusal.value)] == []
