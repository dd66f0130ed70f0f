"""Negative guidance against two networks in two passes, and everything it must refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableCascadePriorPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.unets import StableCascadeUNet
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from diffalign.adapters import WEIGHTS, save_lora
from diffalign.backbones.sd import load_pipeline
from diffalign.errors import CheckpointError, ConfigError
from diffalign.infer.negative import attach, negative_guidance

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")

ATTENTION, MIXED = ["to_q", "to_k", "to_v", "to_out.0"], ["to_q", "conv1", "time_emb_proj", "proj_in"]
PROMPTS = ["a red star", "a large ring"]

# shared/goldens/npo.json: the published mixtures theta + alpha eta + beta delta, and guidance at scale 7.5.
W0 = [[-0.1549, -1.3706, -0.1319, 0.8848], [-0.2611, 0.6104, -0.0098, -1.4473], [-0.2039, 0.8738, -0.6816, 0.6339]]
W_POS = [[0.1922, 0.0918, -0.8625, 0.1596], [0.8184, -0.7649, 0.8042, -0.1383], [0.3196, -1.0187, -1.3147, 2.5228]]
LORA_A = [[0.4501, 0.2709, -0.8087, -0.0217], [-1.0413, 0.0702, 0.5797, -0.0599]]
LORA_B = [[0.1816, -0.6797], [-0.2567, -1.8189], [0.2111, 0.3372]]
MERGE_GENERAL = [
    [0.684967816, -0.4919756, -1.002965608, 0.479098648],
    [1.80938392, -0.372561448, -0.198858432, -0.570282],
    [-0.0946882, -0.197013256, -1.041653384, 1.74741668],
]
MERGE_SD15 = [
    [0.89493477, -0.2723195, -1.22073201, 0.37767331],
    [2.3270049, -0.61830181, -0.24612304, -0.3510275],
    [-0.06738525, -0.46471657, -1.13166673, 2.02579585],
]
E_POS, E_NEG = [[0.0461, 0.4024, -1.0115], [0.2167, -0.6123, 0.5036]], [[0.231, 0.6931, -0.2669], [2.1785, 0.1021, -0.259]]
GUIDED = [[-1.15575, -1.48715, -5.8514], [-12.535, -5.2559, 5.4605]]


def add(network: nn.Module, name: str, rank: int, seed: int, targets: list[str], alpha: int = 0, **options: Any) -> dict[str, Tensor]:
    """Add a random adapter, active; return what it adds to each weight."""
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=targets, init_lora_weights=False, **options)
    inject_adapter_in_model(config, network, adapter_name=name)
    network._hf_peft_config_loaded = True
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for path, layer in network.named_modules():
        if name in getattr(layer, "lora_A", {}):
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            for weight in (down, up):
                weight.data = 0.15 * torch.randn(weight.shape, generator=generator)
            deltas[path] = (alpha or rank) / rank * torch.einsum("or...,ri...->oi...", up, down).detach()
    return deltas


def merged(base: Any, *parts: tuple[dict[str, Tensor], float]) -> Any:
    """Return a copy of a network with scaled deltas added to its weights."""
    network = copy.deepcopy(base).requires_grad_(False)
    for deltas, scale in parts:
        for path, delta in deltas.items():
            network.get_submodule(path).weight += scale * delta
    return network


def draw(pipe: Any, scale: float = 5.0, steps: int = 2, images: int = 1, **options: Any) -> Tensor:
    options = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", "num_images_per_prompt": images, **options}
    return pipe(PROMPTS, num_inference_steps=steps, guidance_scale=scale, **options).images


@torch.no_grad()
def two_passes(pipe: Any, positive: Any, negative: Any, images: int, rescale: float) -> Tensor:
    """Return the latents of 25 DDIM steps with two networks, one call of each a step."""
    text, empty = pipe.encode_prompt(PROMPTS, "cpu", images, True)
    x = torch.randn(len(text), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(25)
    for t in scheduler.timesteps:
        e_pos, e_neg = positive(x, t, text).sample, negative(x, t, empty).sample
        e = e_neg + 5.0 * (e_pos - e_neg)
        deviation = e_pos.std(dim=(1, 2, 3), keepdim=True) / e.std(dim=(1, 2, 3), keepdim=True)
        x = scheduler.step(rescale * deviation * e + (1 - rescale) * e, t, x).prev_sample
    return x


def state(pipe: Any) -> list[Any]:
    """What must not change: modules with their attributes and hooks, trainable parameters, adapters."""
    modules = [(name, type(module), sorted(vars(module))) for name, module in pipe.unet.named_modules()]
    flags = [(name, parameter.requires_grad) for name, parameter in pipe.unet.named_parameters()]
    return [modules, flags, pipe.get_list_adapters(), pipe.get_active_adapters(), dict(pipe.unet._forward_pre_hooks)]


@pytest.fixture
def pipe(micro_sd: Path) -> Any:
    return load_pipeline(str(micro_sd))


@pytest.fixture
def pair(pipe: Any) -> Any:
    """A pipeline with the adapters `neg` and `third`, and `pos`, which is active."""
    for seed, name in enumerate(("neg", "third", "pos")):
        add(pipe.unet, name, 4, seed, ATTENTION)
    pipe.set_adapters("pos")
    return pipe


@pytest.fixture
def folder(micro_sd: Path, tmp_path: Path) -> Path:
    """A folder as training leaves it, with an adapter of attention, linear layers and convolutions."""
    other = load_pipeline(str(micro_sd))
    add(other.unet, "default", 2, 3, MIXED)
    save_lora(other, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("positive", "alpha", "beta", "targets", "images", "rescale"),
    [
        pytest.param("pos", 1.0, 1.0, ATTENTION, 1, 0.0, id="defaults"),
        pytest.param(None, 1.0, 1.0, ATTENTION, 1, 0.0, id="base weights in the positive branch"),
        pytest.param("pos", 0.6, 0.8, MIXED, 2, 0.0, id="other ranks and layers, partial weights, two images a prompt"),
        pytest.param("pos", 0.0, 1.0, MIXED, 1, 0.7, id="nothing of the positive adapter kept, guidance rescaled"),
        pytest.param("pos", 0.0, 0.0, ATTENTION, 1, 0.0, id="base weights in the negative branch"),
    ],
)
def test_images_equal_those_of_two_networks_in_two_passes(
    pipe: Any, positive: str | None, alpha: float, beta: float, targets: list[str], images: int, rescale: float
) -> None:
    base = copy.deepcopy(pipe.unet)
    eta = add(pipe.unet, "pos", 3, 1, ATTENTION, alpha=6) if positive else {}
    delta = add(pipe.unet, "neg", 5, 2, targets, alpha=4)
    pipe.set_adapters(positive or "neg")
    options = {"steps": 25, "images": images, "guidance_rescale": rescale}
    plain = draw(pipe, **options)
    with negative_guidance(pipe, "neg", positive=positive, alpha=alpha, beta=beta):
        with_it = draw(pipe, **options)
    expected = two_passes(pipe, merged(base, (eta, 1.0)), merged(base, (eta, alpha), (delta, beta)), images, rescale)
    torch.testing.assert_close(with_it, expected, atol=1e-4, rtol=0)
    assert (with_it - plain).abs().max() > 0.1


def test_the_network_is_called_once_a_step_and_only_negative_rows_change(pair: Any) -> None:
    calls: list[Tensor] = []
    pair.unet.register_forward_hook(lambda _network, _inputs, output: calls.append(output[0]))
    draw(pair, steps=1)
    with negative_guidance(pair, "neg"):
        draw(pair, steps=1)
    plain, mixed = calls
    torch.testing.assert_close(mixed[2:], plain[2:], atol=1e-6, rtol=1e-5)
    assert (mixed[:2] - plain[:2]).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def branches(weight: Tensor, x: Tensor, alpha: float, beta: float, **offsets: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the (negative, positive) output of one linear layer, as its rows of a stock pipeline's batch; offsets are (B, A)."""
    network = nn.Sequential(nn.Linear(*reversed(weight.shape), bias=False)).double()
    network[0].weight.data = weight
    for name, (up, down) in offsets.items():
        add(network, name, len(down), 0, ["0"])
        network[0].lora_A[name].weight.data, network[0].lora_B[name].weight.data = down, up
    pipe = type("StableDiffusionPipeline", (SimpleNamespace,), {})(unet=network, components={"unet": network})
    with torch.no_grad(), negative_guidance(pipe, "neg", positive="pos", alpha=alpha, beta=beta):
        return network(x.repeat(2, 1)).chunk(2)


@pytest.mark.parametrize(("alpha", "beta", "expected"), [(0.6, 0.8, MERGE_GENERAL), (0.75, 1.0, MERGE_SD15)])
def test_negative_rows_see_the_published_mixture_of_weights(alpha: float, beta: float, expected: list[list[float]]) -> None:
    base, positive, up, down, mixture = (torch.tensor(x, dtype=torch.float64) for x in (W0, W_POS, LORA_B, LORA_A, expected))
    eye = torch.eye(4, dtype=torch.float64)
    negatives, positives = branches(base, eye, alpha, beta, pos=(positive - base, eye), neg=(up, down))
    torch.testing.assert_close(negatives.T, mixture, atol=1e-8, rtol=0)
    torch.testing.assert_close(positives.T, positive, atol=1e-8, rtol=0)


def test_guidance_between_the_branches_gives_the_published_prediction() -> None:
    e_pos, e_neg, guided = (torch.tensor(x, dtype=torch.float64) for x in (E_POS, E_NEG, GUIDED))
    eye = torch.eye(2, dtype=torch.float64)
    negative, positive = branches(torch.zeros(3, 2, dtype=torch.float64), eye, 0.0, 1.0, pos=(e_pos.T, eye), neg=(e_neg.T, eye))
    torch.testing.assert_close(negative + 7.5 * (positive - negative), guided, atol=1e-8, rtol=0)


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("case", ["a file alone", "a file beside an adapter", "a loaded adapter"])
def test_a_block_leaves_the_pipeline_as_it_was(pipe: Any, folder: Path, case: str, fails: bool) -> None:
    for name in {"a file alone": (), "a file beside an adapter": ("pos",), "a loaded adapter": ("neg", "pos")}[case]:
        add(pipe.unet, name, 4, len(name + case), ATTENTION)
    pipe.unet.requires_grad_(True)
    before, active, images = state(pipe), pipe.get_active_adapters(), draw(pipe)
    try:
        with negative_guidance(pipe, "neg" if case == "a loaded adapter" else folder, beta=0.5):
            assert pipe.get_active_adapters() == active
            assert not torch.equal(draw(pipe), images)
            if fails:
                draw(pipe, callback_on_step_end=lambda *_: 1 / 0)
    except ZeroDivisionError:
        assert fails
    assert state(pipe) == before
    assert torch.equal(draw(pipe), images)


@torch.no_grad()
def test_attached_for_good_it_follows_casts_copies_and_new_weights_and_comes_off_again(pair: Any, folder: Path) -> None:
    plain, unet = draw(pair), pair.unet
    detach = attach(pair, folder / WEIGHTS)
    x, t, text = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor(5), torch.randn(2, 12, 16)
    here, twin = unet(x, t, text).sample, copy.deepcopy(unet)
    torch.testing.assert_close(unet.double()(x.double(), t, text.double()).sample.float(), here, atol=1e-5, rtol=0)
    assert torch.equal(unet.float()(x, t, text).sample, here)
    for layer in unet.modules():
        if "negative_guidance" in getattr(layer, "lora_B", {}):
            layer.lora_B["negative_guidance"].weight.mul_(2.0)
    assert (unet(x, t, text).sample - here)[0].abs().max() > 1e-3
    assert torch.equal(twin(x, t, text).sample, here)
    detach()
    assert torch.equal(draw(pair), plain)


def test_weights_of_set_adapters_count_on_top(pair: Any) -> None:
    with negative_guidance(pair, "neg", alpha=0.8, beta=0.3):
        expected = draw(pair)
    pair.set_adapters(["pos", "neg"], [1.0, 0.5])
    with negative_guidance(pair, "neg", alpha=0.8, beta=0.6):
        torch.testing.assert_close(draw(pair), expected, atol=1e-5, rtol=0)


def test_a_pipeline_that_shares_the_network_is_served_with_guidance_and_refused_without(pair: Any) -> None:
    other = StableDiffusionPipeline(**pair.components, requires_safety_checker=False)
    with negative_guidance(pair, "neg"):
        assert torch.equal(draw(pair), draw(other))  # and leaves "guidance is on" behind in the first
        with pytest.raises(ConfigError, match="guidance scale > 1"):
            draw(other, scale=1.0)


@pytest.mark.parametrize("generators", [1, 2])
def test_without_guidance_it_refuses_also_where_all_latents_are_equal(pair: Any, generators: int) -> None:
    same = [torch.Generator().manual_seed(0) for _ in range(generators)]
    with negative_guidance(pair, "neg"), pytest.raises(ConfigError, match="guidance scale > 1"):
        draw(pair, scale=1.0, steps=1, generator=same if generators > 1 else same[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.disable_lora(), "switched off"),
        (lambda p: p.fuse_lora(adapter_names=["pos"]), "fused"),
        (lambda p: p.set_adapters(["pos", "third"]), "are active|attach it again"),
        (lambda p: p.delete_adapters("neg"), "neither a LoRA file nor|attach it again"),
        (lambda p: p.unload_lora_weights(), "neither a LoRA file nor|attach it again"),
    ],
)
def test_adapters_in_another_state_are_refused_before_and_inside_the_block(pair: Any, change: Any, message: str) -> None:
    with negative_guidance(pair, "neg"):
        change(pair)
        with pytest.raises(ConfigError, match=message):
            draw(pair)
    with pytest.raises((ConfigError, CheckpointError), match=message), negative_guidance(pair, "neg"):
        pass


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda p: None, {"negative": "nge"}, "neither a LoRA file nor"),
        (lambda p: None, {"positive": "pso"}, "mean `pos`"),
        (lambda p: None, {"positive": "neg"}, "no loaded adapter but the negative"),
        (lambda p: None, {"alpha": -0.1}, "numbers >= 0"),
        (lambda p: None, {"beta": float("nan")}, "numbers >= 0"),
        (lambda p: attach(p, "neg"), {"negative": "third"}, "already"),
        (lambda p: add(p.unet, "dora", 2, 0, ["to_q"], use_dora=True), {"negative": "dora"}, "Dora"),
        (lambda p: add(p.unet, "dora", 2, 0, ["to_q"], use_dora=True), {"positive": "dora"}, "are active|Dora"),
        (lambda p: add(p.unet, "bias", 2, 0, ["to_out.0"], lora_bias=True), {"negative": "bias"}, "bias"),
        (lambda p: add(p.text_encoder, "neg", 2, 0, ["q_proj"]), {}, "`text_encoder`, which both branches share"),
        (lambda p: setattr(p, "__class__", type("PAGPipeline", (type(p),), {})), {}, "PAGPipeline"),
    ],
)
def test_what_cannot_be_done_right_is_refused(pair: Any, change: Any, arguments: dict[str, Any], message: str) -> None:
    change(pair)
    with pytest.raises((ConfigError, CheckpointError), match=message), negative_guidance(pair, **{"negative": "neg", **arguments}):
        pass


@pytest.mark.parametrize(
    ("change", "base", "message"),
    [
        (lambda t: {name.replace("unet.", "transformer."): value for name, value in t.items()}, None, "no such layer"),
        (lambda t: {name.replace("down_blocks.0", "down_blocks.7"): value for name, value in t.items()}, None, "no such layer"),
        (lambda t: {name: value.repeat_interleave(2, dim=1) for name, value in t.items()}, None, r"`unet` has a weight of \["),
        (lambda t: {**t, "text_encoder.layers.0.lora_A.weight": torch.zeros(2, 2)}, None, "text encoder"),
        (lambda t: {"numbers": torch.zeros(2)}, None, "does not fit|has nothing"),
        (lambda t: t, "owner/other", "made for owner/other"),
    ],
)
def test_a_file_for_another_network_is_refused(pipe: Any, folder: Path, change: Any, base: str | None, message: str) -> None:
    (folder / "run.json").write_text(json.dumps({"base": "elsewhere/sd"}))  # the same model by another path
    with negative_guidance(pipe, folder), pytest.raises(ConfigError, match="already"), negative_guidance(pipe, folder):
        pass
    tensors = {name: value.contiguous() for name, value in change(load_file(folder / WEIGHTS)).items()}
    save_file(tensors, folder / WEIGHTS, {"base": base} if base else None)
    before, images = state(pipe), draw(pipe)
    with pytest.raises(CheckpointError, match=message), negative_guidance(pipe, folder):
        pass
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"), negative_guidance(pipe, folder):
        pass
    assert state(pipe) == before
    assert torch.equal(draw(pipe), images)


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
