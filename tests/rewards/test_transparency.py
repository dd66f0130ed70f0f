"""What judges pictures sees a transparent one as it looks on white."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffalign.data.world.judge import read
from diffalign.data.world.tastes import TASTES, taste_score
from diffalign.evaluate.pages.html import picture
from diffalign.rewards import drift
from diffalign.rewards.scorers.frame import Frame


def test_a_transparent_picture_is_judged_as_it_looks_on_white():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    noise[..., 3] = 0
    clear, white = Image.fromarray(noise), Image.new("RGB", (32, 32), "white")
    frame = Frame(16, "floor")
    judges = {
        **{taste: lambda image, taste=taste: taste_score(taste, read(image)) for taste in TASTES},
        "frame": lambda image: frame.pixels([image]).numpy(),
        "saturation": drift.saturation,
        "sharpness": drift.sharpness,
        "pixels": lambda image: drift.pixels(side=4)([image]),
    }
    different = [name for name, judge in judges.items() if not np.array_equal(np.nan_to_num(judge(clear)), np.nan_to_num(judge(white)))]
    assert different == []
    assert picture(clear, "") == picture(white, "")
