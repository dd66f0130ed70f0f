"""A denoiser in one file, beside a model that has the other parts, is the denoiser of its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.runs import Run
from diffalign.infer.kinds.image import base_of
from diffalign.infer.load import load
from diffalign.methods.checks import check
from diffalign.models.backbones.table import load_pipeline
from diffalign.train.trainer import trainer_for
from tests.micro_models import picture, stock, write_micro
from tests.single_files import write_single_file
from tests.train.configs import small_config

PREFIX = "model.diffusion_model."


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep the folders that are made of single files in the test's own cache."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))


def write_denoiser(model: Path, file: Path, prefix: str) -> Path:
    """Write the denoiser of a model as a file of its own in the published layout, its names behind `prefix`."""
    whole = load_file(write_single_file(model, file.with_name("whole.safetensors")))
    found = {prefix + name.removeprefix(PREFIX): value for name, value in whole.items() if name.startswith(PREFIX)}
    save_file(found, file)
    return file


def moved(model: Path, folder: Path) -> Path:
    """Write the same model with another denoiser."""
    pipe = stock(model)
    denoiser = pipe.components.get("unet") or pipe.transformer
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.ones_like(parameter)
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "prefix"), [("sd", PREFIX), ("sd", ""), ("sd3", PREFIX), ("sd3", "")])
def test_a_denoiser_file_beside_a_base_draws_as_the_model_it_was_taken_from(kind, prefix, tmp_path):
    base = write_micro(kind, tmp_path / "base", **({"absent": ["text_encoder_3"]} if kind == "sd3" else {}))
    other = moved(base, tmp_path / "other")
    file = write_denoiser(other, tmp_path / "denoiser.safetensors", prefix)
    drawn = picture(load_pipeline(str(base), denoiser=file))
    np.testing.assert_array_equal(drawn, picture(stock(other)))
    assert np.abs(drawn - picture(stock(base))).max() > 0.01


def test_the_file_of_a_folder_in_diffusers_layout_and_the_folder_are_denoisers_too(micro_sd, tmp_path):
    other = moved(micro_sd, tmp_path / "other")
    expected = picture(stock(other))
    for place in (other / "unet", other / "unet" / "diffusion_pytorch_model.safetensors"):
        np.testing.assert_array_equal(picture(load_pipeline(str(micro_sd), denoiser=place)), expected)


def test_a_run_on_a_denoiser_file_has_it_in_policy_reference_and_result(micro_sd, pairs_file, tmp_path):
    other = moved(micro_sd, tmp_path / "other")
    file = write_denoiser(other, tmp_path / "denoiser.safetensors", "")
    config = small_config(micro_sd, pairs_file, tmp_path / "run", denoiser=str(file), max_train_steps=1, cache="off", train_batch_size=2)
    check(config)
    trainer = trainer_for(config)
    expected = stock(other).unet.state_dict()
    assert all(
        torch.equal(value, expected[name.replace(".base_layer", "")])
        for name, value in trainer.network.state_dict().items()
        if "lora" not in name
    )
    run = Run.open(trainer.fit())
    assert run.facts["denoiser"] == str(file)
    assert all(torch.equal(value, expected[name]) for name, value in base_of(run).unet.state_dict().items())
    assert load(run.folder)("a red star", num_inference_steps=1).images


def test_what_is_no_denoiser_of_the_base_is_refused_for_what_it_is(micro_sd, pairs_file, tmp_path):
    file = tmp_path / "odd.safetensors"
    sd3 = write_denoiser(write_micro("sd3", tmp_path / "sd3", absent=["text_encoder_3"]), tmp_path / "sd3.safetensors", "")
    eight = {name: value.to(torch.int8) for name, value in load_file(write_denoiser(micro_sd, file, "")).items()}
    part = {name: value for name, value in load_file(file).items() if name != "middle_block.0.in_layers.0.weight"}
    save_file(eight, tmp_path / "eight.safetensors")
    save_file(part, tmp_path / "part.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    save_file({"weight": torch.ones(1)}, tmp_path / "none.safetensors")
    (tmp_path / "q4.gguf").touch()
    cases = {
        "sd3.safetensors": "looks like a StableDiffusion3Pipeline",
        "eight.safetensors": "I8.*fp16",
        "part.safetensors": "UNet2DConditionModel",
        "lora.safetensors": "base_lora",
        "none.safetensors": "no published checkpoint",
        "q4.gguf": "GGUF",
        "missing.safetensors": "no such file",
        "base": "whole model",
    }
    assert sd3.is_file()
    (tmp_path / "base").symlink_to(micro_sd)
    for name, fact in cases.items():
        with pytest.raises(CheckpointError, match=fact) as error:
            check(small_config(micro_sd, pairs_file, tmp_path / "run", denoiser=str(tmp_path / name)))
        assert name in str(error.value)
    with pytest.raises(ConfigError, match=r"`denoiser`.*`quantization`"):
        check(small_config(micro_sd, pairs_file, tmp_path / "run", denoiser=str(file), quantization="int8"), installed=False)
