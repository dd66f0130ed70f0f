"""A personalised run in use: whose pictures it draws, what changes them and what does not."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError, RecordError
from diffalign.infer.sample import draw
from tests.infer.runs import write_run
from tests.infer.user_runs import TOKENS, WIDTH, choices, write_user_run
from tests.micro_models import DRAWN, picture, stock, write_micro
from tests.paths import ASSETS

FAMILIES = ["sd", "sdxl", "sd3", "flux", "pixart"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The micro models by family, each written once."""
    root = tmp_path_factory.mktemp("models")
    (root / "tiny-sd3").symlink_to(ASSETS / "tiny-sd3")
    return lambda family: root / family if (root / family).exists() else write_micro(family, root / family)


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """The personalised runs by family, each written once."""
    root = tmp_path_factory.mktemp("runs")
    return lambda family: root / family if (root / family).exists() else write_user_run(root / family, models(family))


@pytest.fixture(scope="module")
def run(runs):
    return runs("sd")


@pytest.fixture(scope="module")
def personal(run):
    return diffalign.load(run)


def drawn(user, family="sd", **options):
    """Return what a user's pipeline draws; as `picture` does with a stock one."""
    return picture(user, **{**DRAWN.get(family, {}), **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_user_sees_other_pictures_and_nobody_those_of_the_base_to_the_bit(models, runs, family):
    model, personal = models(family), diffalign.load(runs(family))
    ann, nobody = personal.for_user(choices()), personal.for_user(None)
    base = picture(stock(model))
    mine = drawn(ann, family)
    assert np.abs(mine - base).max() > 1e-3
    np.testing.assert_array_equal(drawn(nobody, family), base)
    np.testing.assert_array_equal(drawn(ann.mixed(None, 1.0), family), base)
    np.testing.assert_array_equal(drawn(ann, family), mine)  # the others have not disturbed it


@pytest.mark.parametrize("family", FAMILIES)
def test_several_prompts_and_pictures_of_each_are_drawn_as_one_by_one(runs, family):
    ann, prompts = diffalign.load(runs(family)).for_user(choices()), ["a red star", "a ring"]
    for scale in (1.0, 3.0):
        told = {"num_images_per_prompt": 2, "guidance_scale": scale, "num_inference_steps": 2, "output_type": "np", **DRAWN.get(family, {})}
        together = ann(prompts, generator=[torch.Generator().manual_seed(seed) for seed in range(4)], **told).images
        for place in (1, 2):
            one = ann(prompts[place // 2], generator=torch.Generator().manual_seed(place), **told | {"num_images_per_prompt": 1}).images
            np.testing.assert_allclose(together[place], one[0], atol=1e-4, err_msg=f"guidance {scale}")


def test_the_order_of_the_pairs_changes_nothing(personal):
    pairs = choices(5)
    expected = personal.for_user(pairs).tokens
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        torch.testing.assert_close(personal.for_user([pairs[i] for i in order]).tokens, expected, atol=1e-5, rtol=0.0)
    other = [(prompt, dispreferred, preferred) for prompt, preferred, dispreferred in pairs]
    assert (personal.for_user(other).tokens - expected).abs().max() > 1e-2


def test_a_saved_user_is_the_same_user(personal, tmp_path):
    ann = personal.for_user(choices())
    ann.save(tmp_path / "ann.safetensors")
    assert (tmp_path / "ann.safetensors").stat().st_size < 4096
    assert [path.name for path in tmp_path.iterdir()] == ["ann.safetensors"]
    for who in (tmp_path / "ann.safetensors", str(tmp_path / "ann.safetensors"), ann.tokens):
        assert torch.equal(personal.for_user(who).tokens, ann.tokens)
    for nobody in (personal.for_user(None), ann.mixed(None, 0.5)):
        with pytest.raises(ConfigError, match="a file holds a user's tokens"):
            nobody.save(tmp_path / "no.safetensors")


def test_a_mix_leads_from_one_user_to_the_other(personal):
    ann, bob, nobody = personal.for_user(choices()), personal.for_user(choices(seed=9)), personal.for_user(None)
    ends = drawn(ann), drawn(bob)
    np.testing.assert_array_equal(drawn(ann.mixed(bob, 0.0)), ends[0])
    np.testing.assert_array_equal(drawn(ann.mixed(bob, 1.0)), ends[1])
    torch.testing.assert_close(ann.mixed(bob, 0.25).tokens, 0.75 * ann.tokens + 0.25 * bob.tokens)
    for half in (ann.mixed(None, 0.25), ann.mixed(nobody, 0.25), nobody.mixed(ann, 0.75)):
        assert torch.equal(half.tokens, ann.tokens)
        assert half.strength == 0.75
    np.testing.assert_array_equal(drawn(nobody.mixed(ann, 1.0)), ends[0])
    assert nobody.mixed(None, 0.5).tokens is None
    with pytest.raises(ConfigError, match=r"`weight` is 1\.5"):
        ann.mixed(bob, 1.5)


def test_draw_takes_a_user(personal):
    told = {"num_inference_steps": 2, "batch_size": 2}
    images = draw(personal.for_user(choices()), ["a red star"] * 3, [3, 4, 5], **told)
    assert [image.size for image in images] == [(32, 32)] * 3
    expected = drawn(personal.for_user(choices()), guidance_scale=5.0)[0]
    np.testing.assert_allclose(np.asarray(images[0]) / 255, expected, atol=1.5 / 255)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_in_half_precision_draws_nearly_the_same(runs, family):
    run = runs(family)
    whole, half = (diffalign.load(run, dtype=dtype).for_user(choices()) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(half.tokens, whole.tokens, atol=1e-4, rtol=1e-4)
    # SD3's user keys are long (`layout.SHARP`), so that its logits round coarsely.
    np.testing.assert_allclose(drawn(half, family), drawn(whole, family), atol=0.15 if family == "sd3" else 0.05)


@pytest.mark.parametrize("family", ["sd", "sd3", "pixart", "tiny-sd3"])
def test_a_lora_lies_underneath_and_negative_guidance_on_top(models, runs, tmp_path, family):
    run, pairs = runs(family), choices()
    under = write_run(tmp_path / "dpo", models(family))
    over = write_run(tmp_path / "npo", models(family), method="diffusion_npo")
    alone, both = diffalign.load(run), diffalign.load(run, positive=under)
    assert np.abs(drawn(both.for_user(pairs), family) - drawn(alone.for_user(pairs), family)).max() > 1e-4
    np.testing.assert_array_equal(drawn(both.for_user(None), family), picture(diffalign.load(under)))
    steered = diffalign.load(over, positive=run)
    assert np.abs(drawn(steered.for_user(pairs), family) - drawn(alone.for_user(pairs), family)).max() > 1e-4
    np.testing.assert_allclose(drawn(steered.for_user(None), family), picture(diffalign.load(over)), atol=1e-5)
    still = diffalign.load(over, positive=run, beta=0.0)
    np.testing.assert_allclose(drawn(still.for_user(pairs), family), drawn(alone.for_user(pairs), family), atol=1e-5)


def test_runs_that_do_not_lie_on_each_other_are_refused(models, run, tmp_path):
    under = write_run(tmp_path / "dpo", models("sd"))
    elsewhere = write_run(tmp_path / "sdxl", models("sdxl"))
    over = write_run(tmp_path / "npo", models("sd"), method="diffusion_npo")
    for folder, options, sentence in (
        (run, {"positive": run}, "is a run of ppd itself"),
        (run, {"positive": over}, "is a run of diffusion_npo itself"),
        (run, {"positive": elsewhere}, "expected the same base"),
        (run, {"beta": 0.5}, "`alpha` and `beta` are for runs of diffusion_npo"),
        (under, {"positive": run}, "`positive` for these and personalised runs; this is diffusion_dpo"),
        (over, {"positive": run, "alpha": 0.5}, "no positive adapter to keep a part of"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            diffalign.load(folder, **options)


def test_what_a_user_cannot_be_made_of_is_refused(personal, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    ((prompt, good, _),) = choices(1)
    for who, error, sentence in (
        ([], ConfigError, "no pairs of this user"),
        ([(prompt, good, broken)], RecordError, r"pair 0, dispreferred: .*broken\.png: the image does not decode"),
        ([(prompt, good)], ConfigError, "pair 0: found tuple of 2"),
        (7, ConfigError, "found int; expected a user's pairs"),
        (300 * "ann", ConfigError, r"\.\.\.' is no file of tokens"),
        ("an\0n", ConfigError, "is no file of tokens"),
        ("ann", ConfigError, "'ann' is no file of tokens, and this run keeps no list"),
        (tmp_path / "no.safetensors", CheckpointError, r"no\.safetensors: cannot be read"),
        (torch.zeros(4), ConfigError, r"a tensor of 4 numbers; expected one \(U, D\) of tokens"),
        (torch.full((TOKENS, WIDTH), torch.nan), ConfigError, "the tokens are not finite"),
        (torch.zeros(TOKENS, WIDTH + 1), ConfigError, rf"tokens of shape \({TOKENS}, {WIDTH + 1}\)"),
    ):
        with pytest.raises(error, match=sentence):
            personal.for_user(who)
    with pytest.raises(ConfigError, match="`profile` is for"):
        personal.for_user(profile="likes red")


def test_one_pair_and_contradicting_pairs_work_and_are_said(personal, caplog):
    ((prompt, first, second),) = choices(1)
    with caplog.at_level(logging.INFO, "diffalign"):
        one = personal.for_user([(prompt, first, second)])
    assert "one pair of this user" in caplog.text
    assert one.tokens.abs().max() > 0
    caplog.clear()
    personal.for_user([*choices(2, seed=4), (prompt, first, first)])
    assert "the two images of pair 2 (counted from 0) are the same" in caplog.text
    both = personal.for_user([*choices(2, seed=4), (prompt, first, second), (prompt, second, first)])
    assert "pairs 2 and 3 (counted from 0) prefer the same two images both ways" in caplog.text
    assert both.tokens.isfinite().all()
    nothing = personal.for_user([(prompt, first, second), (prompt, second, first)])
    np.testing.assert_allclose(drawn(nothing), drawn(personal.for_user(None)), atol=1e-5)


def test_the_file_of_another_encoder_is_refused(models, personal, tmp_path):
    settings = {"hidden": 8}
    other = diffalign.load(write_user_run(tmp_path / "other", models("sd"), **settings))
    other.for_user(choices()).save(tmp_path / "ann.safetensors")
    with pytest.raises(CheckpointError, match=r"made by the user encoder"):
        personal.for_user(tmp_path / "ann.safetensors")
    with pytest.raises(ConfigError, match="different user encoders"):
        other.for_user(choices()).mixed(personal.for_user(choices()), 0.5)


def test_a_run_with_a_part_of_another_is_refused(models, run, tmp_path):
    other = write_user_run(tmp_path / "other", models("sd"), hidden=8)
    (other / "ip_adapter.safetensors").write_bytes((run / "ip_adapter.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"ip_adapter\.safetensors: trained with the user encoder"):
        diffalign.load(other)
    (other / "user_encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"user_encoder\.safetensors"):
        diffalign.load(other)
