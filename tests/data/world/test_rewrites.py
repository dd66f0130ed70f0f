"""Short prompts, rewrites and what they keep."""

from __future__ import annotations

import numpy as np
import pytest

from diffalign.data.world.captions import parse
from diffalign.data.world.checks import is_caption
from diffalign.data.world.rewrites import distance, preserved, random_rewrite, short_prompts


def test_short_prompts_are_all_captions_with_at_most_two_attributes_besides_the_shape():
    prompts = short_prompts()
    # 8 shapes; one attribute 2 + 8 + 5 + 4 = 19 ways; two 2*8 + 2*5 + 2*4 + 8*5 + 8*4 + 5*4 = 126 ways
    assert len(prompts) == len(set(prompts)) == 8 * (1 + 19 + 126)
    assert {len(parse(prompt)) for prompt in prompts} == {1, 2, 3}
    assert all(is_caption(prompt) for prompt in prompts)


def test_a_rewrite_that_only_adds_keeps_everything():
    assert preserved("a red circle", "a large red circle at the top on a white background") == {"color": True, "shape": True}
    assert distance("a red circle", "a large red circle at the top on a white background") == 0.0


def test_what_is_changed_and_what_is_left_out_is_lost_alike():
    prompt = "a small red circle at the left"
    assert distance(prompt, "a small blue circle at the left") == pytest.approx(1 / 4)
    assert distance(prompt, "a small circle at the left") == pytest.approx(1 / 4)
    assert distance(prompt, "a large blue star") == 1.0
    assert distance(prompt, "") == 1.0


def test_a_prompt_outside_the_world_has_nothing_to_lose():
    assert preserved("hello", "a star") == {}
    assert distance("hello", "a star") == 0.0


@pytest.mark.parametrize("text", ["", "at the left", "red", "a star red", "an red star", "a red star on a white", "A red star"])
def test_what_is_no_caption_is_told(text):
    assert not is_caption(text)


def test_a_random_rewrite_without_drift_names_more_and_loses_nothing():
    rng = np.random.default_rng(0)
    for prompt in short_prompts()[::7]:
        rewrite = random_rewrite(prompt, rng, drift=0.0)
        assert is_caption(rewrite)
        assert distance(prompt, rewrite) == 0.0
        assert len(parse(rewrite)) > len(parse(prompt))


def test_a_random_rewrite_drifts_in_one_attribute_as_often_as_told():
    rng = np.random.default_rng(0)
    lost = [list(preserved("a red star", random_rewrite("a red star", rng, drift=0.2)).values()).count(False) for _ in range(2000)]
    assert set(lost) == {0, 1}
    # four standard deviations: 4 * sqrt(0.2 * 0.8 / 2000) = 0.036
    assert np.mean(lost) == pytest.approx(0.2, abs=0.036)


def test_a_prompt_without_a_shape_is_not_rewritten():
    with pytest.raises(ValueError, match="`red` names no shape"):
        random_rewrite("red", np.random.default_rng(0))
