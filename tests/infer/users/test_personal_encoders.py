"""The encoders besides the set encoder, in use: whom each can serve, and what it says of the others."""

from __future__ import annotations

import functools
import logging

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.types import Noised, Query, Scores
from diffalign.infer.users import personal as module
from diffalign.infer.users.mixture import fit_weights
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.features import ClipFeatures
from diffalign.models.users.attach import equip
from diffalign.models.users.encoders import Sizes, make
from diffalign.models.users.settings import USER_ENCODERS
from diffalign.models.users.vlm import VlmStates
from diffalign.objectives import OBJECTIVES
from tests.infer.runs import write_run
from tests.infer.user_runs import SMALL, TOKENS, WIDTH, choices, write_user_run
from tests.micro_models import stock, write_micro
from tests.models.users.vlm_models import write_llava


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture(scope="module")
def mixture(base, tmp_path_factory):
    return write_user_run(tmp_path_factory.mktemp("mixture") / "run", base, "mixture", prototypes=3)


def test_one_hot_serves_its_training_users_alone(base, tmp_path):
    personal = diffalign.load(write_user_run(tmp_path / "run", base, "one_hot"))
    rows = personal.encoder.table.weight.view(3, TOKENS, WIDTH)
    assert torch.equal(personal.for_user("bob").tokens, rows[1])
    with pytest.raises(ConfigError, match=r"'bobb' .* 3 .*`bob`.*one_hot"):
        personal.for_user("bobb")
    with pytest.raises(ConfigError, match=r"pairs, vlm or mixture"):
        personal.for_user(choices())


def test_a_profile_is_a_text(base, tmp_path):
    personal = diffalign.load(write_user_run(tmp_path / "run", base, "profile", profiles="users.json"))
    red, blue = personal.for_user(profile="likes red"), personal.for_user(profile="a blue ring")
    assert red.tokens.shape == (TOKENS, WIDTH)
    assert (red.tokens - blue.tokens).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="reads no pairs; give `profile`"):
        personal.for_user(choices())
    with pytest.raises(ConfigError, match="`profile` is empty"):
        personal.for_user(profile=" ")
    with pytest.raises(ConfigError, match="leave out the other argument"):
        personal.for_user(choices(), profile="likes red")


def test_numbers_that_are_known_of_a_user_are_taken(base, tmp_path):
    personal = diffalign.load(write_user_run(tmp_path / "run", base, "vector", sizes={"features": 3}, vectors="users.json"))
    one, other = personal.for_user(torch.tensor([1.0, 0.0, 0.5])), personal.for_user(torch.tensor([0.0, 1.0, 0.5]))
    assert one.tokens.shape == (TOKENS, WIDTH)
    assert (one.tokens - other.tokens).abs().max() > 1e-3
    assert torch.equal(personal.for_user(one.tokens).tokens, one.tokens)
    with pytest.raises(ConfigError, match=r"2 numbers.*3 numbers"):
        personal.for_user(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"vector .*3 numbers"):
        personal.for_user(choices())


def test_a_vision_language_model_reads_as_many_pairs_as_in_training_and_once(base, tmp_path, monkeypatch, caplog):
    vlm = write_llava(tmp_path / "vlm")
    states = VlmStates(str(vlm), max_new_tokens=4)
    sizes = {"rows": states.rows, "features": states.width, "source": states.source}
    run = write_user_run(tmp_path / "run", base, "vlm", sizes=sizes, model=str(vlm), shots=2, max_new_tokens=4)
    personal, pairs = diffalign.load(run), choices(3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(run.rglob("*"))
    with caplog.at_level(logging.INFO, "diffalign"):
        ann = personal.for_user(pairs)
    assert "the first 2 of 3 pairs are read" in caplog.text
    assert ann.tokens.shape == (states.rows, WIDTH)
    torch.testing.assert_close(ann.tokens, personal.encoder({"user": states(personal_choices(pairs))[0][None]}, 1)[0])
    assert sorted(run.rglob("*")) == before  # a run may be given away
    assert [file.suffix for file in (tmp_path / "cache" / "diffalign" / "users").iterdir()] == [".safetensors"]
    monkeypatch.setattr(VlmStates, "__call__", None)
    assert torch.equal(personal.for_user(pairs[:2]).tokens, ann.tokens)
    write_llava(vlm, seed=1)
    with pytest.raises(CheckpointError, match=r"not the network"):
        diffalign.load(run).for_user(pairs)


def personal_choices(pairs):
    return module.read_choices(pairs)[:2]


def test_the_features_of_another_clip_are_refused(base, tmp_path):
    def write(folder, seed):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 12}
        CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder)
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
        return str(folder)

    clip = write(tmp_path / "clip", 0)
    sizes = {"features": 12, "source": ClipFeatures(clip).source}
    run = write_user_run(tmp_path / "run", base, sizes=sizes, features=clip)
    assert diffalign.load(run).for_user(choices()).tokens.shape == (TOKENS, WIDTH)
    write(tmp_path / "clip", 1)
    with pytest.raises(CheckpointError, match=r"not the network"):
        diffalign.load(run).for_user(choices())


def test_the_latents_of_another_vae_are_refused_and_those_of_its_own_in_half_precision_are_not(tmp_path):
    base = write_micro("sd", tmp_path / "model")
    run = write_user_run(tmp_path / "run", base)
    tokens = diffalign.load(run).for_user(choices()).tokens
    torch.testing.assert_close(diffalign.load(run, dtype=torch.float16).for_user(choices()).tokens, tokens, atol=1e-4, rtol=1e-4)
    pipe = stock(base)
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.neg_()
    pipe.vae.save_pretrained(base / "vae")
    with pytest.raises(CheckpointError, match=r"VAE of .*model: not the network"):
        diffalign.load(run).for_user(choices())


def test_a_mixture_knows_its_users_and_fits_new_ones(mixture, monkeypatch):
    monkeypatch.setattr(module, "fit_weights", functools.partial(fit_weights, steps=4, draws=2))
    personal = diffalign.load(mixture)
    encoder = personal.encoder
    expected = encoder.logits.weight[1].softmax(dim=0) @ encoder.prototypes
    torch.testing.assert_close(personal.for_user("bob").tokens.flatten(), expected)
    before = {name: value.clone() for name, value in personal.pipe.unet.state_dict().items()}
    new, other = personal.for_user(choices()), personal.for_user(choices(seed=1))
    with torch.no_grad():  # as callers have it who only draw
        again = personal.for_user(choices())
    assert torch.equal(new.tokens, again.tokens)
    assert not torch.equal(new.tokens, other.tokens)
    assert all(torch.equal(value, before[name]) for name, value in personal.pipe.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in personal.pipe.unet.parameters())
    with pytest.raises(ConfigError, match=r"'dan' .* 3 users"):
        personal.for_user("dan")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sdxl", torch.float32), ("sd3", torch.float32), ("flux", torch.float32), ("pixart", torch.float32), ("sd", torch.bfloat16)],
)
def test_a_new_user_is_fitted_on_every_family(tmp_path, monkeypatch, family, dtype):
    monkeypatch.setattr(module, "fit_weights", functools.partial(fit_weights, steps=2, draws=1))
    personal = diffalign.load(write_user_run(tmp_path / "run", write_micro(family, tmp_path / "model"), "mixture"), dtype=dtype)
    usual = personal.encoder({"user_weights": personal.encoder.usual().softmax(dim=0)[None]}, 1)[0]
    fitted = personal.for_user(choices(2)).tokens
    assert (fitted - usual).abs().max() > 1e-4  # the loss has a gradient with respect to the weights


def test_fitted_weights_lower_the_loss_of_the_pairs(mixture):
    personal = diffalign.load(mixture)
    told = personal.model, personal.encoder, module.read_choices(choices(2))
    likelihood = DiffusionLikelihood(personal.model.path, personal.model.predict, forward)
    losses = []

    def objective(scores):
        loss = OBJECTIVES["dpo"](scores, beta=5.0)
        losses.append(loss.mean().item())
        return loss

    weights = fit_weights(*told, likelihood, objective, steps=12, draws=4)
    assert weights.sum().item() == pytest.approx(1.0)
    assert np.mean(losses[-16:]) < np.mean(losses[:16])  # four steps each, which evens out the noise


class Known:
    """Stands in for a likelihood: the log-ratio of a pair is what the weights make of given numbers, without chance."""

    def __init__(self, gains):
        self.gains = gains

    def prepare(self, driver, batch, generator):
        zeros = torch.zeros(len(batch.x0), 2, 1, 1, 1)
        return Query(Noised(zeros, torch.zeros(len(zeros)), zeros, torch.ones(len(zeros))), batch.condition)

    def score(self, model, query):
        if model.user_branch.strength == 0.0:
            return torch.zeros(len(query.noised.t), 2)
        gain = query.condition["user_weights"] @ self.gains
        return torch.stack([gain, -gain], dim=1)

    def scores(self, policy, reference, batch):
        return Scores(policy, reference, batch.prob)


def test_the_fit_finds_the_prototype_that_the_pairs_speak_for(mixture):
    personal = diffalign.load(mixture)
    told = personal.model, personal.encoder, module.read_choices(choices(2))
    for best in range(3):
        gains = -torch.ones(3)
        gains[best] = 1.0
        weights = fit_weights(*told, Known(gains), functools.partial(OBJECTIVES["dpo"], beta=5.0), steps=60, draws=1)
        assert weights[best] > 0.8


def test_a_new_user_is_not_fitted_under_negative_guidance(base, mixture, tmp_path):
    over = write_run(tmp_path / "npo", base, method="diffusion_npo")
    personal = diffalign.load(over, positive=mixture)
    with pytest.raises(ConfigError, match=r"guidance.*npo"):
        personal.for_user(choices())
    assert personal.for_user("bob").tokens.shape == (TOKENS, WIDTH)


@pytest.mark.parametrize("encoder", ["one_hot", "mixture"])
def test_users_keep_their_numbers_among_held_out_pairs(base, tmp_path, encoder):
    run = write_user_run(tmp_path / "run", base, encoder)
    unet, fresh = stock(base).unet, Sizes(("bob", "cy"))
    equip(unet, make(USER_ENCODERS[encoder](**SMALL), fresh))
    module.restore(unet, run)
    for number, user in enumerate(fresh.users):
        found = unet.user_encoder({"user": torch.tensor([number])}, 1)[0]
        torch.testing.assert_close(found, diffalign.load(run).for_user(user).tokens)
    equip(unet, make(USER_ENCODERS[encoder](**SMALL), Sizes(("bob", "zoe"))))
    with pytest.raises(ConfigError, match=r"'zoe' \(1 of 2 users\)"):
        module.restore(unet, run)


def test_pairs_seen_by_another_network_are_not_judged(base, tmp_path):
    run, unet = write_user_run(tmp_path / "run", base), stock(base).unet
    equip(unet, make(USER_ENCODERS["pairs"](**SMALL), Sizes(features=256, source="another")))
    with pytest.raises(CheckpointError, match=r"another network"):
        module.restore(unet, run)


def test_a_run_with_a_part_of_another_is_not_judged(base, tmp_path):
    run, other = write_user_run(tmp_path / "run", base, "one_hot"), write_user_run(tmp_path / "other", base)
    (run / "ip_adapter.safetensors").write_bytes((other / "ip_adapter.safetensors").read_bytes())
    unet = stock(base).unet
    equip(unet, make(USER_ENCODERS["one_hot"](**SMALL), Sizes(("bob", "cy"))))
    with pytest.raises(CheckpointError, match=r"ip_adapter\.safetensors: trained with the user encoder"):
        module.restore(unet, run)
