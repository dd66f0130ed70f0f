"""The embedded world: its counts, captions that read back, a judge that is right, tastes and users that mean their names."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from diffalign.core.errors import ConfigError
from diffalign.data.world.captions import OPTIONAL, VOCABULARY, caption, full_caption, parse, random_caption
from diffalign.data.world.judge import Reading, adherence, mean_adherence, read
from diffalign.data.world.scenes import ATTRIBUTES, SIZE, Scene, all_scenes, outline, random_scene, render, withheld_scenes
from diffalign.data.world.tastes import OPEN_ATTRIBUTES, TASTES, User, random_user, taste_score

PLAIN = Scene(shape="circle", color="red", size="large", position="center", background="white")
FRESH = 500
scenes = st.builds(Scene, **{name: st.sampled_from(values) for name, values in ATTRIBUTES.items()})


def drawn(seed: int = 0, **fixed: str) -> Image.Image:
    """Return a drawing of `PLAIN` with `fixed` attributes instead of its own."""
    return render(Scene(**{**PLAIN.attributes(), **fixed}), np.random.default_rng(seed))


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


@cache
def fresh() -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(2024)
    shown = [random_scene(rng) for _ in range(FRESH)]
    return [(scene, np.asarray(render(scene, rng), dtype=float)) for scene in shown]


def test_the_world_holds_every_combination_once():
    assert list(ATTRIBUTES) == ["size", "color", "shape", "position", "background"]
    assert [len(values) for values in ATTRIBUTES.values()] == [2, 8, 8, 5, 4]
    assert len(all_scenes()) == len(set(all_scenes())) == 2 * 8 * 8 * 5 * 4
    assert all_scenes() == all_scenes()


def test_the_withheld_scenes_are_a_fixed_eighth_in_which_every_attribute_occurs():
    withheld = withheld_scenes()
    assert withheld == withheld_scenes()
    assert len(withheld) == 2560 // 8
    assert withheld < set(all_scenes())
    for name, values in ATTRIBUTES.items():
        for part in (withheld, set(all_scenes()) - withheld):
            assert {getattr(scene, name) for scene in part} == set(values)


@given(scenes, st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_seed_fixes_the_drawing(scene, seed):
    once, again = (np.asarray(render(scene, np.random.default_rng(seed))) for _ in range(2))
    assert np.array_equal(once, again)
    assert once.shape == (SIZE, SIZE, 3)


def test_drawings_of_one_scene_differ():
    rng = np.random.default_rng(0)
    assert len({render(PLAIN, rng).tobytes() for _ in range(10)}) == 10


def test_random_scenes_keep_what_is_fixed_and_vary_the_rest():
    rng = np.random.default_rng(0)
    shown = [random_scene(rng, shape="star", color="blue") for _ in range(200)]
    assert {(scene.shape, scene.color) for scene in shown} == {("star", "blue")}
    for name in ("size", "position", "background"):
        assert {getattr(scene, name) for scene in shown} == set(ATTRIBUTES[name])


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_outlines_are_centred_with_half_extent_one(shape):
    for angle in (-0.08, 0.0, 0.5):
        points = outline(shape, angle)
        low, high = points.min(axis=0), points.max(axis=0)
        np.testing.assert_allclose(low + high, 0.0, atol=1e-12)
        assert (high - low).max() / 2 == pytest.approx(1.0)


def subsets() -> list[tuple[str, ...]]:
    return [part for count in range(len(OPTIONAL) + 1) for part in itertools.combinations(OPTIONAL, count)]


@pytest.mark.parametrize("named", subsets(), ids="+".join)
@given(scene=scenes)
@settings(max_examples=25)
def test_a_caption_reads_back_as_the_attributes_it_names(named, scene):
    wanted = {name: value for name, value in scene.attributes().items() if name == "shape" or name in named}
    text = caption(wanted)
    assert parse(text) == wanted
    assert parse(text.upper().replace(" at", ", at")) == wanted
    assert set(text.split()) <= set(VOCABULARY)


def test_captions_by_hand():
    assert full_caption(PLAIN) == "a large red circle in the center on a white background"
    assert caption({"shape": "star", "color": "orange"}) == "an orange star"
    assert parse("three dogs in the rain") == {}


def test_random_captions_name_the_shape_always_and_the_rest_by_chance():
    rng = np.random.default_rng(0)
    assert {random_caption(PLAIN, rng, keep=0.0) for _ in range(20)} == {"a circle"}
    assert {random_caption(PLAIN, rng, keep=1.0) for _ in range(20)} == {full_caption(PLAIN)}
    assert random_caption(PLAIN, rng, keep=1.0, without=("color", "background")) == "a large circle in the center"
    named = [parse(random_caption(PLAIN, rng)) for _ in range(2000)]
    for name in OPTIONAL:
        # three standard deviations: 3 * sqrt(0.25 / 2000) = 0.034
        assert sum(name in one for one in named) / 2000 == pytest.approx(0.5, abs=0.034)


@pytest.mark.parametrize("blur", [0.0, 0.8, 1.2])
def test_the_judge_is_right_on_fresh_drawings_sharp_or_blurred(blur):
    right = dict.fromkeys(ATTRIBUTES, 0)
    for scene, pixels in fresh():
        reading = read(picture(ndimage.gaussian_filter(pixels, (blur, blur, 0))))
        for name, value in scene.attributes().items():
            right[name] += reading.attributes.get(name) == value
    assert {name: count for name, count in right.items() if count < 0.99 * FRESH} == {}


def test_the_judge_measures_place_size_and_colour():
    reading = read(drawn(position="left", size="small", color="blue", background="gray"))
    assert reading.center == pytest.approx((-12.0, 0.0), abs=2.1)  # jitter 1.5, half a pixel of reading
    assert reading.radius == pytest.approx(9.0, abs=1.6)
    np.testing.assert_allclose(reading.fill, (40, 75, 210), atol=25)
    np.testing.assert_allclose(reading.ground, 145, atol=16)
    assert reading.overlap > 0.8


def test_the_judge_reads_any_size_and_mode():
    image = drawn(shape="heart", color="green")
    for other in (image.resize((256, 256)), image.convert("RGBA"), image.resize((512, 512)).convert("RGBA")):
        assert read(other).attributes == read(image).attributes
    assert read(image).attributes == {**PLAIN.attributes(), "shape": "heart", "color": "green"}


def test_noise_hardly_ever_shows_a_shape():
    found = sum("shape" in read(picture(np.random.default_rng(seed).uniform(0, 255, (64, 64, 3)))).attributes for seed in range(200))
    assert found <= 0.05 * 200


@pytest.mark.parametrize("color", ["white", "black", "gray"])
def test_a_plain_picture_shows_its_background_and_nothing_else(color):
    reading = read(Image.new("RGB", (64, 64), color))
    assert reading.attributes == {"background": color}
    assert np.isnan(reading.radius)
    assert reading.overlap == 0.0


def half() -> np.ndarray:
    return np.where(np.arange(64)[:, None, None] < 32, 255.0, 0.0) * np.ones((64, 64, 3))


def gradient() -> np.ndarray:
    return np.linspace(0, 255, 64)[None, :, None] * np.ones((64, 64, 3))


@pytest.mark.parametrize("pixels", [half(), gradient(), half().transpose(1, 0, 2)], ids=["half", "gradient", "sideways"])
def test_pictures_that_are_no_scene_read_without_a_shape(pixels):
    assert "shape" not in read(picture(pixels)).attributes


def reading(**attributes: str) -> Reading:
    return Reading(attributes, np.zeros(3), np.zeros(3), (0.0, 0.0), 10.0, 1.0)


@pytest.mark.parametrize(
    ("prompt", "share"),
    [
        ("a large red heart at the left on a gray background", 0.6),  # size, color, shape of five
        ("a large red heart", 1.0),
        ("a star", 0.0),
        ("a small red heart", 2 / 3),
        ("on a gray background", 0.0),  # this reading knows no background
    ],
)
def test_adherence_is_the_share_of_named_attributes_that_are_shown(prompt, share):
    shown = reading(size="large", color="red", shape="heart", position="right")
    assert adherence(prompt, shown) == pytest.approx(share)


def test_a_prompt_that_names_nothing_has_no_adherence_and_does_not_enter_the_mean():
    assert math.isnan(adherence("", reading(shape="star")))
    images = [drawn(), drawn(), drawn()]
    # 1 of 1, nothing named, 1 of 2
    assert mean_adherence(["a circle", "hello", "a blue circle"], images) == pytest.approx(0.75)


def test_a_drawing_adheres_to_its_own_captions():
    rng = np.random.default_rng(5)
    shown = [random_scene(rng) for _ in range(100)]
    assert mean_adherence([random_caption(scene, rng) for scene in shown], [render(scene, rng) for scene in shown]) >= 0.99


@given(scenes, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_tastes_lie_between_zero_and_one(scene, seed):
    image = render(scene, np.random.default_rng(seed))
    assert len(TASTES) >= 6
    assert all(0.0 <= taste_score(name, image) <= 1.0 for name in TASTES)


@pytest.mark.parametrize(
    ("taste", "attribute", "falling"),
    [
        ("warm", "color", [("orange", "yellow", "red"), ("pink",), ("green", "purple"), ("blue", "cyan")]),
        ("large", "size", [("large",), ("small",)]),
        ("centred", "position", [("center",), ("left", "right", "top", "bottom")]),
        ("bright_background", "background", [("white",), ("beige",), ("gray",), ("black",)]),
        ("contrast", "color", [("red", "blue", "purple"), ("green",), ("orange", "cyan", "pink"), ("yellow",)]),
        ("bright_shape", "color", [("yellow",), ("pink", "orange", "cyan"), ("green",), ("red", "purple", "blue")]),
        ("high", "position", [("top",), ("left", "right", "center"), ("bottom",)]),
    ],
)
def test_tastes_order_pictures_as_their_names_say(taste, attribute, falling):
    means = [
        [np.mean([taste_score(taste, drawn(seed, **{attribute: value})) for seed in range(12)]) for value in group] for group in falling
    ]
    assert sorted(value for group in falling for value in group) == sorted(ATTRIBUTES[attribute])
    for better, worse in itertools.pairwise(means):
        assert min(better) > max(worse)


def test_every_taste_has_an_order_that_is_tested():
    marks = test_tastes_order_pictures_as_their_names_say.pytestmark
    assert {case[0] for mark in marks for case in mark.args[1]} == set(TASTES) == set(OPEN_ATTRIBUTES)


def test_a_picture_without_a_shape_pleases_nobody():
    assert {taste_score(name, Image.new("RGB", (64, 64), "white")) for name in TASTES} == {0.0}


def test_an_unknown_taste_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"there is no taste `wram`\. Did you mean `warm`"):
        taste_score("wram", drawn())


def test_a_user_is_the_weighted_sum_of_tastes():
    shown = drawn()
    user = User({"large": 2.0, "warm": -0.5})
    assert user.utility(shown) == pytest.approx(2.0 * taste_score("large", shown) - 0.5 * taste_score("warm", shown))
    assert user.utility(read(shown)) == user.utility(shown)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_the_chance_of_a_vote_is_bradley_terry(temperature):
    first, second = drawn(size="large"), drawn(size="small")
    user = User({"large": 1.0}, temperature)
    strength = [math.exp(taste_score("large", image) / temperature) for image in (first, second)]
    assert user.prob(first, second) == pytest.approx(strength[0] / sum(strength), rel=1e-12)
    assert user.prob(first, second) + user.prob(second, first) == pytest.approx(1.0)
    assert user.prob(first, first) == 0.5


def test_a_user_at_temperature_zero_never_errs():
    first, second = drawn(size="large"), drawn(size="small")
    user = User({"large": 1.0})
    assert (user.prob(first, second), user.prob(second, first), user.prob(first, first)) == (1.0, 0.0, 0.5)
    rng = np.random.default_rng(0)
    assert {user.vote(first, second, rng) for _ in range(50)} == {1.0}
    assert user.vote(first, first, rng) == 0.5


def test_a_user_near_temperature_zero_errs_with_no_chance_worth_naming():
    assert User({"large": 1.0}, 1e-4).prob(drawn(size="small"), drawn(size="large")) == pytest.approx(0.0, abs=1e-300)


def test_votes_come_as_often_as_their_chance_says():
    first, second = read(drawn(size="large")), read(drawn(size="small"))
    user = User({"large": 1.0}, temperature=0.8)
    chance = user.prob(first, second)
    rng = np.random.default_rng(0)
    votes = [user.vote(first, second, rng) for _ in range(4000)]
    assert set(votes) == {0.0, 1.0}
    # four standard deviations: 4 * sqrt(0.25 / 4000) = 0.032
    assert np.mean(votes) == pytest.approx(chance, abs=0.032)
    assert 0.6 < chance < 0.9


def test_random_users_repeat_with_their_seed_and_weigh_one_in_all():
    ann, again, bob = (random_user(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert ann == again
    assert ann != bob
    assert set(ann.weights) == set(TASTES)
    assert sum(abs(weight) for weight in ann.weights.values()) == pytest.approx(1.0)
