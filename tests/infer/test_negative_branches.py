"""Negative guidance in pipelines that run the branches one after another, or the positive one first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableCascadePriorPipeline,
)
from diffusers.models.unets import StableCascadeUNet
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffalign.core.errors import ConfigError
from diffalign.infer.negative import negative_guidance
from tests.infer.adapters import add, merged

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")


def embeddings(pooled: str, *shape: int) -> dict[str, Tensor]:
    """Return prompt embeddings of both branches for pipelines without text encoders."""
    names = {"prompt_embeds": (3, 8), pooled: shape, "negative_prompt_embeds": (3, 8), f"negative_{pooled}": shape}
    return {name: torch.randn(2, *size, generator=torch.Generator().manual_seed(i)) for i, (name, size) in enumerate(names.items())}


def flux() -> tuple[Any, nn.Module, dict[str, Any]]:
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    sizes = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    network = FluxTransformer2DModel(**sizes, **heads)
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, network)
    return pipe, network, {**embeddings("pooled_prompt_embeds", 8), "height": 32, "width": 32, "true_cfg_scale": 4.0}


def cascade() -> tuple[Any, nn.Module, dict[str, Any]]:
    blocks = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    clip = {"clip_text_in_channels": 8, "clip_text_pooled_in_channels": 8, "clip_image_in_channels": 8, "conditioning_dim": 16}
    layers = {"down_num_layers_per_block": (1,), "up_num_layers_per_block": (1,), "block_types_per_layer": (blocks,), "switch_level": ()}
    repeats = {"down_blocks_repeat_mappers": (1,), "up_blocks_repeat_mappers": (1,), "num_attention_heads": (2,), "dropout": (0.0,)}
    network = StableCascadeUNet(in_channels=4, out_channels=4, block_out_channels=(16,), self_attn=True, **clip, **layers, **repeats)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8}
    text = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=4, bos_token_id=0, eos_token_id=1, **sizes))
    pipe = StableCascadePriorPipeline(None, text, network, DDPMWuerstchenScheduler(), resolution_multiple=16)
    return pipe, network, {**embeddings("prompt_embeds_pooled", 1, 8), "height": 64, "width": 64, "guidance_scale": 4.0}


def routed(positive: Any, negative: Any, batched: bool) -> Any:
    """Return a forward that hands each branch to its own network: the halves of a batch, or calls in turns; positive comes first."""
    turns = iter([positive, negative] * 100)

    def forward(**inputs: Any) -> Any:
        if not batched:
            return next(turns)(**inputs)
        halves = [{k: v.chunk(2)[i] if isinstance(v, Tensor) and len(v) == 4 else v for k, v in inputs.items()} for i in (0, 1)]
        return (torch.cat([next(turns)(**half)[0] for half in halves]),)

    return forward


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "targets"), [(flux, ["to_q", "proj_mlp", "linear", "x_embedder"]), (cascade, ["to_q", "mapper", "clip_txt_mapper"])]
)
def test_branches_in_turns_and_in_the_other_order_equal_two_networks(make: Any, targets: list[str], monkeypatch: Any) -> None:
    torch.manual_seed(0)
    pipe, network, options = make()
    pipe.to(torch.float64)  # rounding in float32 alone moves latents of this size by 3e-4
    options = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    base = copy.deepcopy(network.eval())
    delta = add(network, "neg", 2, 2, targets[:2])
    eta = add(network, "pos", 3, 1, targets)
    for layer in network.modules():
        if hasattr(layer, "lora_A"):
            layer.set_adapter("pos")

    def run() -> Tensor:
        return pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="latent", **options)[0]

    plain = run()
    with negative_guidance(pipe, "neg", alpha=0.7):
        images = run()
    assert torch.equal(run(), plain)
    networks = merged(base, (eta, 1.0)), merged(base, (eta, 0.7), (delta, 1.0))
    monkeypatch.setattr(network, "forward", routed(*networks, batched=make is cascade))
    torch.testing.assert_close(images, run(), atol=1e-4, rtol=1e-5)
    assert (images - plain).abs().max() > 1e-2


def test_branches_in_turns_are_refused_without_guidance_and_outside_their_contexts() -> None:
    pipe, network, options = flux()
    add(network, "neg", 2, 2, ["to_q"])
    for steps in (1, 2):
        with pytest.raises(ConfigError, match="without guidance"), negative_guidance(pipe, "neg"):
            pipe(num_inference_steps=steps, output_type="latent", **{**options, "true_cfg_scale": 1.0})
    assert "cache_context" not in vars(network)
    with negative_guidance(pipe, "neg"), pytest.raises(ConfigError, match="outside `cache_context"):
        network(hidden_states=torch.zeros(2, 4, 4))
