"""What single families are told besides x, t and the prompt, what may be absent, and in which precision the parts lie."""

from __future__ import annotations

import pytest
import torch

from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.table import load_backbone
from diffalign.models.diffusion.path import VPPath
from tests.contracts.calls import Call, assert_asked_alike, recorded
from tests.edit_models import condition_of, input_picture
from tests.micro_models import SIDE, TOKENS, picture, stock, write_micro

PROMPTS = ["a red star", "a large blue heart in the top"]
CPU = torch.device("cpu")


def load(folder, precision=torch.float32, **settings):
    return load_backbone(str(folder), CPU, precision=precision, settings=BackboneSettings(SIDE, **settings))


def asked(backbone, x, condition, t=0.5):
    """Return the inputs of the one call that `predict` makes, and its answer."""
    times = torch.full((len(x),), 500 if isinstance(backbone.path, VPPath) else t)
    with recorded(backbone.denoiser) as calls, torch.no_grad():
        output = backbone.predict(backbone.denoiser, x, times, condition)
    return calls[0].inputs, output


def test_sdxl_is_told_each_images_size_and_crop_in_the_stock_order(folder_of):
    backbone = load(folder_of("sdxl"))
    pipe = backbone.pipeline()
    with recorded(pipe.unet) as calls:
        frame = {"original_size": (64, 80), "crops_coords_top_left": (3, 5), "target_size": (32, 48)}
        picture(pipe, steps=1, guidance_scale=1.0, **frame)
    frames = torch.tensor([[64, 80, 3, 5, 32, 48], [32, 32, 0, 0, 32, 32]], dtype=torch.float32)
    assert torch.equal(calls[0].inputs["added_cond_kwargs.time_ids"], frames[:1])
    x, condition = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), backbone.encode_prompt(PROMPTS)
    inputs, told = asked(backbone, x, {**condition, "frames": frames})
    assert torch.equal(inputs["added_cond_kwargs.time_ids"], frames)
    _, whole = asked(backbone, x, condition)
    assert (told - whole)[0].abs().max() > 1e-3
    assert torch.equal(told[1], whole[1])  # its frame is that of an uncropped image of the latent's size


@pytest.mark.parametrize("name", ["sd", "pixart-alpha-1024", "sd3", "flux-dev"])
def test_others_are_not_told_what_they_do_not_know(folder_of, name):
    backbone = load(folder_of(name))
    x = torch.randn(2, *backbone.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    condition = backbone.encode_prompt(PROMPTS)
    _, plain = asked(backbone, x, condition)
    _, framed = asked(backbone, x, {**condition, "frames": torch.tensor([[64.0, 80, 3, 5, 32, 32]] * 2)})
    assert torch.equal(plain, framed)


def test_sdxls_empty_prompt_is_zeros_only_where_its_config_says_so(folder_of, tmp_path):
    zeros = load(folder_of("sdxl")).encode_prompt(["", "a red star"])
    assert all(not value[0].any() and value[1].any() for value in zeros.values())
    pipe = stock(folder_of("sdxl"))
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    pipe.save_pretrained(tmp_path / "said")
    said = load(tmp_path / "said").encode_prompt(["", "a red star"])
    assert all(value[0].any() for value in said.values())
    assert all(torch.equal(said[name][1], zeros[name][1]) for name in said)


def test_flux_dev_is_told_its_guidance_and_schnell_is_told_none(folder_of):
    outputs = []
    for scale in (1.0, 3.5):
        backbone = load(folder_of("flux-dev"), guidance_scale=scale)
        x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        inputs, output = asked(backbone, x, backbone.encode_prompt(PROMPTS))
        assert inputs["guidance"].tolist() == [scale, scale]
        outputs.append(output)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    schnell = load(folder_of("flux-schnell"), guidance_scale=3.5)
    assert "guidance" not in asked(schnell, x, schnell.encode_prompt(PROMPTS))[0]


def test_sd3_shifts_its_times_by_the_size_of_the_picture_where_its_scheduler_does(tmp_path):
    folder = write_micro("sd3", tmp_path / "model", use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    shifts = []
    for side in (SIDE, 2 * SIDE):
        backbone = load_backbone(str(folder), CPU, settings=BackboneSettings(side))
        pipe = backbone.pipeline()
        picture(pipe, steps=5, height=side, width=side)
        torch.testing.assert_close(backbone.path.solver_times(5).flip(0).float(), pipe.scheduler.sigmas, rtol=1e-5, atol=1e-6)
        shifts.append(backbone.path.shift)
    assert shifts[0] < shifts[1]


@pytest.mark.parametrize("name", ["pixart-sigma", "sd3", "flux-dev"])
def test_the_t5_prompt_is_as_long_as_chosen(folder_of, name):
    default, short = load(folder_of(name)), load(folder_of(name), max_sequence_length=16)
    long, words = (backbone.encode_prompt(PROMPTS)["prompt_embeds"].shape[1] for backbone in (default, short))
    clip = 12 if name == "sd3" else 0
    assert words == clip + 16
    assert long == clip + {"pixart-sigma": 300, "sd3": 256, "flux-dev": 512}[name]
    assert default.fingerprint() != short.fingerprint()


@pytest.mark.parametrize("absent", [["text_encoder"], ["text_encoder_2"], ["text_encoder_3"], ["text_encoder", "text_encoder_3"]])
def test_sd3_without_a_text_encoder_has_zeros_in_its_place(folder_of, tmp_path, absent):
    whole = load(folder_of("sd3"), max_sequence_length=16).encode_prompt(PROMPTS)
    backbone = load(write_micro("sd3", tmp_path / "model", absent=absent), max_sequence_length=16)
    some = backbone.encode_prompt(PROMPTS)
    words, pooled = whole["prompt_embeds"].clone(), whole["pooled_prompt_embeds"].clone()
    # Twelve tokens of both CLIPs side by side, 16 numbers each, then sixteen tokens of T5.
    places = {
        "text_encoder": (slice(12), slice(0, 16)),
        "text_encoder_2": (slice(12), slice(16, 32)),
        "text_encoder_3": (slice(12, None), slice(None)),
    }
    for encoder in absent:
        tokens, columns = places[encoder]
        words[:, tokens, columns] = 0.0
        if encoder != "text_encoder_3":
            pooled[:, columns] = 0.0
    torch.testing.assert_close(some["prompt_embeds"], words, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some["pooled_prompt_embeds"], pooled, rtol=1e-5, atol=1e-6)
    output = asked(backbone, torch.randn(2, 16, 8, 8), some)[1]
    assert output.isfinite().all()


@pytest.mark.parametrize("name", ["flux2-klein", "flux2-dev"])
def test_flux2_reads_an_input_picture_where_there_is_one(folder_of, name):
    """Stock pipelines want one of 64 pixels at least; those of one call are all of one picture."""
    backbone = load(folder_of(name), max_sequence_length=TOKENS[name], guidance_scale=3.5)
    pipe, source = backbone.pipeline(), input_picture(0, 64, 64)
    with recorded(backbone.denoiser) as calls:
        picture(pipe, PROMPTS[0], image=source, height=SIDE, width=SIDE + 16, guidance_scale=3.5)
    x, output = (calls[0].inputs["hidden_states"], calls[0].output)
    latent = backbone.latent_shape(SIDE, SIDE + 16)
    count = latent[1] * latent[2]
    assert x.shape[1] == count + backbone.latent_shape(64, 64)[1] ** 2
    condition = condition_of(backbone, PROMPTS[:1], optional=True)
    inputs, own = asked(backbone, x[:, :count].mT.unflatten(2, latent[1:]), condition, t=float(pipe.scheduler.sigmas[0]))
    assert_asked_alike(Call(inputs, own), calls[0])
    torch.testing.assert_close(own.flatten(2).mT, output[:, :count], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_autoencoder_stays_exact(folder, backbone, name, precision):
    half, exact = load(folder, precision, max_sequence_length=TOKENS.get(name), guidance_scale=3.5), backbone
    assert next(half.denoiser.parameters()).dtype == precision
    assert half.pipeline().vae.dtype == torch.float32
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    noise = torch.randn(2, *half.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    latents = exact.encode_image(pixels, noise)
    assert torch.equal(half.encode_image(pixels, noise), latents)
    outputs = [asked(one, latents, condition_of(one, PROMPTS))[1].float() for one in (half, exact)]
    difference = (outputs[0] - outputs[1]).norm() / outputs[1].norm()
    assert 1e-5 < difference < (0.05 if precision == torch.bfloat16 else 0.01)


def test_with_every_weight_trained_none_lies_in_half_precision(folder_of):
    backbone = load_backbone(str(folder_of("sd3")), CPU, precision=torch.bfloat16, full=True)
    assert {p.dtype for p in backbone.denoiser.parameters()} == {torch.float32}
