"""Several scorers made one: each combiner against arithmetic written out, wherever rewards are combined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.data.combiners import Product
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.transforms.scores import combined as transform
from diffalign.methods.config import TrainConfig
from diffalign.rewards.names import check_scorer_names
from diffalign.rewards.score_table import score_table
from diffalign.rewards.table import check_scorers, load_scorer, parts_of, together
from diffalign.train.online.rewards import Combination
from tests.shades import Shade, add_scorer

IMAGES = [Image.new("RGB", (2, 2), (red, 0, blue)) for red, blue in ((100, 30), (200, 20), (240, 10))]
PROMPTS = ["a fox"] * 3
RED, BLUE = [100.0, 200.0, 240.0], [0.03, 0.02, 0.01]  # of scales that are 10,000 times apart


@pytest.fixture(autouse=True)
def scorers(monkeypatch):
    """Add `red` and `blue`, the second a thousandth of the blue; white things have no red."""

    class Faint(Shade):
        def __call__(self, images, prompts):
            return super().__call__(images, prompts) / 1000.0

    add_scorer(monkeypatch, "red", lambda: Shade("red", 0))
    add_scorer(monkeypatch, "blue", lambda: Faint("blue", 2))


def spec(how):
    return {"combined": {"scorers": ["red", "blue"], "how": how}}


def softly(x):
    return -math.log1p(math.exp(-x))


SPREADS = math.sqrt((80**2 + 20**2 + 60**2) / 3), math.sqrt((0.01**2 + 0.0**2 + 0.01**2) / 3)  # of reds about 180, of blues about 0.02
BY_HAND = {
    "weighted": ({"weighted": {"weights": {"blue": 1000.0}}}, [100 + 30, 200 + 20, 240 + 10]),
    "standardised": (  # deviations with ddof 1, plus 1e-8: of the blues 0.01, of the reds sqrt((80^2 + 20^2 + 60^2) / 2)
        "standardised",
        [-80 / math.sqrt(5200) + 0.01 / (0.01 + 1e-8), 20 / math.sqrt(5200), 60 / math.sqrt(5200) - 0.01 / (0.01 + 1e-8)],
    ),
    "product": ({"product": {"weights": {"blue": 2.0}}}, [100 * 0.03**2, 200 * 0.02**2, 240 * 0.01**2]),
    "log-sigmoid of given centres": (
        {"log_sigmoid": {"centres": {"red": 200, "blue": 0.02}, "temperatures": {"red": 40, "blue": 0.01}}},
        [softly(-2.5) + softly(1), softly(0) + softly(0), softly(1) + softly(-1)],
    ),
    "log-sigmoid of the prompt's median": (
        "log_sigmoid",
        [softly(-100 / SPREADS[0]) + softly(0.01 / SPREADS[1]), 2 * softly(0), softly(40 / SPREADS[0]) + softly(-0.01 / SPREADS[1])],
    ),
    "lagrange": (
        {"lagrange": {"thresholds": {"blue": 0.02}, "multipliers": {"blue": 3.0}}},
        [(100 + 3 * 0.01) / 4, 200 / 4, (240 - 3 * 0.01) / 4],
    ),
}


@pytest.mark.parametrize(("how", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_scorer_transform_and_online_training_combine_alike(how, expected, tmp_path):
    np.testing.assert_allclose(load_scorer(spec(how))(IMAGES, PROMPTS), expected, rtol=1e-6)
    candidates = tuple(
        Candidate(text=str(k), scores={"red": red, "blue": blue}) for k, (red, blue) in enumerate(zip(RED, BLUE, strict=True))
    )
    (made,) = transform(Record("r", "a fox", candidates), scores=["red", "blue"], into="reward", how=how)
    np.testing.assert_allclose([candidate.scores["reward"] for candidate in made.candidates], expected, rtol=1e-6)
    online = Combination(TrainConfig(output_dir=str(tmp_path), combine=how))
    np.testing.assert_allclose(online.of({"red": np.array([RED]), "blue": np.array([BLUE])}, ["a fox"]).rewards, [expected], rtol=1e-6)


@pytest.mark.parametrize("how", ["standardised", "log_sigmoid"])
def test_no_scale_decides(how):
    """Of two scorers that say the opposite of each other the one of the large numbers does not win."""
    images = [IMAGES[0], IMAGES[2]]
    first, second = load_scorer(spec(how))(images, PROMPTS[:2])
    assert first == pytest.approx(second, abs=1e-6)  # but for the 1e-8 that is added to the smaller deviation


def test_what_one_scorer_cannot_judge_has_no_score_and_beside_others_neither_have_these():
    prompts = ["a white fox", "a fox", "a fox"]  # of white things there is no red
    alone = load_scorer(spec("product"))(IMAGES, prompts)
    np.testing.assert_allclose(alone, [np.nan, 200 * 0.02, 240 * 0.01])
    np.testing.assert_array_equal(np.isnan(load_scorer(spec("standardised"))(IMAGES, ["a white fox"] * 3)), [True] * 3)


def test_a_table_has_its_records_one_by_one_where_pictures_are_scored_beside_each_other(tmp_path):
    pictures = tuple(Candidate(image=encode_image(image)) for image in IMAGES)
    table = write_table(tmp_path / "t", [Record(f"r{k}", "a fox", pictures[: 3 - k]) for k in range(2)])
    made = score_table(table, tmp_path / "scored", [spec("standardised")])
    whole, two = ([candidate.scores["combined"] for candidate in record.candidates] for record in made)
    np.testing.assert_allclose(whole, BY_HAND["standardised"][1], rtol=1e-6)
    np.testing.assert_allclose(two, [0.0, 0.0], atol=1e-6)  # -1 / sqrt(2) + 1 / sqrt(2), and the opposite


def test_what_cannot_be_combined_is_refused_before_anything_is_loaded():
    for constants, message in (
        ({"scorers": ["red"]}, "expected at least two"),
        ({"scorers": ["red", "red"]}, "a score named `red`"),
        ({"scorers": ["red", "blue"], "how": "maxmin"}, "looks at all prompts at once"),
        ({"scorers": ["red", "blue"], "how": "prodct"}, "Did you mean `product`"),
        ({"scorers": ["red", "blue"], "how": {"weighted": {"weights": {"green": 2}}}}, "`weights` names `green`"),
        ({"scorers": ["red", "bleu"]}, "Did you mean `blue`"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_scorers([{"combined": constants}])
    with pytest.raises(ConfigError, match="Did you mean `blue`"):
        check_scorer_names([{"combined": {"scorers": ["bleu"]}}])
    with pytest.raises(ConfigError, match="rewards below zero, such as blue"):
        Product().combine({"red": [[1.0]], "blue": [[-1.0]]})
    inner = {"combined": {"scorers": ["red", {"vlm": {"model": "m", "protocol": "pairwise"}}], "how": "product"}}
    assert [together(one) for one in ("red", spec("product"), spec("standardised"), spec("log_sigmoid"), inner)] == [
        *(False, False),
        *(True, True, True),
    ]
    assert list(parts_of(spec("product"))) == ["red", "blue"]
