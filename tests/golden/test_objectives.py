"""Every objective of the table against its golden entry: losses and gradients, to 1e-9 in float64.

Those of the text family are in text_losses.json instead, those of training online in online/, or, where these have none, computed by
hand in tests/objectives.
"""

from __future__ import annotations

import json

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.objectives import OBJECTIVES
from tests.golden import make_objectives
from tests.golden.test_text_losses import COVERED

ENTRIES = json.loads(make_objectives.FILE.read_text())
EXACT = {"rtol": 1e-9, "atol": 1e-12}
ONLINE = {"dspo", "diffusion_kto", "awm", "dgpo", "diffusion_nft", "clipped_ratio"}  # test_online.py
BY_HAND = {"adpo", "bide_dpo", "bvpo", "distil", "mapl", "srpo", "tab_po"}  # tests/objectives, test_by_hand.py and test_texts_by_hand.py


def entry(name):
    """Return the golden entry of an objective; fail with what to do where there is none."""
    if name not in ENTRIES:
        pytest.fail(f"no golden entry for the objective `{name}`; add its formula to tests/golden/make_objectives.py and run it")
    return ENTRIES[name]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - (COVERED - ENTRIES.keys()) - BY_HAND - ONLINE))
def test_losses_and_gradients_are_the_golden_ones(name):
    golden = entry(name)
    policy = tensor(golden["policy"]).requires_grad_()
    losses = OBJECTIVES[name](Scores(policy, tensor(golden["reference"]), tensor(golden["prob"])), **golden["constants"])
    (gradient,) = torch.autograd.grad(losses.sum(), policy)
    torch.testing.assert_close(losses.detach(), tensor(golden["loss"]), **EXACT)
    torch.testing.assert_close(gradient, tensor(golden["grad_policy"]), **EXACT)


def test_the_golden_entries_are_what_the_formulas_give():
    made = make_objectives.make()
    assert made.keys() == ENTRIES.keys()
    for name, fresh in made.items():
        # To 1e-12 and not to the bit: exp and log differ in the last digit between processors.
        for key in ("loss", "grad_policy"):
            torch.testing.assert_close(tensor(fresh.pop(key)), tensor(ENTRIES[name][key]), rtol=1e-12, atol=1e-14)
        assert fresh.items() <= ENTRIES[name].items()


def test_no_entry_is_left_of_an_objective_that_is_gone():
    assert ENTRIES.keys() <= OBJECTIVES.keys()


def test_the_table_says_against_what_each_objective_is_checked():
    golden = {name for name in OBJECTIVES if "golden" in OBJECTIVES[name].source.checks}
    by_hand = {name for name in OBJECTIVES if "hand" in OBJECTIVES[name].source.checks}
    assert golden == (ENTRIES.keys() | COVERED | ONLINE) & OBJECTIVES.keys()
    assert by_hand == BY_HAND
