"""A ControlNet beside a frozen UNet is called as the stock pipeline calls it, changes nothing before training, and alone is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from torch import nn

from diffalign.core.errors import CheckpointError
from diffalign.models import adapters
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.table import component_of, family_of, load_backbone
from diffalign.models.control import Controlled, read_controlnet
from diffalign.models.prompted import networks
from tests.micro_models import SIDE, picture, write_micro

CPU = torch.device("cpu")
STOCK = {"sd": StableDiffusionControlNetPipeline, "sd2": StableDiffusionControlNetPipeline, "sdxl": StableDiffusionXLControlNetPipeline}
PROMPTS = ["a red star", "a large blue heart in the top"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: write_micro(kind, root / kind) for kind in (*STOCK, "sd3")}


def controlled(folder: Path, *, changed: bool = False):
    """Return a backbone with a new ControlNet, and where it is to be `changed` random numbers in the place of its zeros."""
    backbone = load_backbone(str(folder), CPU, settings=BackboneSettings(SIDE))
    torch.manual_seed(0)
    backbone.control()
    if changed:
        for parameter in networks(backbone.denoiser)[1].parameters():
            if not parameter.any():
                nn.init.normal_(parameter.data, std=0.1)
    return backbone


def pixels(count: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", STOCK)
def test_predict_answers_what_the_stock_pipeline_does(kind, folders):
    backbone = controlled(folders[kind], changed=True)
    pipe, unet = backbone.pipeline(), networks(backbone.denoiser)[0]
    assert type(pipe) is STOCK[kind]
    assert (family_of(pipe), component_of(pipe)) == (kind.removesuffix("2"), "unet")
    images = pixels(2, SIDE, SIDE + 16)
    stock = []
    note = unet.register_forward_hook(lambda _, inputs, output: stock.append((inputs[0].clone(), output[0].clone())))
    picture(pipe, PROMPTS, steps=2, guidance_scale=3.5, image=images, height=SIDE, width=SIDE + 16)
    note.remove()
    assert len(stock) == 2
    for number, (x, output) in enumerate(stock):
        condition = {**backbone.encode_prompt(["", "", *PROMPTS]), "conditioning_image": images.repeat(2, 1, 1, 1)}
        t = pipe.scheduler.timesteps[number].expand(4)
        with torch.no_grad():
            found = backbone.predict(backbone.denoiser, x, t, condition)
        torch.testing.assert_close(found, output, rtol=1e-5, atol=1e-5)
        other = {**condition, "conditioning_image": 1.0 - condition["conditioning_image"]}
        with torch.no_grad():
            assert (backbone.predict(backbone.denoiser, x, t, other) - found).abs().amax(dim=(1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("kind", STOCK)
def test_a_new_controlnet_leaves_the_network_as_it_was_to_the_bit(kind, folders):
    plain = load_backbone(str(folders[kind]), CPU, settings=BackboneSettings(SIDE))
    backbone = controlled(folders[kind])
    x, t = torch.randn(2, *plain.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 900.0])
    condition = plain.encode_prompt(PROMPTS)
    with torch.no_grad():
        before = plain.predict(plain.denoiser, x, t, condition)
        after = backbone.predict(backbone.denoiser, x, t, {**condition, "conditioning_image": pixels(2)})
    assert torch.equal(before, after)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_all_of_the_controlnet_is_trained_and_nothing_of_the_unet(precision, folders):
    backbone = load_backbone(str(folders["sdxl"]), CPU, settings=BackboneSettings(SIDE), precision=precision, full=True)
    backbone.control()
    unet, controlnet = networks(backbone.denoiser)
    assert {p.dtype for p in unet.parameters()} == {precision}
    assert {p.dtype for p in controlnet.parameters()} == {torch.float32}
    assert [id(p) for p in adapters.trainable(backbone.denoiser)] == [id(p) for p in controlnet.parameters()]
    x, t = torch.randn(2, *backbone.latent_shape(SIDE, SIDE)), torch.tensor([10.0, 900.0])
    output = backbone.predict(backbone.denoiser, x, t, {**backbone.encode_prompt(PROMPTS), "conditioning_image": pixels(2)})
    output.float().square().mean().backward()
    assert not any(p.grad is not None for p in unet.parameters())
    assert all(p.grad is not None and p.grad.any() for p in controlnet.controlnet_down_blocks.parameters())  # zero before: they move first


def test_a_controlnet_is_read_back_or_refused_by_name(folders, tmp_path):
    backbone = controlled(folders["sd"], changed=True)
    unet, controlnet = networks(backbone.denoiser)
    adapters.save_full(controlnet, tmp_path / "controlnet")
    again = read_controlnet(str(tmp_path / "controlnet"), unet)
    assert all(torch.equal(value, controlnet.state_dict()[name]) for name, value in again.state_dict().items())
    other = load_backbone(str(folders["sdxl"]), CPU, settings=BackboneSettings(SIDE))
    with pytest.raises(CheckpointError, match=r"controlnet: made for another model: `down_block_types`"):
        other.control(str(tmp_path / "controlnet"))
    with pytest.raises(CheckpointError, match="ControlNets are of StableDiffusionPipeline"):
        load_backbone(str(folders["sd3"]), CPU, settings=BackboneSettings(SIDE)).control()
    assert isinstance(backbone.denoiser, Controlled)
