"""A ControlNet beside a frozen denoiser is called as the stock pipeline calls it, changes nothing before training, and alone is trained."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torchvision.transforms.functional import to_pil_image

from diffalign.core.errors import CheckpointError
from diffalign.models import adapters
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.table import component_of, family_of, load_backbone
from diffalign.models.control import kind_of, read_controlnet
from diffalign.models.controlled import Controlled
from diffalign.models.prompted import networks
from tests.contracts.calls import stock_of
from tests.micro_models import SIDE, picture, write_micro

CPU = torch.device("cpu")
STOCK = {
    "sd": StableDiffusionControlNetPipeline,
    "sd2": StableDiffusionControlNetPipeline,
    "sdxl": StableDiffusionXLControlNetPipeline,
    "sd3": StableDiffusion3ControlNetPipeline,
    "flux": FluxControlNetPipeline,
}
PROMPTS = ["a red star", "a large blue heart in the top"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: write_micro(kind, root / kind) for kind in (*STOCK, "pixart")}


def controlled(folder: Path, *, changed: bool = False, name: str | None = None):
    """Return a backbone with a ControlNet and where it is to be `changed` random numbers in the place of its zeros."""
    backbone = load_backbone(str(folder), CPU, settings=BackboneSettings(SIDE, guidance_scale=3.5))
    torch.manual_seed(0)
    backbone.control(name)
    if changed:
        for parameter in networks(backbone.denoiser)[1].parameters():
            if not parameter.any():
                nn.init.normal_(parameter.data, std=0.1)
    return backbone


def pixels(count: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Return noise in steps of a byte."""
    return torch.randint(256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)) / 255.0


def assert_predicts_as_the_stock_pipeline(backbone) -> None:
    """Fail unless `predict` gives what the pipeline's denoiser gave, with conditioning images, and by them."""
    pipe, family = backbone.pipeline(), family_of(backbone.pipeline())
    images, stock = pixels(2, SIDE, SIDE + 16), stock_of(pipe, family)
    if family == "flux":  # of real guidance, both branches of the stock pipeline have what the ControlNet makes of the prompt
        stock = replace(stock, guidance={"guidance_scale": 3.5}, branches="one")
    given: dict[str, Any] = {kind_of(pipe).image: [to_pil_image(image) for image in images], "height": SIDE, "width": SIDE + 16}
    calls, network = [], networks(backbone.denoiser)[0]
    signature = inspect.signature(type(network).forward)

    def note(module: Any, args: Any, named: Any, output: Any) -> None:
        asked = signature.bind(module, *args, **named).arguments
        x = asked["sample" if "sample" in asked else "hidden_states"]
        calls.append((x.clone(), asked["timestep"].clone(), output[0].clone()))

    handle = network.register_forward_hook(note, with_kwargs=True)
    picture(pipe, PROMPTS, steps=2, **stock.guidance, **given)
    handle.remove()
    branches = stock.prompts(PROMPTS)
    assert len(calls) == 2 * len(branches)
    rows, columns = backbone.latent_shape(SIDE, SIDE + 16)[1:]
    for number, (asked, times, output) in enumerate(calls):
        words = branches[number % len(branches)]
        conditioning = images.repeat(len(words) // len(images), 1, 1, 1)
        condition = {**backbone.encode_prompt(words), "conditioning_image": conditioning}
        t = times.expand(len(words)) / (1000.0 if family == "sd3" else 1.0)
        x = stock.latent(asked, rows, columns)
        with torch.no_grad():
            found = backbone.predict(backbone.denoiser, x, t, condition)
            other = backbone.predict(backbone.denoiser, x, t, {**condition, "conditioning_image": 1.0 - conditioning})
        torch.testing.assert_close(found, stock.output(output, rows, columns), rtol=1e-5, atol=1e-5)
        assert (other - found).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def write_controlnet(model: Path, folder: Path, config: dict[str, Any]) -> None:
    """Write a random ControlNet of a model, whose config has other values."""
    first: Any = networks(controlled(model).denoiser)[1]
    own = {name: value for name, value in first.config.items() if not name.startswith("_")}
    type(first).from_config({**own, **config}).save_pretrained(folder)


@pytest.fixture
def means(monkeypatch):
    """Make posteriors give their mean, which the stock pipelines draw from where a ControlNet reads latents."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda posterior, generator=None: posterior.mode())  # diffusers' own


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("kind", STOCK)
def test_predict_answers_what_the_stock_pipeline_does(kind, folders):
    backbone = controlled(folders[kind], changed=True)
    pipe = backbone.pipeline()
    assert type(pipe) is STOCK[kind]
    assert (family_of(pipe), component_of(pipe)) == (kind.removesuffix("2"), backbone.component)
    assert_predicts_as_the_stock_pipeline(backbone)


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("sd3", {"force_zeros_for_pooled_projection": False}),
        ("flux", {"conditioning_embedding_channels": 64, "guidance_embeds": False}),
    ],
)
def test_controlnets_in_the_forms_of_other_makers_are_called_as_the_stock_pipeline_calls_them(kind, config, folders, tmp_path):
    """With the prompt's pooled embedding and shifted latents; of pixels and without the guidance scale."""
    write_controlnet(folders[kind], tmp_path / "controlnet", config)
    assert_predicts_as_the_stock_pipeline(controlled(folders[kind], changed=True, name=str(tmp_path / "controlnet")))


@pytest.mark.parametrize("kind", STOCK)
def test_a_new_controlnet_leaves_the_network_as_it_was_to_the_bit(kind, folders):
    plain = load_backbone(str(folders[kind]), CPU, settings=BackboneSettings(SIDE, guidance_scale=3.5))
    backbone = controlled(folders[kind])
    x, t = torch.randn(2, *plain.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(0)), moments(backbone)
    condition = plain.encode_prompt(PROMPTS)
    with torch.no_grad():
        before = plain.predict(plain.denoiser, x, t, condition)
        after = backbone.predict(backbone.denoiser, x, t, {**condition, "conditioning_image": pixels(2)})
    assert torch.equal(before, after)
    assert networks(backbone.denoiser)[0].config == plain.denoiser.config


def moments(backbone) -> torch.Tensor:
    return torch.tensor([10.0, 900.0]) / (1.0 if backbone.component == "unet" else 1000.0)


@pytest.mark.parametrize(
    ("kind", "precision"), [("sdxl", torch.float32), ("sdxl", torch.bfloat16), ("sd3", torch.bfloat16), ("flux", torch.float32)]
)
def test_all_of_the_controlnet_is_trained_and_nothing_of_the_denoiser(kind, precision, folders):
    backbone = load_backbone(str(folders[kind]), CPU, settings=BackboneSettings(SIDE), precision=precision, full=True)
    backbone.control()
    denoiser, controlnet = networks(backbone.denoiser)
    assert {p.dtype for p in denoiser.parameters()} == {precision}
    assert {p.dtype for p in controlnet.parameters()} == {torch.float32}
    assert [id(p) for p in adapters.trainable(backbone.denoiser)] == [id(p) for p in controlnet.parameters()]
    x = torch.randn(2, *backbone.latent_shape(SIDE, SIDE))
    condition = {**backbone.encode_prompt(PROMPTS), "conditioning_image": pixels(2)}
    backbone.predict(backbone.denoiser, x, moments(backbone), condition).float().square().mean().backward()
    assert not any(p.grad is not None for p in denoiser.parameters())
    zeros = [p for name, p in controlnet.named_parameters() if name.startswith(("controlnet_down_blocks", "controlnet_blocks"))]
    assert zeros
    assert all(p.grad is not None and p.grad.any() for p in zeros)  # zero before: they move first


def test_a_controlnet_is_read_back_or_refused_by_name(folders, tmp_path):
    backbone = controlled(folders["sd"], changed=True)
    unet, controlnet = networks(backbone.denoiser)
    adapters.save_full(controlnet, tmp_path / "controlnet")
    again = read_controlnet(kind_of(backbone.pipeline()), str(tmp_path / "controlnet"), unet)
    assert all(torch.equal(value, controlnet.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(CheckpointError, match=r"controlnet: made for another model: `down_block_types`"):
        controlled(folders["sdxl"], name=str(tmp_path / "controlnet"))
    with pytest.raises(CheckpointError, match="ControlNets are of StableDiffusionPipeline"):
        controlled(folders["pixart"])
    assert isinstance(backbone.denoiser, Controlled)


@pytest.mark.parametrize(
    ("kind", "config"), [("sd3", {"extra_conditioning_channels": 1}), ("flux", {"num_mode": 10}), ("flux", {"joint_attention_dim": 8})]
)
def test_a_controlnet_that_reads_more_than_an_image_or_another_prompt_is_refused(kind, config, folders, tmp_path):
    write_controlnet(folders[kind], tmp_path / "controlnet", config)
    (key,) = config
    with pytest.raises(CheckpointError, match=f"controlnet: .*`{key}` is {json.dumps(config[key])}"):
        controlled(folders[kind], name=str(tmp_path / "controlnet"))
