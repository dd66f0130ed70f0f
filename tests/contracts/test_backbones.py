"""What every family of models keeps to: it encodes and predicts what the stock pipeline does, on a path that is its scheduler's."""

from __future__ import annotations

import functools

import pytest
import torch

from diffalign.core.errors import LatentError
from diffalign.data.batch import CachedPairs, Encoders
from diffalign.data.pixels import Framing
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.transforms import prompt_only
from diffalign.data.view import View
from diffalign.infer.negative import PIPELINES
from diffalign.methods.builders.residual import widen
from diffalign.models import adapters
from diffalign.models.backbones.folders import LAYOUTS
from diffalign.models.backbones.table import BACKBONES, component_of, family_of
from diffalign.models.diffusion.edm import EDMPath
from diffalign.models.diffusion.path import VPPath, mix, shifted, split, target
from tests.contracts.calls import assert_asked_alike, recorded, stock_of
from tests.edit_models import condition_of
from tests.micro_models import SIDE, picture

PROMPTS = ["a red star", "a large blue heart in the top"]


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latent_size(backbone, higher=0, wider=0):
    """Return rows and columns of a latent."""
    _, height, width = backbone.latent_shape(SIDE, SIDE)
    return height + higher, width + wider


def point(backbone, count=2, higher=0, seed=0):
    """Return a noised latent and its time."""
    channels, *_ = backbone.latent_shape(SIDE, SIDE)
    height, width = latent_size(backbone, higher)
    t = backbone.path.sample_t(count, torch.Generator().manual_seed(seed))
    return seeded(count, channels, height, width, seed=seed), t


def predict(backbone, x, t, condition):
    with torch.no_grad():
        return backbone.predict(backbone.denoiser, x, t, condition)


def rows(condition, *which):
    return {name: value[list(which)] for name, value in condition.items()}


def drawn(posterior, noise):
    return posterior.mean + posterior.std * noise


def scaled(vae, pixels, noise):
    """Return what stock pipelines decode as latents / scaling_factor + shift_factor."""
    return (drawn(vae.encode(pixels).latent_dist, noise) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def standardised(vae, pixels, noise):
    """Return what Qwen-Image's pipeline decodes, with the mean and the deviation of each channel, as a film of one picture."""
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    return (drawn(vae.encode(pixels[:, :, None]).latent_dist, noise[:, :, None])[:, :, 0] - mean) / deviation


def patched(vae, pixels, noise, eps=1e-4):
    """Return 2x2 patches with the mean and the deviation of the batch norm, as FLUX.2's pipeline decodes them."""
    z = drawn(vae.encode(pixels).latent_dist, torch.nn.functional.pixel_shuffle(noise, 2))
    mean, variance = (values.view(-1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
    return (torch.nn.functional.pixel_unshuffle(z, 2) - mean) / (variance + eps).sqrt()


def centred(vae, pixels, noise):
    """Return what Playground's pipeline decodes, over 0.5, the deviation of its latents."""
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    return (drawn(vae.encode(pixels).latent_dist, noise) - mean) * vae.config.scaling_factor / deviation / 0.5


LATENTS = {
    "playground": centred,
    "qwen_image": standardised,
    "qwen_image_edit": standardised,
    "krea2": standardised,
    "flux2": patched,
    "ernie_image": functools.partial(patched, eps=1e-5),
    "sana": lambda vae, pixels, noise: vae.encode(pixels).latent * vae.config.scaling_factor,
}


def test_every_layout_has_its_family_and_every_family_a_layout():
    assert {layout.family for layout in LAYOUTS.values()} == set(BACKBONES)


def test_a_layout_says_whether_the_branches_of_its_pipeline_are_told_apart():
    assert {kind: layout.steers for kind, layout in LAYOUTS.items()} == {kind: kind in PIPELINES for kind in LAYOUTS}


def test_a_backbone_is_of_its_family_and_frozen(backbone):
    pipe = backbone.pipeline()
    assert type(backbone) is BACKBONES[family_of(pipe)]
    assert backbone.denoiser is getattr(pipe, backbone.component)
    assert backbone.component == component_of(pipe)
    assert backbone.resolution == SIDE
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert not any(part.training or any(p.requires_grad for p in part.parameters()) for part in parts)


def test_an_image_becomes_what_the_stock_pipeline_decodes(backbone, name):
    pipe, pixels = backbone.pipeline(), seeded(3, 3, SIDE, SIDE + 16).clamp(-1, 1)
    shape, family = backbone.latent_shape(SIDE, SIDE + 16), family_of(pipe)
    assert shape[1:] == (SIDE // backbone.factor(pipe), (SIDE + 16) // backbone.factor(pipe))
    encoded = []
    for noise in (torch.zeros(3, *shape), seeded(3, *shape)):
        latents = backbone.encode_image(pixels, noise)
        assert latents.dtype == torch.float32
        assert latents.shape == (3, *shape)
        with torch.no_grad():
            torch.testing.assert_close(
                latents, (LATENTS.get(name) or LATENTS.get(family, scaled))(pipe.vae, pixels, noise), rtol=1e-5, atol=1e-5
            )
        encoded.append(latents)
    assert bool((encoded[0] - encoded[1]).abs().max() > 1e-2) is (family != "sana")  # whose autoencoder has no posterior


def test_latents_that_are_not_finite_are_refused_by_image(backbone):
    pixels = seeded(3, 3, SIDE, SIDE)
    pixels[1, 0, 0, 0] = torch.nan
    with pytest.raises(LatentError, match=r"not finite for images \[1\]") as refusal:
        backbone.encode_image(pixels, torch.zeros(3, *backbone.latent_shape(SIDE, SIDE)))
    assert refusal.value.images == [1]
    assert backbone.name in str(refusal.value)


def test_what_the_network_does_not_read_of_a_prompt_is_zeros_for_training(backbone):
    if backbone.picture == "needed":
        return  # whose text encoder sees a picture, or which is one of these families without one
    whole, kept = backbone.encode_prompt([*PROMPTS, ""]), backbone.prompt_for_training([*PROMPTS, ""])
    x, t = point(backbone, 3)
    assert torch.equal(predict(backbone, x, t, kept), predict(backbone, x, t, whole))
    assert all(torch.equal(kept[other], value) for other, value in whole.items() if other != "prompt_embeds" or backbone.reads_padding)
    if "prompt_attention_mask" in whole:
        padding = whole["prompt_attention_mask"] == 0
        assert padding.any()
        # Chroma's mask is added to what attention sees, and the mask of its padding is only lower.
        assert bool(kept["prompt_embeds"][padding].any()) is (family_of(backbone.pipeline()) == "chroma")


def test_a_cache_gives_the_condition_of_a_prompt_to_the_bit(backbone, tmp_path):
    if backbone.picture == "needed":
        return
    view = View(write_table(tmp_path / "table", [Record(prompt, prompt, (Candidate(image=b"1"),)) for prompt in PROMPTS]), [prompt_only])
    encoders = Encoders(backbone.encode_image, backbone.prompt_for_training, backbone.latent_shape, "micro")
    stored, expected = CachedPairs(view, encoders, Framing(SIDE), 1, tmp_path), backbone.prompt_for_training(["", *PROMPTS])
    for name, value in expected.items():
        rows = [stored.empty[name][0], *(stored[position, 0]["condition"][name] for position in range(2))]
        assert torch.equal(torch.stack(rows), value), name


def test_prompts_are_encoded_one_by_one_as_in_a_batch(backbone):
    together, alone = condition_of(backbone, [*PROMPTS, ""]), condition_of(backbone, PROMPTS[1:])
    for name, value in together.items():
        assert len(value) == 3
        assert value.isfinite().all()
        torch.testing.assert_close(value[1:2], alone[name], rtol=1e-5, atol=1e-5)


def test_predict_asks_and_answers_what_the_stock_pipeline_does(backbone):
    """Pictures higher than wide are taken for others than wider ones, so a swap of height and width would show."""
    pipe = backbone.pipeline()
    factor = backbone.factor(pipe)
    stock, (height, width) = stock_of(pipe, family_of(pipe)), latent_size(backbone, wider=32 // factor)
    prompts = PROMPTS[:1] if "Plus" in type(pipe).__name__ else PROMPTS  # which draws one picture at a time
    guidance = {name: value[: len(prompts)] if isinstance(value, list) else value for name, value in stock.guidance.items()}
    with recorded(backbone.denoiser) as calls:
        picture(pipe, list(prompts), steps=2, height=factor * height, width=factor * width, **guidance)
    asked = stock.prompts(prompts) * 2
    assert len(calls) == len(asked)
    times = pipe.scheduler.timesteps if isinstance(backbone.path, VPPath) else pipe.scheduler.sigmas
    for index, (call, texts) in enumerate(zip(calls, asked, strict=True)):
        t = times[index * 2 // len(calls)].expand(len(texts))
        x, output = stock.latent(call.x, height, width), stock.output(call.output, height, width)
        with recorded(backbone.denoiser) as ours:
            found = predict(backbone, x, t, condition_of(backbone, texts))
        assert len(ours) == 1
        assert_asked_alike(ours[0], call)
        # A learned variance stands behind the noise.
        torch.testing.assert_close(found, output[:, : x.shape[1]], rtol=1e-5, atol=1e-5)


def test_predict_keeps_the_shape_and_depends_on_all_it_is_told(backbone):
    x, t = point(backbone, higher=2)
    condition = condition_of(backbone, PROMPTS)
    output = predict(backbone, x, t, condition)
    assert output.shape == x.shape
    assert output.isfinite().all()
    others = {
        "x": predict(backbone, x + 0.1, t, condition),
        "t": predict(backbone, x, point(backbone, seed=1)[1], condition),
        "prompt": predict(backbone, x, t, rows(condition, 1, 0)),
    }
    if "reference" in condition:
        others["picture"] = predict(backbone, x, t, {**condition, "reference": 1.0 - condition["reference"]})
    for told, other in others.items():
        assert (output - other).abs().amax(dim=(1, 2, 3)).min() > 1e-4, told


def test_predict_is_the_same_for_a_batch_and_its_rows(backbone):
    x, t = point(backbone, 3)
    condition = condition_of(backbone, [*PROMPTS, ""])
    alone = [predict(backbone, x[i : i + 1], t[i : i + 1], rows(condition, i)) for i in range(3)]
    torch.testing.assert_close(predict(backbone, x, t, condition), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_mixing_is_undone_by_the_target_on_its_path(backbone):
    x0, t = point(backbone, 8)
    noise, path = seeded(*x0.shape, seed=9).double(), backbone.path
    x0 = x0.double()
    found = split(path, mix(path, x0, noise, t), target(path, x0, noise, t), t)
    torch.testing.assert_close(found, (x0, noise), rtol=1e-7, atol=1e-7)


def test_the_path_has_the_noise_levels_of_the_stock_scheduler(backbone):
    pipe, path = backbone.pipeline(), backbone.path
    if isinstance(path, VPPath):
        alpha, sigma = path.level(torch.arange(len(path.alphas_cumprod)))
        torch.testing.assert_close(alpha.square().float(), pipe.scheduler.alphas_cumprod, rtol=2e-5, atol=1e-7)
        torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))
        assert path.prediction == pipe.scheduler.config.prediction_type
        return
    assert path.prediction == ("v_prediction" if isinstance(path, EDMPath) else "velocity")
    if family_of(pipe) == "sana":  # whose solver has even steps from 0.999
        picture(pipe, steps=7)
        times = shifted(0.999 * torch.linspace(1.0, 0.0, 8, dtype=torch.float64), path.shift)
        torch.testing.assert_close(times.float(), pipe.scheduler.sigmas, rtol=1e-5, atol=1e-6)
        return
    for steps in (2, 3, 7):
        picture(pipe, steps=steps)
        torch.testing.assert_close(path.solver_times(steps).flip(0).float(), pipe.scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_with_its_adapter_off_a_model_is_its_base_bit_for_bit(own_backbone):
    x, t = point(own_backbone)
    condition = condition_of(own_backbone, PROMPTS)
    base = predict(own_backbone, x, t, condition)
    adapters.add_lora(own_backbone.denoiser, targets=own_backbone.lora_targets, rank=2)
    assert torch.equal(predict(own_backbone, x, t, condition), base)
    for name, parameter in own_backbone.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    assert (predict(own_backbone, x, t, condition) - base).abs().max() > 1e-2
    with adapters.disabled(own_backbone.denoiser):
        assert torch.equal(predict(own_backbone, x, t, condition), base)


def test_the_fingerprint_changes_with_the_encoders_alone(own_backbone):
    before, pipe = own_backbone.fingerprint(), own_backbone.pipeline()
    with torch.no_grad():
        next(own_backbone.denoiser.parameters()).add_(1.0)
    assert own_backbone.fingerprint() == before
    for part in [name for name in pipe.components if name.startswith(("vae", "text_encoder")) and pipe.components[name] is not None]:
        with torch.no_grad():
            next(pipe.components[part].parameters()).add_(1.0)
        assert own_backbone.fingerprint() != before, part
        with torch.no_grad():
            next(pipe.components[part].parameters()).sub_(1.0)


def test_the_vaes_fingerprint_is_of_its_encoder_in_whatever_precision(own_backbone):
    before, vae = own_backbone.vae_fingerprint(), own_backbone.pipeline().vae
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    for dtype in (torch.float16, torch.bfloat16):
        vae.to(dtype)
        assert own_backbone.vae_fingerprint() == before, dtype
        vae.float().load_state_dict(weights)
    for part, same in ((vae.decoder, True), (vae.encoder, False)):
        with torch.no_grad():
            next(part.parameters()).neg_()
        assert (own_backbone.vae_fingerprint() == before) is same
        vae.load_state_dict(weights)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # PyTorch, of the norms of queries in bfloat16
def test_a_residual_stream_in_float32_reaches_every_block_in_half_precision(own_backbone):
    model, condition, found = own_backbone, condition_of(own_backbone, PROMPTS), []
    x, t = point(model)
    exact = predict(model, x, t, condition)
    widen(model.denoiser)
    assert torch.equal(predict(model, x, t, condition), exact), "in float32 nothing changes"
    model.precision = torch.bfloat16
    for part in model.denoiser.children():
        for block in part if isinstance(part, torch.nn.ModuleList) else ():
            block.register_forward_pre_hook(
                lambda block, args, kwargs: found.append((type(block).__name__, (*args, *kwargs.values())[0].dtype)), with_kwargs=True
            )
    predict(model, x, t, condition)
    assert found
    assert not [name for name, dtype in found if dtype == torch.bfloat16]


def test_parked_encoders_go_to_the_cpu_and_what_is_trained_stays(backbone, monkeypatch):
    sent = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where, **_: sent.append((id(self), *where)) or self)
    backbone.park()
    parts = {id(part) for part in backbone.pipeline(whole=False).components.values() if isinstance(part, torch.nn.Module)}
    assert sorted(sent) == sorted((part, "cpu") for part in parts - {id(backbone.denoiser)})
