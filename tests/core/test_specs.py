"""What a spec's constants may be, by the annotations of the function that it names."""

from __future__ import annotations

from typing import Literal

import pytest

from diffalign.core.errors import ConfigError
from diffalign.core.specs import bind


def part(
    *, score: str | None = None, share: float | None = 0.5, user: str | int | None = None, how: Literal["all", "best"] | None = None
) -> tuple[object, ...]:
    """Return the constants."""
    return score, share, user, how


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"score": 7}, "`score` is 7; expected str$"),
        ({"share": "much"}, "`share` is 'much'; expected float$"),
        ({"share": True}, "`share` is True; expected float$"),
        ({"user": 0.5}, "`user` is 0.5; expected str or int$"),
        ({"how": "al"}, "`how` is 'al'. Did you mean `all`?"),
    ],
)
def test_a_constant_that_may_be_left_out_is_checked_where_it_is_given(constants, message):
    with pytest.raises(ConfigError, match=message):
        bind("part", {"part": part}, {"part": constants})


def test_each_kind_that_an_annotation_lists_is_accepted():
    given = {"score": None, "share": 1, "user": 7, "how": "best"}
    assert bind("part", {"part": part}, {"part": given})() == (None, 1, 7, "best")
