"""The README's picture is what the quickstart drew, enlarged without blur, with the prompts it was drawn to."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
from PIL import Image

from diffalign.cli.demo.images import SHOWN, open_prompts
from diffalign.cli.demo.options import QuickstartConfig
from diffalign.infer.sample import grid
from scripts.readme_picture import SIDE, cells, compose, prompts_of


def shade(number):
    """Return a picture of one colour, with one pixel of another."""
    image = Image.new("RGB", (SIDE, SIDE), (number, 255 - number, 0))
    image.putpixel((0, 1), (0, 0, 255))
    return image


def test_cells_are_the_pictures_that_the_quickstart_put_into_its_grid():
    drawn = [shade(number) for number in range(2 * SHOWN)]
    rows = cells(grid(drawn, SHOWN))
    assert [image.tobytes() for row in rows for image in row] == [image.tobytes() for image in drawn]


def test_a_pixel_becomes_a_square_of_its_colour_and_nothing_between():
    rows = [[shade(10), shade(20)], [shade(30), shade(40)]]
    page = compose(rows, ["a star", "a ring"], "votes", times=3)
    blue = sum(page.getpixel((x, y)) == (0, 0, 255) for x in range(page.width) for y in range(page.height))
    assert blue == 4 * 9 - 4 * 3  # the frame of one pixel runs over the left column of each square


def test_prompts_follow_from_the_settings_of_the_report(tmp_path):
    config = QuickstartConfig(taste="large", train_prompts=3, eval_prompts=2, seed=5, output_dir=str(tmp_path))
    (tmp_path / "report.json").write_text(json.dumps(asdict(config) | {"command": "diffalign quickstart"}))
    assert prompts_of(tmp_path) == open_prompts("large", 5, np.random.default_rng([5, 0]))[3:]
