"""Exact checks against scenes whose attributes are known, true and wrong ones, and shares counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffalign.data.world.captions import caption, full_caption
from diffalign.data.world.checks import checks, shares
from diffalign.data.world.judge import adherence, read
from diffalign.data.world.scenes import ATTRIBUTES, Scene, random_scene, render

RED_STAR = Scene(shape="star", color="red", size="large", position="left", background="white")
EMPTY = Image.new("RGB", (64, 64), (248, 248, 248))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return render(RED_STAR, np.random.default_rng(0))


def test_a_true_caption_passes_in_everything_it_names(picture):
    assert checks(full_caption(RED_STAR), picture) == dict.fromkeys(ATTRIBUTES, True)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ATTRIBUTES.items() for value in values])
def test_a_wrong_attribute_fails_alone(picture, name, value):
    named = RED_STAR.attributes() | {name: value}
    right = value == getattr(RED_STAR, name)
    assert checks(caption(named), picture) == dict.fromkeys(ATTRIBUTES, True) | {name: right}


def test_only_what_the_prompt_names_is_checked(picture):
    assert checks("a blue star at the left", picture) == {"color": False, "shape": True, "position": True}
    assert checks("three dogs in the rain", picture) == {}


def test_a_picture_without_a_shape_can_only_have_the_right_background():
    asked = "a large red star at the left on a white background"
    assert checks(asked, EMPTY) == dict.fromkeys(ATTRIBUTES, False) | {"background": True}
    assert checks("a star on a black background", EMPTY) == {"shape": False, "background": False}


def test_fresh_scenes_pass_their_own_caption_and_fail_where_another_scene_differs():
    rng = np.random.default_rng(7)
    for _ in range(40):
        scene, other = random_scene(rng), random_scene(rng)
        same = {name: getattr(other, name) == value for name, value in scene.attributes().items()}
        assert checks(full_caption(scene), render(scene, rng)) == dict.fromkeys(ATTRIBUTES, True)
        assert checks(full_caption(scene), render(other, rng)) == same


def test_checks_are_the_parts_of_the_judges_adherence(picture):
    asked = "a small blue star at the left"
    assert list(checks(asked, picture).values()) == [False, False, True, True]
    assert adherence(asked, read(picture)) == 0.5


def test_shares_are_of_pictures_whose_prompt_names_the_attribute():
    found = [
        {"shape": True, "color": True},
        {"shape": True, "color": False},
        {"shape": False, "color": False, "position": True},
        {"shape": True},
        {},
    ]
    # everything right: first and fourth of four; shape 3 of 4; color 1 of 3; position 1 of 1; overall (3/4 + 1/3 + 1) / 3 = 25/36
    assert shares(found) == {
        "all": 0.5,
        "color": pytest.approx(1 / 3),
        "shape": 0.75,
        "position": 1.0,
        "overall": pytest.approx(25 / 36),
    }


def test_prompts_that_name_nothing_have_no_shares():
    assert shares([{}, {}]) == shares([]) == {}
