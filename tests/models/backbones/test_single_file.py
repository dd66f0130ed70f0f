"""A model in one file is the model of its folder; what cannot be one is named for what it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffalign.core.errors import CheckpointError
from diffalign.infer.load import load
from diffalign.models.backbones.published import PUBLISHED, clip_tokenizer
from diffalign.models.backbones.single_file import folder_of, is_model, write_published
from diffalign.models.backbones.table import load_pipeline
from diffalign.train.align import run
from tests.micro_models import picture, stock, write_micro
from tests.single_files import write_single_file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep the folders that are made of single files in the test's own cache."""
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_a_single_file_draws_what_the_folder_draws_that_it_was_written_from(kind, tmp_path):
    options = {"absent": ["text_encoder_3"], "second_clip": 24} if kind == "sd3" else {}
    model = write_micro(kind, tmp_path / "model", **options)
    if kind == "sd3":  # single files of SD3 have no projection of the first CLIP
        place = model / "text_encoder" / "model.safetensors"
        weights = load_file(place)
        save_file(weights | {"text_projection.weight": torch.eye(len(weights["text_projection.weight"]))}, place, {"format": "pt"})
    file = write_single_file(model, tmp_path / "model.safetensors")
    assert is_model(file)
    made = folder_of(file, model)
    assert made == folder_of(file.rename(tmp_path / "moved.safetensors"))  # it is found by what is in the file
    np.testing.assert_array_equal(picture(stock(model)), picture(load_pipeline(str(tmp_path / "moved.safetensors"))))


def test_a_run_on_a_single_file_trains_draws_and_goes_on_without_its_configs(pairs_file, tmp_path):
    from diffalign.methods.config import TrainConfig

    model = write_micro("sd", tmp_path / "model")
    file = write_single_file(model, tmp_path / "model.safetensors")
    config = TrainConfig(
        pretrained_model_name_or_path=str(file),
        config_folder=str(model),
        dataset_name=str(pairs_file),
        output_dir=str(tmp_path / "run"),
        method="diffusion_dpo",
        max_train_steps=1,
        train_batch_size=2,
        cache_dir=str(tmp_path / "latents"),
    )
    folder = run(config)
    assert json.loads((folder / "run.json").read_text())["base"] == str(file)
    assert load(folder)("a red star", num_inference_steps=1).images


def test_a_file_without_configs_says_what_it_looks_like_and_what_is_needed(tmp_path):
    model = write_micro("sd", tmp_path / "model")
    layouts = {
        "looks like inpainting": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1, 9, 3, 3)},
        "has T5": {"text_encoders.t5xxl.transformer.shared.weight": torch.ones(1)},
    }
    for fact, more in layouts.items():
        file = write_single_file(model, tmp_path / "odd.safetensors", more)
        with pytest.raises(CheckpointError, match=fact) as error:
            folder_of(file)
        assert "--config_folder" in str(error.value)


def test_weights_that_are_missing_or_of_eight_bits_are_refused(tmp_path):
    model = write_micro("sd", tmp_path / "model")
    whole = load_file(write_single_file(model, tmp_path / "whole.safetensors"))
    name = "model.diffusion_model.middle_block.0.in_layers.0.weight"
    save_file({key: value for key, value in whole.items() if key != name}, tmp_path / "part.safetensors")
    eight = {key: value.to(torch.float8_e4m3fn) if key.startswith("model.") else value for key, value in whole.items()}
    save_file(eight, tmp_path / "eight.safetensors")
    for file, fact in {"part": "lacks weights", "eight": "F8_E4M3"}.items():
        with pytest.raises(CheckpointError, match=fact):
            folder_of(tmp_path / f"{file}.safetensors", model)


XL = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
V2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction", "zero"),
    [
        ({XL: torch.ones(1)}, {}, "epsilon", False),
        ({XL: torch.ones(1), "v_pred": torch.ones(0), "ztsnr": torch.ones(0)}, {}, "v_prediction", True),
        ({XL: torch.ones(1)}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({V2: torch.ones(1, 1024)}, {}, "v_prediction", False),
        ({V2: torch.ones(1, 1024), "global_step": torch.tensor(875_000)}, {}, "epsilon", False),
        ({V2: torch.ones(1, 1024)}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon", False),
        ({"model.diffusion_model.out.0.weight": torch.ones(1)}, {}, "epsilon", False),
    ],
)
def test_a_file_tells_what_it_predicts_by_its_keys_or_its_metadata(tensors, metadata, prediction, zero, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    write_published(tmp_path / "model.safetensors", tmp_path / "configs")
    schedule = json.loads((tmp_path / "configs" / "scheduler" / "scheduler_config.json").read_text())
    assert (schedule["prediction_type"], schedule.get("rescale_betas_zero_snr", False)) == (prediction, zero)


def test_a_file_of_playground_has_the_noise_of_edm_and_the_moments_of_its_latents(tmp_path):
    moments = {"edm_mean": torch.tensor([-1.5, 2.0, -1.25, 2.5]).view(1, 4, 1, 1), "edm_std": torch.full((1, 4, 1, 1), 5.5)}
    save_file({XL: torch.ones(1), **moments}, tmp_path / "model.safetensors")
    write_published(tmp_path / "model.safetensors", tmp_path / "configs")
    vae, schedule = (
        json.loads((tmp_path / "configs" / name).read_text()) for name in ("vae/config.json", "scheduler/scheduler_config.json")
    )
    assert (vae["latents_mean"], vae["latents_std"], vae["scaling_factor"]) == ([-1.5, 2.0, -1.25, 2.5], [5.5] * 4, 0.5)
    assert (schedule["_class_name"], schedule["sigma_data"]) == ("EDMDPMSolverMultistepScheduler", 0.5)


# From the weights on the hub: Stable Diffusion 1.5 and 2.1, SDXL, SD3 medium, and the sizes that Stability states of SD 3.5 (2.2B, 8.1B).
SIZES = {
    "v1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "v2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl_base": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sd3": {"transformer": 2_028_328_000, "text_encoder_2": 694_659_840},
    "sd35_medium": {"transformer": 2_243_171_520},
    "sd35_large": {"transformer": 8_056_627_520},
}


def test_the_published_configs_are_of_the_published_sizes():
    import diffusers
    import transformers

    for kind, sizes in SIZES.items():
        for part, size in sizes.items():
            config = {key: value for key, value in PUBLISHED[kind][part].items() if key not in ("_class_name", "architectures")}
            with torch.device("meta"):
                if part.startswith("text_encoder"):
                    network = getattr(transformers, PUBLISHED[kind][part]["architectures"][0])
                    network = network(network.config_class(**config))
                else:
                    network = getattr(diffusers, PUBLISHED[kind][part]["_class_name"]).from_config(config)
            assert sum(parameter.numel() for parameter in network.parameters()) == size, (kind, part)


def test_the_tokens_are_those_of_open_clip():
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["A photo of a Café, 3 cats' whiskers?!  and   more", "", "naïve 東京 🙂 it's don't", "x" * 200]
    found = clip_tokenizer("<|endoftext|>")(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    expected = SimpleTokenizer()(texts)  # which pads with zeros
    assert torch.equal(torch.where(expected == 0, 49407, expected), found)
    assert clip_tokenizer("!").pad_token_id == 0
