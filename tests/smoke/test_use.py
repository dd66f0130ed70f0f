"""What a run leaves behind works where people use it: in stock diffusers, without this package."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.evaluate.compare import evaluate
from diffalign.evaluate.options import EvalConfig
from diffalign.models.adapters import save_difference
from diffalign.models.backbones.table import load_pipeline
from diffalign.train.align import align
from tests.processes import apart
from tests.stock import draw_trained


def picture(pipe):
    return pipe("a red star", num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="np").images


@pytest.fixture(scope="module")
def used(micro_sd, pairs_file, tmp_path_factory):
    """The folder with a run of each training method, and beside each the picture that stock diffusers draws with it."""
    folder = tmp_path_factory.mktemp("used")
    # An alpha other than the rank: a loader that loses it draws something else.
    options = {"rank": 2, "lora_alpha": 6.0, "max_train_steps": 4, "train_batch_size": 8, "learning_rate": 3e-2}
    for train_method in ("lora", "dora", "full"):
        align(str(micro_sd), pairs_file, output_dir=folder / train_method, train_method=train_method, **options)
    apart(folder / "log", draw_trained, micro_sd, [folder / train_method for train_method in ("lora", "dora", "full")])
    return folder


@pytest.mark.parametrize("train_method", ["lora", "dora", "full"])
def test_stock_diffusers_draws_what_diffalign_load_draws(micro_sd, used, train_method):
    ours, stock = picture(diffalign.load(used / train_method)), np.load(used / f"{train_method}.npy")
    np.testing.assert_allclose(ours, stock, atol=1e-6)
    assert np.abs(ours - picture(load_pipeline(str(micro_sd)))).max() > 1e-3


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no finished run \(it has no run.json\)"):
        diffalign.load(tmp_path)


def small(run, **options):
    return {"rank": 2, "max_train_steps": 3, "train_batch_size": 8, "learning_rate": 3e-2, "output_dir": run, **options}


@pytest.mark.parametrize(("method", "train_method"), [("diffusion_npo", "lora"), ("self_npo", "full")])
def test_an_npo_run_is_loaded_as_negative_guidance(micro_sd, pairs_file, tmp_path, method, train_method):
    run = align(str(micro_sd), pairs_file, **small(tmp_path / "npo", method=method, train_method=train_method))
    guided, plain = diffalign.load(run), load_pipeline(str(micro_sd))
    assert np.abs(picture(guided) - picture(plain)).max() > 1e-4
    np.testing.assert_allclose(picture(diffalign.load(run, beta=0.0)), picture(plain), atol=1e-5)
    with pytest.raises(ConfigError, match="negative guidance needs guidance"):
        guided("a red star", num_inference_steps=1, guidance_scale=1.0)


def test_an_npo_run_steers_another_run(micro_sd, pairs_file, tmp_path):
    positive = align(str(micro_sd), pairs_file, **small(tmp_path / "dpo"))
    negative = align(str(micro_sd), pairs_file, **small(tmp_path / "npo", method="diffusion_npo"))
    both, alone = diffalign.load(negative, positive=positive), diffalign.load(positive)
    assert np.abs(picture(both) - picture(alone)).max() > 1e-4
    np.testing.assert_allclose(picture(diffalign.load(negative, positive=positive, beta=0.0)), picture(alone), atol=1e-5)
    facts = evaluate(EvalConfig(output_dir=str(negative), positive=str(positive), beta=0.0, num_inference_steps=2), ["a red star"])
    assert [run["path"] for run in facts["runs"]] == [str(positive), str(negative)]
    compared = facts["comparisons"][0]
    assert (compared["win_rate"], compared["change"]) == (0.5, 0.0)  # with no weight it is plain guidance on the positive run
    with pytest.raises(ConfigError, match="this is diffusion_dpo"):
        diffalign.load(positive, positive=negative)
    with pytest.raises(ConfigError, match="a run of diffusion_npo itself"):
        diffalign.load(negative, positive=negative)
    with pytest.raises(ConfigError, match="no positive adapter"):
        diffalign.load(negative, alpha=0.5)


def test_the_low_rank_part_of_a_full_fine_tune_keeps_what_its_rank_can_hold(micro_sd, tmp_path):
    pipe = load_pipeline(str(micro_sd))
    tuned = copy.deepcopy(pipe.unet)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    assert save_difference(pipe, pipe.unet, tuned, tmp_path / "one", component="unet", rank=1) < 0.9
    assert save_difference(pipe, pipe.unet, tuned, tmp_path / "all", component="unet", rank=1000) == pytest.approx(1.0, abs=1e-5)
    pipe.load_lora_weights(tmp_path / "all")
    pipe.fuse_lora()
    weight = pipe.unet.down_blocks[0].resnets[0].conv1.base_layer.weight
    torch.testing.assert_close(weight, tuned.down_blocks[0].resnets[0].conv1.weight, atol=1e-4, rtol=1e-4)
