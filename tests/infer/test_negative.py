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
    SD3Transformer2DModel,
    StableCascadePriorPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
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

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["to_q", "conv1", "time_emb_proj", "proj_in"]
PROMPTS = ["a red star", "a large ring"]


def add(network: nn.Module, name: str, *, rank: int, seed: int, targets: list[str], lora_alpha: int | None = None) -> dict[str, Tensor]:
    """Add a random adapter, active; return what it adds to each weight."""
    config = LoraConfig(r=rank, lora_alpha=lora_alpha or rank, target_modules=targets, init_lora_weights=False)
    inject_adapter_in_model(config, network, adapter_name=name)
    network._hf_peft_config_loaded = True
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for path, layer in network.named_modules():
        if name in getattr(layer, "lora_A", {}):
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            for weight in (down, up):
                weight.data = 0.15 * torch.randn(weight.shape, generator=generator)
            deltas[path] = (lora_alpha or rank) / rank * torch.einsum("or...,ri...->oi...", up, down).detach()
    return deltas


def merged(base: Any, *parts: tuple[dict[str, Tensor], float]) -> Any:
    """Return a copy of a network with scaled deltas added to its weights."""
    network = copy.deepcopy(base).requires_grad_(False)
    for deltas, scale in parts:
        for path, delta in deltas.items():
            network.get_submodule(path).weight += scale * delta
    return network


def draw(pipe: Any, *, scale: float = 5.0, steps: int = 3, images: int = 1, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"num_images_per_prompt": images, "generator": generator, "output_type": "latent", **options}
    return pipe(PROMPTS, num_inference_steps=steps, guidance_scale=scale, **options).images


@torch.no_grad()
def two_passes(pipe: Any, positive: Any, negative: Any, *, scale: float, images: int, rescale: float) -> Tensor:
    """Return the latents of 25 DDIM steps with two networks, one call of each a step."""
    text, empty = pipe.encode_prompt(PROMPTS, "cpu", images, True)
    x = torch.randn(len(text), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(25)
    for t in scheduler.timesteps:
        e_pos, e_neg = positive(x, t, text).sample, negative(x, t, empty).sample
        e = e_neg + scale * (e_pos - e_neg)
        deviation = e_pos.std(dim=(1, 2, 3), keepdim=True) / e.std(dim=(1, 2, 3), keepdim=True)
        x = scheduler.step(rescale * deviation * e + (1 - rescale) * e, t, x).prev_sample
    return x


@pytest.fixture
def pipe(micro_sd: Path) -> Any:
    return load_pipeline(str(micro_sd))


@pytest.fixture
def pair(pipe: Any) -> Any:
    """A pipeline with the adapters `pos`, active, and `neg`."""
    add(pipe.unet, "pos", rank=4, seed=1, targets=ATTENTION)
    add(pipe.unet, "neg", rank=4, seed=2, targets=ATTENTION)
    pipe.set_adapters("pos")
    return pipe


@pytest.fixture
def negative_folder(micro_sd: Path, tmp_path: Path) -> Path:
    """A folder as training leaves it, with an adapter of attention and convolutions."""
    other = load_pipeline(str(micro_sd))
    add(other.unet, "default", rank=2, seed=3, targets=CONVOLUTIONS)
    save_lora(other, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("positive", "alpha", "beta", "targets", "images", "rescale"),
    [
        pytest.param("pos", 1.0, 1.0, ATTENTION, 1, 0.0, id="defaults"),
        pytest.param(None, 1.0, 1.0, ATTENTION, 1, 0.0, id="base weights in the positive branch"),
        pytest.param("pos", 0.6, 0.8, CONVOLUTIONS, 2, 0.0, id="other ranks and layers, partial weights, two images a prompt"),
        pytest.param("pos", 0.0, 1.0, CONVOLUTIONS, 1, 0.7, id="nothing of the positive adapter kept, guidance rescaled"),
        pytest.param("pos", 0.0, 0.0, ATTENTION, 1, 0.0, id="base weights in the negative branch"),
    ],
)
def test_images_equal_those_of_two_networks_in_two_passes(
    pipe: Any, positive: str | None, alpha: float, beta: float, targets: list[str], images: int, rescale: float
) -> None:
    base = copy.deepcopy(pipe.unet)
    eta = add(pipe.unet, "pos", rank=3, seed=1, targets=ATTENTION, lora_alpha=6) if positive else {}
    delta = add(pipe.unet, "neg", rank=5, seed=2, targets=targets, lora_alpha=4)
    networks = merged(base, (eta, 1.0)), merged(base, (eta, alpha), (delta, beta))
    expected = two_passes(pipe, *networks, scale=5.0, images=images, rescale=rescale)
    options = {"scale": 5.0, "steps": 25, "images": images, "guidance_rescale": rescale}
    pipe.set_adapters(positive or "neg")
    plain = draw(pipe, **options)
    with negative_guidance(pipe, "neg", positive=positive, alpha=alpha, beta=beta):
        images_with_it = draw(pipe, **options)
    torch.testing.assert_close(images_with_it, expected, atol=1e-4, rtol=0)
    assert (images_with_it - plain).abs().max() > 0.1


def test_the_network_is_called_once_a_step_and_only_negative_rows_change(pair: Any) -> None:
    calls: list[Tensor] = []
    pair.unet.register_forward_hook(lambda _network, _inputs, output: calls.append(output[0]))
    draw(pair, steps=1)
    with negative_guidance(pair, "neg"):
        draw(pair, steps=1)
    plain, mixed = calls
    assert len(mixed) == 4
    torch.testing.assert_close(mixed[2:], plain[2:], atol=1e-6, rtol=1e-5)
    assert (mixed[:2] - plain[:2]).abs().amax(dim=(1, 2, 3)).min() > 1e-2


def stand_in(network: nn.Module) -> Any:
    """A pipeline by name, around a network of one linear layer."""
    kind = type("StableDiffusionPipeline", (SimpleNamespace,), {})
    return kind(unet=network, components={"unet": network}, do_classifier_free_guidance=True)


def one_layer(weight: Tensor, **offsets: tuple[Tensor, Tensor]) -> nn.Module:
    """A linear layer of given weight, in a module, with adapters of given (B, A) at scale 1."""
    network = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).to(weight.dtype)
    network[0].weight.data = weight
    for name, (up, down) in offsets.items():
        config = LoraConfig(r=len(down), lora_alpha=len(down), target_modules=["0"])
        inject_adapter_in_model(config, network, adapter_name=name)
        network[0].lora_A[name].weight.data, network[0].lora_B[name].weight.data = down, up
    return network


# shared/goldens/npo.json: W0, W_pos, and the negative adapter's B and A at scale 1 (lora_alpha = r).
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


@pytest.mark.parametrize(("alpha", "beta", "expected"), [(0.6, 0.8, MERGE_GENERAL), (0.75, 1.0, MERGE_SD15)])
def test_the_negative_rows_see_the_published_mixture_of_weights(alpha: float, beta: float, expected: list[list[float]]) -> None:
    base, positive, up, down = (torch.tensor(x, dtype=torch.float64) for x in (W0, W_POS, LORA_B, LORA_A))
    network = one_layer(base, pos=(positive - base, torch.eye(4, dtype=torch.float64)), neg=(up, down))
    with torch.no_grad(), negative_guidance(stand_in(network), "neg", positive="pos", alpha=alpha, beta=beta):
        out = network(torch.eye(4, dtype=torch.float64).repeat(2, 1))
    torch.testing.assert_close(out[:4].T, torch.tensor(expected, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(out[4:].T, positive, atol=1e-8, rtol=0)


def test_guidance_of_two_branches_gives_the_published_prediction() -> None:
    e_pos = torch.tensor([[0.0461, 0.4024, -1.0115], [0.2167, -0.6123, 0.5036]], dtype=torch.float64)
    e_neg = torch.tensor([[0.231, 0.6931, -0.2669], [2.1785, 0.1021, -0.259]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    network = one_layer(torch.zeros(3, 2, dtype=torch.float64), pos=(e_pos.T, eye), neg=(e_neg.T, eye))
    with torch.no_grad(), negative_guidance(stand_in(network), "neg", positive="pos", alpha=0.0):
        negative, positive = network(eye.repeat(2, 1)).chunk(2)
    expected = torch.tensor([[-1.15575, -1.48715, -5.8514], [-12.535, -5.2559, 5.4605]], dtype=torch.float64)
    torch.testing.assert_close(negative + 7.5 * (positive - negative), expected, atol=1e-8, rtol=0)


def state(pipe: Any) -> tuple[Any, ...]:
    """What must not change: modules, flags, adapters, hooks."""
    network = pipe.unet
    flags = [(name, parameter.requires_grad) for name, parameter in network.named_parameters()]
    own = [(name, type(module), sorted(vars(module))) for name, module in network.named_modules()]
    return flags, own, list(vars(network).get("peft_config", {})), pipe.get_active_adapters(), dict(network._forward_pre_hooks)


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_block_with_a_file_leaves_the_pipeline_as_it_was(pipe: Any, negative_folder: Path, positive: bool, fails: bool) -> None:
    if positive:
        add(pipe.unet, "pos", rank=4, seed=1, targets=ATTENTION)
    pipe.unet.requires_grad_(True)
    before, images = state(pipe), draw(pipe)
    try:
        with negative_guidance(pipe, negative_folder):
            assert pipe.get_active_adapters() == (["pos"] if positive else [])
            assert not torch.equal(draw(pipe), images)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert state(pipe) == before
    assert torch.equal(draw(pipe), images)


def test_a_block_with_a_loaded_adapter_leaves_the_pipeline_as_it_was(pair: Any) -> None:
    before, images = state(pair), draw(pair)

    def fail(*_: Any) -> Any:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), negative_guidance(pair, "neg"):
        draw(pair, callback_on_step_end=fail)
    assert state(pair) == before
    assert torch.equal(draw(pair), images)


def test_a_file_and_a_loaded_adapter_give_the_same_images(pipe: Any, negative_folder: Path) -> None:
    add(pipe.unet, "pos", rank=4, seed=1, targets=ATTENTION)
    with negative_guidance(pipe, negative_folder / WEIGHTS, beta=0.5):
        from_file = draw(pipe)
    add(pipe.unet, "neg", rank=2, seed=3, targets=CONVOLUTIONS)
    with negative_guidance(pipe, "neg", positive="pos", beta=0.5):
        torch.testing.assert_close(draw(pipe), from_file, atol=1e-6, rtol=0)


@torch.no_grad()
def test_attached_for_good_it_follows_copies_and_casts_and_comes_off_again(pair: Any) -> None:
    plain, unet = draw(pair), pair.unet
    detach = attach(pair, "neg")
    images = draw(pair)
    x, t, text = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), torch.tensor(5), torch.randn(2, 12, 16)
    twin = copy.deepcopy(unet)
    here = unet(x, t, text).sample
    torch.testing.assert_close(unet.double()(x.double(), t, text.double()).sample.float(), here, atol=1e-5, rtol=0)
    assert torch.equal(unet.float()(x, t, text).sample, here)
    for layer in unet.modules():
        if "neg" in getattr(layer, "lora_B", {}):
            layer.lora_B["neg"].weight.mul_(2.0)
    assert (unet(x, t, text).sample - here)[0].abs().max() > 1e-3
    assert torch.equal(twin(x, t, text).sample, here)
    assert not torch.equal(images, plain)
    detach()
    assert torch.equal(draw(pair), plain)


def test_weights_of_set_adapters_count_on_top(pair: Any) -> None:
    with negative_guidance(pair, "neg", alpha=0.8, beta=0.3):
        expected = draw(pair)
    pair.set_adapters(["pos", "neg"], [1.0, 0.5])
    with negative_guidance(pair, "neg", alpha=0.8, beta=0.6):
        torch.testing.assert_close(draw(pair), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_without_guidance_it_refuses(pair: Any, scale: float) -> None:
    with negative_guidance(pair, "neg"), pytest.raises(ConfigError, match="guidance scale > 1"):
        draw(pair, scale=scale)


def test_without_guidance_it_refuses_a_batch_of_equal_latents_too(pair: Any) -> None:
    with negative_guidance(pair, "neg"), pytest.raises(ConfigError, match="guidance scale > 1"):
        draw(pair, scale=1.0, generator=[torch.Generator().manual_seed(0) for _ in PROMPTS])


def test_a_pipeline_that_shares_the_network_is_refused_without_guidance_and_served_with_it(pair: Any) -> None:
    draw(pair)  # leaves "guidance is on" behind in the first pipeline
    other = StableDiffusionPipeline(**pair.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with negative_guidance(pair, "neg"):
        images = draw(pair)
        assert torch.equal(draw(other), images)
        with pytest.raises(ConfigError, match="guidance scale > 1"):
            draw(other, scale=1.0)


def test_image_to_image_is_served(pair: Any) -> None:
    other = StableDiffusionImg2ImgPipeline(**pair.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    options = {"image": torch.rand(2, 3, 32, 32), "steps": 5}
    plain = draw(other, **options)
    with negative_guidance(other, "neg"):
        assert not torch.equal(draw(other, **options), plain)


def fuse(pipe: Any) -> None:
    pipe.fuse_lora(adapter_names=["pos"])


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda p: p.disable_lora(), "switched off"), (fuse, "fused"), (lambda p: p.set_adapters(["pos", "neg", "third"]), "are active")],
)
def test_adapters_in_another_state_are_refused(pair: Any, change: Any, message: str) -> None:
    add(pair.unet, "third", rank=2, seed=4, targets=ATTENTION)
    pair.set_adapters("pos")
    change(pair)
    with pytest.raises(ConfigError, match=message), negative_guidance(pair, "neg"):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.disable_lora(), "switched off"),
        (fuse, "fused"),
        (lambda p: p.set_adapters("neg"), "attach it again"),
        (lambda p: p.delete_adapters("neg"), "attach it again"),
        (lambda p: p.unload_lora_weights(), "attach it again"),
        (lambda p: add(p.unet, "third", rank=2, seed=4, targets=ATTENTION), "attach it again"),
    ],
)
def test_adapters_changed_inside_the_block_are_refused(pair: Any, change: Any, message: str) -> None:
    with negative_guidance(pair, "neg"):
        change(pair)
        with pytest.raises(ConfigError, match=message):
            draw(pair)


def test_adapters_that_are_no_sum_of_weights_are_refused(pipe: Any) -> None:
    for name, options, message in (("dora", {"use_dora": True}, "Dora"), ("bias", {"lora_bias": True}, "bias")):
        config = LoraConfig(r=2, target_modules=["to_out.0"], **options)
        inject_adapter_in_model(config, pipe.unet, adapter_name=name)
        with pytest.raises(ConfigError, match=message), negative_guidance(pipe, name, positive=None):
            pass
        pipe.delete_adapters(name)


def test_a_negative_adapter_in_the_text_encoder_is_refused(pair: Any) -> None:
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), pair.text_encoder, adapter_name="neg")
    with pytest.raises(ConfigError, match="`text_encoder`, which both branches share"), negative_guidance(pair, "neg"):
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"negative": "nge"}, CheckpointError, "neither a LoRA file nor"),
        ({"negative": "neg", "positive": "pso"}, ConfigError, "mean `pos`"),
        ({"negative": "neg", "positive": "neg"}, ConfigError, "no loaded adapter but the negative"),
        ({"negative": "neg", "alpha": -0.1}, ConfigError, "numbers >= 0"),
        ({"negative": "neg", "beta": float("nan")}, ConfigError, "numbers >= 0"),
    ],
)
def test_wrong_arguments_are_refused(pair: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), negative_guidance(pair, **arguments):
        pass


def test_a_second_time_is_refused_and_leaves_the_first_alone(pair: Any, negative_folder: Path) -> None:
    with negative_guidance(pair, negative_folder):
        images = draw(pair)
        for second in (negative_folder, "neg"):
            with pytest.raises(ConfigError, match="already"), negative_guidance(pair, second):
                pass
        assert torch.equal(draw(pair), images)


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: renamed(t, "unet.", "transformer."), "no such layer"),
        (lambda t: renamed(t, "down_blocks.0", "down_blocks.7"), "no such layer"),
        (lambda t: {name: value.repeat_interleave(2, dim=1) for name, value in t.items()}, r"`unet` has a weight of \["),
        (lambda t: {**t, "text_encoder.layers.0.lora_A.weight": torch.zeros(2, 2)}, "text encoder"),
        (lambda t: {"numbers": torch.zeros(2)}, "does not fit|has nothing"),
    ],
)
def test_a_file_for_another_network_is_refused(pipe: Any, negative_folder: Path, change: Any, message: str) -> None:
    file = negative_folder / WEIGHTS
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file)
    before, images = state(pipe), draw(pipe)
    with pytest.raises(CheckpointError, match=message), negative_guidance(pipe, negative_folder):
        pass
    assert state(pipe) == before
    assert torch.equal(draw(pipe), images)


def test_a_file_that_names_another_base_is_refused(pipe: Any, negative_folder: Path) -> None:
    (negative_folder / "run.json").write_text(json.dumps({"base": "elsewhere/sd"}))
    with negative_guidance(pipe, negative_folder):
        pass
    (negative_folder / "run.json").write_text(json.dumps({"base": "owner/other"}))
    with pytest.raises(CheckpointError, match="made for owner/other"), negative_guidance(pipe, negative_folder):
        pass
    save_file(load_file(negative_folder / WEIGHTS), negative_folder / WEIGHTS, {"base": "owner/third"})
    with pytest.raises(CheckpointError, match="made for owner/third"), negative_guidance(pipe, negative_folder):
        pass


def test_a_damaged_file_is_refused(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"), negative_guidance(pipe, tmp_path / "x.safetensors"):
        pass


def test_an_unknown_pipeline_is_refused(pair: Any) -> None:
    pair.__class__ = type("StableDiffusionPAGPipeline", (StableDiffusionPipeline,), {})
    with pytest.raises(ConfigError, match="StableDiffusionPAGPipeline"), negative_guidance(pair, "neg"):
        pass


def embeddings(count: int, *shape: int, seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def flux() -> tuple[Any, dict[str, Any]]:
    network = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, network)
    branches = {"prompt_embeds": embeddings(2, 3, 8, seed=1), "pooled_prompt_embeds": embeddings(2, 8, seed=2)}
    negatives = {"negative_prompt_embeds": embeddings(2, 3, 8, seed=3), "negative_pooled_prompt_embeds": embeddings(2, 8, seed=4)}
    return pipe, {**branches, **negatives, "height": 32, "width": 32, "true_cfg_scale": 4.0}


def sd3() -> tuple[Any, dict[str, Any]]:
    network = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    )
    pipe = StableDiffusion3Pipeline(network, FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, None, None, None)
    branches = {"prompt_embeds": embeddings(2, 3, 8, seed=1), "pooled_prompt_embeds": embeddings(2, 8, seed=2)}
    negatives = {"negative_prompt_embeds": embeddings(2, 3, 8, seed=3), "negative_pooled_prompt_embeds": embeddings(2, 8, seed=4)}
    return pipe, {**branches, **negatives, "height": 32, "width": 32, "guidance_scale": 4.0}


def cascade() -> tuple[Any, dict[str, Any]]:
    network = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(16,),
        num_attention_heads=(2,),
        down_num_layers_per_block=(1,),
        up_num_layers_per_block=(1,),
        down_blocks_repeat_mappers=(1,),
        up_blocks_repeat_mappers=(1,),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),),
        clip_text_in_channels=8,
        clip_text_pooled_in_channels=8,
        clip_image_in_channels=8,
        self_attn=True,
        switch_level=(),
        dropout=(0.0,),
    )
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8}
    text = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=4, bos_token_id=0, eos_token_id=1, **sizes))
    pipe = StableCascadePriorPipeline(None, text, network, DDPMWuerstchenScheduler(), resolution_multiple=16)
    branches = {"prompt_embeds": embeddings(2, 3, 8, seed=1), "prompt_embeds_pooled": embeddings(2, 1, 8, seed=2)}
    negatives = {"negative_prompt_embeds": embeddings(2, 3, 8, seed=3), "negative_prompt_embeds_pooled": embeddings(2, 1, 8, seed=4)}
    return pipe, {**branches, **negatives, "height": 64, "width": 64, "guidance_scale": 4.0, "output_type": "pt"}


def routed(positive: Any, negative: Any, order: str) -> Any:
    """Return a forward that hands each branch to its own network, one call each; `order` "alternating" is positive first, in turns."""
    turns = 0

    def forward(**inputs: Any) -> Any:
        nonlocal turns
        turns += 1
        if order == "alternating":
            return (positive if turns % 2 else negative)(**inputs)
        networks = (negative, positive) if order == "negative first" else (positive, negative)
        halves = [{k: v.chunk(2)[i] if isinstance(v, Tensor) and len(v) == 4 else v for k, v in inputs.items()} for i in (0, 1)]
        outputs = [network(**half) for network, half in zip(networks, halves, strict=True)]
        return (torch.cat([output[0] for output in outputs]),)

    return forward


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "component", "targets", "order"),
    [
        (flux, "transformer", ["to_q", "to_out.0", "proj_mlp", "linear", "x_embedder"], "alternating"),
        (sd3, "transformer", ["to_q", "add_k_proj", "linear", "context_embedder"], "negative first"),
        (cascade, "prior", ["to_q", "to_out.0", "mapper", "clip_txt_mapper"], "positive first"),
    ],
)
def test_other_layouts_of_the_branches_equal_two_networks(
    make: Any, component: str, targets: list[str], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    pipe, options = make()
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, component).eval()

    def run() -> Tensor:
        out = pipe(num_inference_steps=4, generator=torch.Generator().manual_seed(0), **{"output_type": "latent", **options})
        return out[0] if order == "positive first" else out.images

    base = copy.deepcopy(network)
    eta = add(network, "pos", rank=3, seed=1, targets=targets)
    delta = add(network, "neg", rank=2, seed=2, targets=targets[:2])
    for layer in network.modules():
        if hasattr(layer, "set_adapter") and hasattr(layer, "lora_A"):
            layer.set_adapter("pos")
    plain = run()
    with negative_guidance(pipe, "neg", alpha=0.7):
        images = run()
    with monkeypatch.context() as patch:
        patch.setattr(network, "forward", routed(merged(base, (eta, 1.0)), merged(base, (eta, 0.7), (delta, 1.0)), order))
        expected = run()
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=1e-5)
    assert (images - plain).abs().max() > 1e-2
    assert torch.equal(run(), plain)


def test_branches_one_after_another_are_refused_without_guidance_and_outside_their_contexts() -> None:
    pipe, options = flux()
    pipe.set_progress_bar_config(disable=True)
    add(pipe.transformer, "neg", rank=2, seed=2, targets=["to_q"])
    for steps in (1, 2):
        with pytest.raises(ConfigError, match="without guidance"), negative_guidance(pipe, "neg"):
            pipe(num_inference_steps=steps, output_type="latent", **{**options, "true_cfg_scale": 1.0})
    assert "cache_context" not in vars(pipe.transformer)
    with negative_guidance(pipe, "neg"), pytest.raises(ConfigError, match="outside `cache_context"):
        pipe.transformer(hidden_states=torch.zeros(2, 4, 4))
