"""The embedded world's judges as scorers, against pictures drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.data.world.scenes import COLORS, draw
from diffalign.rewards.table import load_scorer


def _disc(center: tuple[float, float], color: str = "red") -> Image.Image:
    return draw("circle", COLORS[color], (248, 248, 248), center, 16.0, 0.0)


def test_adherence_is_the_share_of_named_attributes_that_a_picture_shows() -> None:
    images = [_disc((32, 32)), _disc((32, 32), "blue"), _disc((32, 32))]
    found = load_scorer("adherence")(images, ["a red circle", "a red circle", "hello"])
    np.testing.assert_array_equal(found, [1.0, 0.5, np.nan])
    assert found.dtype == np.float64


def test_a_taste_scores_by_its_own_name_and_reads_no_prompt() -> None:
    scorer = load_scorer({"taste": {"name": "high"}})
    top, middle = scorer([_disc((32, 20)), _disc((32, 32))], ["", "a star"])
    assert scorer.name == "high"
    assert middle == pytest.approx(0.5, abs=0.03)  # half, and less by offset / 24 pixels
    assert top == pytest.approx(1.0, abs=0.03)


def test_what_is_no_scorer_or_taste_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"there is no scorer `adherense`\. Did you mean `adherence`"):
        load_scorer("adherense")
    with pytest.raises(ConfigError, match=r"there is no taste `higj`\. Did you mean `high`"):
        load_scorer({"taste": {"name": "higj"}})


def test_a_look_scores_by_its_own_name_and_reads_no_prompt() -> None:
    scorer = load_scorer({"look": {"name": "brightness"}})
    gray, black = scorer([Image.new("RGB", (4, 4), (51, 51, 51)), Image.new("RGB", (4, 4))], ["", "a star"])
    assert scorer.name == "brightness"
    assert (gray, black) == (pytest.approx(0.2), 0.0)
    with pytest.raises(ConfigError, match=r"there is no look `brigtness`\. Did you mean `brightness`"):
        load_scorer({"look": {"name": "brigtness"}})
