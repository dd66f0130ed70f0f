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
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.negative import attach, negative_guidance
from diffalign.models.adapter_files import WEIGHTS
from diffalign.models.adapters import save_lora
from diffalign.models.backbones.table import load_pipeline
from tests.infer.adapters import add, merged

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`")

ATTENTION, MIXED = ["to_q", "to_k", "to_v", "to_out.0"], ["to_q", "conv1", "time_emb_proj", "proj_in"]
PROMPTS = ["a red star", "a large ring"]

# tests/golden/data/npo.json: the published mixtures theta + alpha eta + beta delta, and guidance at scale 7.5.
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


def draw(pipe: Any, scale: float = 5.0, steps: int = 2, images: int = 1, **options: Any) -> Tensor:
    options = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", "num_images_per_prompt": images, **options}
    return pipe(PROMPTS, num_inference_steps=steps, guidance_scale=scale, **options).images


@torch.no_grad()
def two_passes(pipe: Any, positive: Any, negative: Any, images: int, rescale: float) -> Tensor:
    """Return the latents of eight DDIM steps with two networks, one call of each a step."""
    text, empty = pipe.encode_prompt(PROMPTS, "cpu", images, True)
    x = torch.randn(len(text), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(8)
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
    save_lora(other, tmp_path / "run", "unet")
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
    options = {"steps": 8, "images": images, "guidance_rescale": rescale}
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
        (lambda t: {"numbers": torch.zeros(2)}, None, "stand nowhere"),
        (lambda t: t, "owner/other", "made for owner/other"),
    ],
)
def test_a_file_for_another_network_is_refused(pipe: Any, folder: Path, change: Any, base: str | None, message: str) -> None:
    facts = {"base": "elsewhere/sd", "method": "self_npo", "train_method": "lora"}  # the same model by another path
    (folder / "run.json").write_text(json.dumps(facts))
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
