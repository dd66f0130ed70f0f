"""Drift of pictures, against arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.rewards.drift import appearance, diversity, features, high_frequency, saturation, sharpness
from tests.rewards.models import pictures, write_clip


def flat(color, size=(16, 16)):
    return Image.new("RGB", size, color)


def test_saturation_is_the_spread_of_the_three_colours_over_all_pixels():
    image = flat((255, 0, 0), (4, 1))  # red, spread 1
    image.putpixel((1, 0), (128, 128, 128))  # grey, 0
    image.putpixel((2, 0), (51, 0, 0))  # a dark red: of full HSV saturation, and yet hardly vivid: 51 / 255
    image.putpixel((3, 0), (255, 153, 204))  # pink, 102 / 255
    assert saturation(image) == pytest.approx((1 + 0 + 0.2 + 0.4) / 4)


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


def test_the_looks_of_pictures_are_means_by_prompt_and_change_by_prompt():
    grey, red = [flat("grey"), flat("grey")], [flat((255, 0, 0)), flat("grey")]
    before, after = (appearance([group] * 6, features("pixels")) for group in (grey, red))
    assert before.means() == {"diversity": 0.0, "saturation": 0.0, "sharpness": pytest.approx(0.0, abs=1e-20), "high_frequency": 0.0}
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
