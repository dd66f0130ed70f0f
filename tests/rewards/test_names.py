"""The names that are checked without torch are those that there are."""

from diffalign.methods.checks import ERROR_NAMES
from diffalign.methods.recipe import DRIVERS
from diffalign.models.diffusion.likelihood import ERRORS
from diffalign.models.diffusion.trajectory import TRAJECTORIES
from diffalign.rewards.names import SCORER_NAMES
from diffalign.rewards.table import SCORERS


def test_every_table_has_the_names_that_are_checked_first():
    assert set(SCORER_NAMES) == set(SCORERS)
    assert {"forward", *DRIVERS} == set(TRAJECTORIES)
    assert set(ERROR_NAMES) == set(ERRORS)
