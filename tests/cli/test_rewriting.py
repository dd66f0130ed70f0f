"""What a rewriter learns from: judged rewrites become records, and gains come with their interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from diffalign.cli.demo.rewriting import Rewrite, Studio, attribute_distance, gain, preferences
from diffalign.data.table import read_table, write_table
from diffalign.data.world.captions import parse
from diffalign.data.world.rewrites import random_rewrite, short_prompts
from diffalign.data.world.scenes import random_scene, render


class StubPipeline:
    """Draws every prompt's scene exactly."""

    name_or_path = "stub"

    def __call__(self, prompts, generator, **options):
        rng = np.random.default_rng(0)
        self.images = [render(random_scene(rng, **parse(prompt)), rng) for prompt in prompts]
        return self


@pytest.fixture
def studio(monkeypatch):
    monkeypatch.setattr("diffalign.cli.demo.rewriting.draw", lambda pipe, prompts, seeds, **told: pipe(prompts, seeds).images)
    return Studio(StubPipeline(), "high")


def rewrite(prompt: str, text: str, taste: float) -> Rewrite:
    return Rewrite(prompt, text, Image.new("RGB", (64, 64)), taste, 0.5, 0.25)


def test_a_picture_is_judged_by_the_short_prompt_and_not_by_its_rewrite(studio):
    prompts = ["a red star at the bottom", "a red star"]
    texts = ["a small red star at the top on a white background", "a small red star at the top on a white background"]
    drifted, true = studio.judge(prompts, texts, [0, 1])
    assert (drifted.adherence, drifted.distance) == pytest.approx((2 / 3, 1 / 3))
    assert (true.adherence, true.distance) == (1.0, 0.0)
    assert min(drifted.taste, true.taste) > 0.8
    assert (drifted.prompt, drifted.text) == (prompts[0], texts[0])


def test_another_distance_of_meaning_stands_in_and_the_picture_is_judged_as_before(studio):
    other = Studio(studio.pipe, "high", meaning=lambda prompts, texts: [0.125] * len(prompts))
    (made,) = other.judge(["a red star"], ["a blue star at the top on a white background"], [0])
    assert (made.distance, made.adherence) == (0.125, 0.5)


def test_rewrites_of_a_prompt_become_one_conversation_with_scores(tmp_path):
    made = [rewrite("a star", "a red star", 0.25), rewrite("a star", "a star at the top", 0.75), rewrite("a ring", "a red ring", 0.5)]
    made += [rewrite("a ring", "a pink ring", 0.5), rewrite("a ring", "a red ring", 0.5)]
    write_table(tmp_path / "pairs", preferences(made))
    star, ring = read_table(tmp_path / "pairs")
    assert [(m.role, m.content) for m in star.messages] == [("user", "a star")]
    assert [c.text for c in star.candidates] == ["a red star", "a star at the top"]
    assert star.candidates[1].scores == {"taste": 0.75, "adherence": 0.5, "distance": 0.25}
    assert [c.text for c in ring.candidates] == ["a red ring", "a pink ring"]
    assert star.prob is None
    assert star.kind == "text"


def test_a_prompt_with_one_rewrite_only_teaches_nothing():
    assert preferences([rewrite("a star", "a red star", 0.5)] * 4) == []


def test_the_attributes_lost_are_the_distance_of_meaning():
    assert attribute_distance(["a red star", "a red star"], ["a large red star", "a blue star"]) == [0.0, 0.5]
    rng = np.random.default_rng(0)
    prompts = short_prompts()[::40]
    assert set(attribute_distance(prompts, [random_rewrite(p, rng, drift=0.0) for p in prompts])) == {0.0}


def test_a_gain_is_the_mean_of_paired_differences_with_an_interval_about_it():
    before = [0.1, 0.4, 0.2, 0.3, 0.2, 0.1]
    # differences 0.4, 0.0, 0.2, 0.2, 0.2, 0.2: mean 0.2
    gained = gain(before, [0.5, 0.4, 0.4, 0.5, 0.4, 0.3])
    assert gained.mean == pytest.approx(0.2)
    assert 0.0 <= gained.low < 0.2 < gained.high <= 0.4


def test_a_gain_that_is_the_same_everywhere_has_no_spread():
    before = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625]
    same = gain(before, [score + 0.25 for score in before])
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)


def test_of_fewer_than_six_prompts_no_interval_is_given():
    few = gain([0.0, 0.5], [0.25, 0.75])
    assert few.mean == 0.25
    assert math.isnan(few.low)
    assert math.isnan(few.high)
