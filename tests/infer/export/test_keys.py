"""Merged through a ComfyUI file's own arithmetic in the published layout, an adapter changes the weights as it does in diffusers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import ChromaTransformer2DModel, Lumina2Transformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from torch import Tensor, nn

from diffalign.core.errors import ConfigError
from diffalign.infer.export.export import merge
from diffalign.infer.export.keys import place
from diffalign.infer.export.lora_file import Update, comfyui_tensors
from tests.infer.adapters import add
from tests.layouts import FLUX, comfyui_paths, merged_by_comfyui, published, random_checkpoint, to_diffusers
from tests.micro_models import MAKERS

SCALE = 6 / 4  # alpha 6, rank 4


def denoiser(kind: str, **options: Any) -> Any:
    pipe = MAKERS[kind](**options)
    return pipe.components.get("unet") or pipe.transformer


def linear_layers(network: nn.Module) -> list[str]:
    """Return all layers that can have an adapter; of grouped convolutions peft merges none."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    return [name for name, layer in layers.items() if not (isinstance(layer, nn.Conv2d) and layer.groups > 1)]


def updates_of(network: nn.Module) -> dict[str, Update]:
    """Return what the adapter of a network adds, from peft's own modules."""
    layers = {name: layer for name, layer in network.named_modules() if "x" in getattr(layer, "lora_A", {})}
    return {
        name: Update(layer.lora_A["x"].weight.detach(), layer.lora_B["x"].weight.detach(), layer.scaling["x"])
        for name, layer in layers.items()
    }


CASES = {
    "sd": ("sd", {}),
    "sd2": ("sd", {}),
    "sdxl": ("sdxl", {}),
    "kolors": ("kolors", {}),
    "sd3": ("sd3", {}),
    "pixart": ("pixart", {}),
    "z_image": ("z_image", {}),
    "qwen_image": ("qwen_image", {}),
    **{family: (family, {}) for family in ("cogview4", "flux2", "sana", "krea2", "ernie_image", "hidream")},
    "pixart 1024": ("pixart", {"use_additional_conditions": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_merged_in_the_published_layout_as_in_diffusers(case):
    torch.manual_seed(0)
    family, options = CASES[case]
    network = denoiser(case.split()[0], **options)
    config = dict(network.config)
    checkpoint = random_checkpoint(family, config)
    network.load_state_dict(to_diffusers(family, checkpoint, config))
    layers = linear_layers(network)
    add(network, "x", rank=4, alpha=6, seed=1, targets=layers)
    updates = updates_of(network)
    assert sorted(updates) == sorted(layers)
    changed = merged_by_comfyui(checkpoint, comfyui_tensors(family, updates, config), comfyui_paths(family, config))
    expected = copy.deepcopy(network)
    merge(expected)
    after = expected.state_dict()
    for name, weight in to_diffusers(family, changed, config).items():
        torch.testing.assert_close(weight, after[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    assert max((changed[key] - checkpoint[key]).abs().max() for key in checkpoint) > 0.1


def flux_updates(width: int = 3072) -> dict[str, Update]:
    """Return random updates of a Flux of one block of each kind: its true width, for the converters know no other, but 4 inputs."""
    generator, found = torch.Generator().manual_seed(0), {}
    wide = {"ff.net.0.proj": 4, "ff_context.net.0.proj": 4, "norm1.linear": 6, "norm1_context.linear": 6, "proj_mlp": 4, "norm.linear": 3}
    double = [f"attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")]
    double += ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "norm1.linear", "norm1_context.linear"]
    single = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear"]
    names = [f"transformer_blocks.0.{name}" for name in double] + [f"single_transformer_blocks.0.{name}" for name in single]
    for name in names:
        rows = width * wide.get(name.split(".", 2)[2], 1)
        down, up = (0.3 * torch.randn(size, generator=generator) for size in ((4, 4), (rows, 4)))
        found[name] = Update(down, up, SCALE)
    return found


def narrow_flux() -> dict[str, Tensor]:
    """Return zeros in the published layout of Flux, with 4 inputs to every layer."""
    return {key: torch.zeros(shape[0], 4) if len(shape) == 2 else torch.zeros(shape[0]) for key, shape in published("flux", FLUX).items()}


WIDE: dict[str, tuple[Any, dict[str, int]]] = {
    "chroma": (ChromaTransformer2DModel, {"num_layers": 1, "num_single_layers": 1, "approximator_layers": 1}),
    "lumina2": (Lumina2Transformer2DModel, {"num_layers": 1, "num_refiner_layers": 1}),
}


@pytest.mark.parametrize("family", WIDE)
def test_every_layer_of_a_family_whose_converter_knows_the_true_width_alone_comes_back(family):
    """But with four inputs to a layer, as Flux above."""
    kind, small = WIDE[family]
    with torch.device("meta"):
        network = kind(**small)
    config, generator = dict(network.config), torch.Generator().manual_seed(0)
    rows = {name: layer.out_features for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    updates = {}
    for name, count in rows.items():
        down, up = (0.3 * torch.randn(size, generator=generator) for size in ((2, 4), (count, 2)))
        updates[name] = Update(down, up, SCALE)
    tensors, paths = comfyui_tensors(family, updates, config), comfyui_paths(family, config)
    assert {name.rsplit(".lora_")[0].removesuffix(".alpha") for name in tensors} <= paths.keys()
    shapes = published(family, config).items()
    zeros = {key: torch.zeros(shape[0], 4) if len(shape) == 2 else torch.zeros(shape) for key, shape in shapes}
    changed = to_diffusers(family, merged_by_comfyui(zeros, tensors, paths), config)
    for name, update in updates.items():
        torch.testing.assert_close(changed[f"{name}.weight"], SCALE * update.up @ update.down, atol=1e-5, rtol=0)


@pytest.mark.parametrize("left_out", ["none", "attn.to_q", "attn.to_k", "proj_mlp", "attn."])
def test_the_parts_of_a_fused_layer_of_flux_come_back_as_they_were(left_out):
    updates = {name: update for name, update in flux_updates().items() if left_out not in name}
    tensors = comfyui_tensors("flux", updates, FLUX)
    changed = to_diffusers("flux", merged_by_comfyui(narrow_flux(), tensors, comfyui_paths("flux", FLUX)), FLUX)
    for name, update in flux_updates().items():
        expected = SCALE * update.up @ update.down if name in updates else torch.zeros(len(update.up), 4)
        torch.testing.assert_close(changed[f"{name}.weight"], expected, atol=1e-5, rtol=0)


def test_diffusers_reads_the_flux_file_of_kohya_names_with_the_same_strength():
    updates = flux_updates()
    read = _convert_kohya_flux_lora_to_diffusers(comfyui_tensors("flux", updates, FLUX))
    assert len(read) == 2 * len(updates)
    for name, update in updates.items():
        change = read[f"transformer.{name}.lora_B.weight"] @ read[f"transformer.{name}.lora_A.weight"]
        torch.testing.assert_close(change, SCALE * update.up @ update.down, atol=1e-5, rtol=0)


def test_unequal_ranks_and_scales_of_a_fused_layer_are_kept():
    one, two = Update(torch.randn(2, 5), torch.randn(8, 2), 3.0), Update(torch.randn(3, 5), torch.randn(8, 3), 0.25)
    layers = {"transformer_blocks.1.attn1.to_q": one, "transformer_blocks.1.attn1.to_v": two}
    tensors = comfyui_tensors("pixart", layers, {})
    key = "diffusion_model.blocks.1.attn.qkv"
    assert tensors[f"{key}.lora_A.weight"].shape == (5, 5)
    change = tensors[f"{key}.alpha"] / 5 * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    expected = torch.cat([3.0 * one.up @ one.down, torch.zeros(8, 5), 0.25 * two.up @ two.down])
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-5)


def test_the_last_layers_of_flux_and_sd3_have_their_halves_in_the_other_order():
    update = Update(torch.eye(1), torch.arange(4.0)[:, None], 1.0)
    for family, layer in (("flux", "norm_out.linear"), ("sd3", "norm_out.linear"), ("sd3", "transformer_blocks.1.norm1_context.linear")):
        tensors = comfyui_tensors(family, {layer: update}, {"num_layers": 2})
        (up,) = [value for name, value in tensors.items() if name.endswith("lora_up.weight")]
        assert up.flatten().tolist() == [2, 3, 0, 1]


UNET = {"layers_per_block": 2, "down_block_types": ["DownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}


@pytest.mark.parametrize(
    ("family", "layer", "config"),
    [
        ("flux", "transformer_blocks.0.attn.to_b", {}),
        ("sd3", "transformer_blocks.0.attn.norm_q", {"num_layers": 1}),
        ("pixart", "adaln_single.unknown", {}),
        ("sdxl", "down_blocks.0.resnets.0.conv3", UNET),
        ("sdxl", "down_blocks.0.motion_modules.0.proj", UNET),
        ("sdxl", "down_blocks.0.resnets.0.conv1", {**UNET, "layers_per_block": [1, 2]}),
        ("sd", "down_blocks.0.resnets.0.conv1", {**UNET, "down_block_types": ["AttnDownBlock2D"]}),
    ],
)
def test_a_layer_without_a_known_place_is_refused_by_name(family, layer, config):
    with pytest.raises(ConfigError, match=f"`{layer}`: no place is known"):
        place(family, layer, config)


def test_an_upsampler_stands_behind_the_transformer_of_its_block_if_there_is_one():
    places = [place("sdxl", f"up_blocks.{block}.upsamplers.0.conv", UNET).module for block in (0, 1)]
    assert places == ["output_blocks.2.2.conv", "output_blocks.5.1.conv"]
