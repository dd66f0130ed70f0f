"""Sliders in use: off is the base, values change pictures, the nearest picture of several is kept, and what is no value is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import diffalign
from diffalign.core.errors import ConfigError
from diffalign.infer.embed_users import embed_sliders, embed_users
from diffalign.infer.users.neighbours import neighbours, rps_select
from tests.infer.user_runs import TOKENS, WIDTH, choices, write_user_run
from tests.micro_models import picture, stock, write_micro

SLIDERS = ("brightness", "size")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_micro("sd", tmp_path_factory.mktemp("base") / "micro-sd")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return write_user_run(tmp_path_factory.mktemp("slider") / "run", base, "slider", attributes=list(SLIDERS))


@pytest.fixture(scope="module")
def personal(run):
    return diffalign.load(run)


def test_all_off_is_the_base_to_the_bit_and_each_slider_changes_the_picture(base, personal):
    plain = picture(stock(base))
    for off in ({}, {"size": None}):
        np.testing.assert_array_equal(picture(personal.for_user(off)), plain)
    low, high, size = (picture(personal.for_user(on)) for on in ({"brightness": 0.0}, {"brightness": 1.0}, {"size": 0.0}))
    assert min(np.abs(a - b).max() for a, b in ((low, plain), (high, low), (size, low))) > 1e-3


def test_the_tokens_are_those_of_the_sliders_that_are_on_and_a_file_keeps_them(personal, run, tmp_path):
    bright, both = personal.for_user({"brightness": 0.8}), personal.for_user({"brightness": 0.8, "size": 0.1})
    assert bright.tokens.shape == (2 * TOKENS, WIDTH)
    assert torch.equal(bright.tokens[:TOKENS], both.tokens[:TOKENS])
    assert not bright.tokens[TOKENS:].any()
    file = embed_sliders(run, {"brightness": 0.8}, tmp_path / "bright.safetensors")
    assert torch.equal(personal.for_user(file).tokens, bright.tokens)
    with pytest.raises(ConfigError, match="is there already"):
        embed_sliders(run, {"brightness": 0.8}, file)
    with pytest.raises(ConfigError, match=r"`slider` is 'sise'\. Did you mean `size`\?"):
        embed_sliders(run, {"sise": 0.8}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="user_encoder slider reads of a user values of sliders, and not pairs"):
        embed_users(run, "votes.parquet", file)


def test_what_sets_no_slider_is_refused(personal, base, tmp_path):
    with pytest.raises(ConfigError, match=r"slider `size` is 1\.5; expected a number from 0, lowest, to 1"):
        personal.for_user({"size": 1.5})
    with pytest.raises(ConfigError, match="of the sliders brightness, size"):
        personal.for_user(choices())
    vector = diffalign.load(write_user_run(tmp_path / "run", base, "vector", sizes={"features": 3}, vectors="users.json"))
    with pytest.raises(ConfigError, match="has no sliders to set"):
        vector.for_user({"size": 0.5})


def test_neighbours_lie_within_reach_and_begin_with_what_is_wanted():
    settings = neighbours({"brightness": 0.95, "size": 0.5}, 40, 0.1, seed=3)
    values = np.array([[one["brightness"], one["size"]] for one in settings])
    assert settings[0] == {"brightness": 0.95, "size": 0.5}
    assert values.max() == 1.0
    assert np.abs(values - values[0]).max() <= 0.1
    assert np.ptp(values[:, 1]) > 0.15
    assert settings == neighbours({"brightness": 0.95, "size": 0.5}, 40, 0.1, seed=3)


def test_the_picture_that_measures_nearest_to_what_was_wanted_is_kept(personal):
    # of quantiles evenly spaced in [0, 1] a measure is its own level
    measured = iter([0.9, 0.35, 0.2])
    own = {"num_inference_steps": 1, "guidance_scale": 1.0}
    best = rps_select(personal, {"size": 0.3}, "a star", {"size": lambda _: next(measured)}, candidates=3, seed=5, **own)
    assert best.distance == pytest.approx(0.05, abs=1e-6)
    assert best.sliders == neighbours({"size": 0.3}, 3, 0.1, seed=5)[1]
    again = personal.for_user(best.sliders)("a star", generator=torch.Generator().manual_seed(6), **own).images[0]
    assert again.tobytes() == best.image.tobytes()
    unseen = rps_select(personal, {"size": 0.3}, "a star", {"size": lambda _: float("nan")}, candidates=1, **own)
    assert unseen.distance == 1.0
    with pytest.raises(ConfigError, match=r"no measure of the slider `size`\. Did you mean `sise`"):
        rps_select(personal, {"size": 0.3}, "a star", {"sise": lambda _: 0.0})
    with pytest.raises(ConfigError, match="candidates is 0 and reach"):
        rps_select(personal, {"size": 0.3}, "a star", {"size": lambda _: 0.0}, candidates=0)
    with pytest.raises(ConfigError, match="the value of one slider or more"):
        rps_select(personal, {}, "a star", {})
