"""Drift of pictures, against arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.rewards.drift import (
    appearance,
    brightness,
    contrast,
    diversity,
    features,
    high_frequency,
    pixel_grid,
    saturation,
    sharpness,
    warmth,
)
from diffalign.rewards.hacking import alarm
from tests.rewards.models import pictures, write_clip


def flat(color, size=(16, 16)):
    return Image.new("RGB", size, color)


def test_saturation_is_the_spread_of_the_three_colours_over_all_pixels():
    image = flat((255, 0, 0), (4, 1))  # red, spread 1
    image.putpixel((1, 0), (128, 128, 128))  # grey, 0
    image.putpixel((2, 0), (51, 0, 0))  # a dark red: of full HSV saturation, and yet hardly vivid: 51 / 255
    image.putpixel((3, 0), (255, 153, 204))  # pink, 102 / 255
    assert saturation(image) == pytest.approx((1 + 0 + 0.2 + 0.4) / 4)


def test_brightness_contrast_and_warmth_are_means_over_all_pixels():
    image = flat("black", (2, 1))
    image.putpixel((1, 0), (255, 0, 51))  # luma 0.299 + 0.114 / 5 = 0.3218, red minus blue 0.8
    assert brightness(image) == pytest.approx(0.1609)
    assert contrast(image) == pytest.approx(0.1609)
    assert warmth(image) == pytest.approx(0.4)


def test_sharpness_is_the_variance_of_the_laplacian_inside_the_borders():
    image = flat("black", (4, 3))
    image.putpixel((1, 1), (255, 255, 255))
    # Two pixels lie inside: the white one has 0 - 4, its right neighbour 1 - 0: mean -1.5, variance 2.5 squared.
    assert sharpness(image) == pytest.approx(6.25)
    assert sharpness(flat((10, 200, 30))) == pytest.approx(0.0, abs=1e-20)
    assert math.isnan(sharpness(flat("black", (2, 9))))


def test_sharpness_reads_the_luma_of_colours():
    image = flat("black", (4, 3))
    image.putpixel((1, 1), (0, 255, 0))
    assert sharpness(image) == pytest.approx(6.25 * 0.587**2)


def test_high_frequency_is_the_share_of_variance_finer_than_four_pixels():
    board = Image.fromarray((255 * (np.indices((16, 16)).sum(axis=0) % 2)).astype(np.uint8))  # all at half a cycle a pixel
    assert high_frequency(board) == pytest.approx(1.0)
    assert high_frequency(flat("grey")) == 0.0
    columns = np.arange(16)
    slow, fast = (100 * np.cos(2 * np.pi * columns * cycles / 16) for cycles in (1, 6))  # 1/16 and 6/16 cycles a pixel
    waves = Image.fromarray(np.tile(np.round(128 + slow + 0.2 * fast), (16, 1)).astype(np.uint8))
    assert high_frequency(waves) == pytest.approx(0.04 / 1.04, abs=2e-3)  # energies go with the square of the amplitude


def test_a_grid_of_two_pixels_has_its_amplitude_and_noise_and_edges_have_none():
    y, x = np.indices((32, 32))
    for wave in ((-1.0) ** x, (-1.0) ** y, (-1.0) ** (x + y)):
        mesh = Image.fromarray((128 + 8 * wave).astype(np.uint8))
        assert pixel_grid(mesh) == pytest.approx(8 / 255)
    noise = np.random.default_rng(0).normal(128, 8, (32, 32))
    edge = Image.fromarray(np.where(x < 16, 40, 200).astype(np.uint8))
    assert pixel_grid(Image.fromarray(noise.clip(0, 255).astype(np.uint8))) < 1.5 / 255  # noise as strong as the mesh above
    assert pixel_grid(edge) == pixel_grid(flat("grey")) == 0.5 / 255
    assert math.isnan(pixel_grid(flat("grey", (1, 40))))


def test_prompts_whose_pictures_become_alike_have_no_distance_from_each_other():
    colours = ("red", "green", "blue", "white", "black", "yellow")
    own = appearance([[flat(colour)] * 2 for colour in colours], features("pixels"))
    same = appearance([[flat("red")] * 2 for _ in colours], features("pixels"))
    assert min(own.prompt_diversity) > 50.0
    assert same.prompt_diversity == [0.0] * 6
    assert next(one for one in own.changes(same, colours) if one.name == "prompt_diversity").left == pytest.approx(0.0, abs=1e-12)
    assert all(map(math.isnan, appearance([[flat("red")]], features("pixels")).prompt_diversity))


def drawn(prompt, number, edit=lambda pixels: pixels):
    """Return a made picture: a square of the prompt's colour and place on grey, a little noise, and what `edit` does to it."""
    rng = np.random.default_rng([prompt, number])
    pixels = np.full((64, 64, 3), 150.0)
    x, y = rng.integers(8, 36, 2)
    pixels[y : y + 20, x : x + 20] = 110 + 70 * np.array([prompt & 1, prompt >> 1 & 1, prompt >> 2 & 1])
    return Image.fromarray(edit(pixels + rng.normal(0, 1.5, pixels.shape)).clip(0, 255).round().astype(np.uint8))


def blurred(pixels):
    return sum(np.roll(pixels, (down, across), (0, 1)) for down in range(-2, 3) for across in range(-2, 3)) / 25


HACKED = {
    "a bright sheet": lambda pixels: 255 - 0.1 * (255 - pixels),
    "blur": blurred,
    "a grid of two pixels": lambda pixels: pixels + 6 * (-1.0) ** np.indices((64, 64)).sum(axis=0)[..., None],
    "one colour": lambda pixels: 0 * pixels + np.array([200.0, 40.0, 40.0]),
    "loud colours": lambda pixels: pixels.mean(axis=2, keepdims=True) + 2.5 * (pixels - pixels.mean(axis=2, keepdims=True)),
}
HEALTHY = {
    "the same": lambda pixels: pixels,
    "a little lighter": lambda pixels: 0.9 * pixels + 20,
    "a little more vivid": lambda pixels: pixels.mean(axis=2, keepdims=True) + 1.2 * (pixels - pixels.mean(axis=2, keepdims=True)),
}


def test_what_rewards_are_hacked_with_rings_the_alarm_and_healthy_pictures_do_not():
    prompts = [f"prompt {number}" for number in range(8)]

    def looks(edit):
        return appearance([[drawn(prompt, number, edit) for number in (0, 1)] for prompt in range(8)], features("pixels"))

    base = looks(HEALTHY["the same"])
    for name, edit in (HACKED | HEALTHY).items():
        reasons = alarm([], [], base.changes(looks(edit), prompts))
        assert bool(reasons) == (name in HACKED), (name, reasons)


def test_the_looks_of_pictures_are_means_by_prompt_and_change_by_prompt():
    grey, red = [flat("grey"), flat("grey")], [flat((255, 0, 0)), flat("grey")]
    before, after = (appearance([group] * 6, features("pixels")) for group in (grey, red))
    zeros = dict.fromkeys(("diversity", "saturation", "sharpness", "high_frequency", "prompt_diversity"), pytest.approx(0.0, abs=1e-12))
    assert before.means() == zeros | {"pixel_grid": 0.5 / 255}
    assert after.saturation == [0.5] * 6
    changes = {one.name: one for one in before.changes(after, list("abcdef"))}
    assert (changes["saturation"].value, changes["saturation"].p) == (0.5, 2 / 2**6)
    assert changes["diversity"].rose


def test_pixel_features_are_colour_differences_of_the_cie():
    rows = features("pixels")([flat("black"), flat("white"), flat((255, 0, 0), (40, 24))])
    assert rows.shape == (3, 192)
    assert np.linalg.norm(rows[0] - rows[1]) == pytest.approx(100.0)
    # Red of sRGB is L 53.24, a 80.09, b 67.20 in published tables; from black that is the root of the sum of squares.
    assert np.linalg.norm(rows[0] - rows[2]) == pytest.approx(math.sqrt(53.24**2 + 80.09**2 + 67.20**2), abs=0.05)


def test_pixel_features_average_over_areas():
    image = flat("black", (8, 8))
    image.paste(flat("white", (4, 8)), (4, 0))
    # Halves apart are half of the areas by 100 each, root mean square 100 / sqrt 2; in a single area they are a grey.
    halves, black = features("pixels")([image, flat("black")])
    assert np.linalg.norm(halves - black) == pytest.approx(100 / math.sqrt(2))
    grey = features({"pixels": {"side": 1}})([image])
    np.testing.assert_allclose(grey, features({"pixels": {"side": 1}})([flat((128, 128, 128))]))


def test_diversity_is_the_mean_distance_of_all_twos():
    described = features("pixels")
    images = [flat("black"), flat("white"), flat("white")]
    assert diversity(images, described) == pytest.approx((100 + 100 + 0) / 3)
    assert diversity([flat("red")] * 4, described) == 0.0
    assert math.isnan(diversity(images[:1], described))


def test_features_of_a_clip_are_its_unit_embeddings(tmp_path):
    write_clip(tmp_path)
    rows = features({"clip": {"model": str(tmp_path)}})(pictures())
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    same, other = pictures()[0], pictures()[1]
    described = features({"clip": {"model": str(tmp_path)}})
    assert diversity([same, same], described) < 1e-6 < diversity([same, other], described)


def test_features_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="there is no feature `pixel`"):
        features("pixel")
