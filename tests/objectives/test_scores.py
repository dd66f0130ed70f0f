"""What objectives promise of the scores and constants that people bring in Python, in loops over the table that name what failed."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from diffalign.core.errors import ConfigError
from diffalign.core.types import Scores, Tokens
from diffalign.objectives import OBJECTIVES, bind_objective
from diffalign.objectives.constants import RANGES
from tests.objectives.scored import fitted
from tests.objectives.test_contract import bound

LARGE = {"mapo": 100.0, "dspo": 1.0}  # the largest beta in use, where it is not 5000


def constants_of(name):
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def halves(dtype):
    """Return policy and reference (4, 2) of denoising errors near 0.1."""
    draw = torch.Generator().manual_seed(0)
    return tuple(-0.05 - 0.01 * torch.rand(4, 2, generator=draw).to(dtype) for _ in range(2))


def test_half_precision_gives_finite_float32_losses_and_gradients_at_a_beta_of_images():
    wrong = {}
    for dtype in (torch.float16, torch.bfloat16):
        for name in OBJECTIVES:
            policy, reference = halves(dtype)
            policy.requires_grad_()
            required = {key: 0.5 for key, default in constants_of(name).items() if default is inspect.Parameter.empty}
            beta = {"beta": LARGE.get(name, 5000.0)} if "beta" in constants_of(name) else {}
            losses = OBJECTIVES[name](fitted(name, policy, reference, torch.full((4,), 0.7)), **required | beta)
            (gradient,) = torch.autograd.grad(losses.sum(), policy)
            if losses.dtype != torch.float32 or not losses.isfinite().all() or not gradient.isfinite().all():
                wrong[name, dtype] = losses
    assert not wrong


@pytest.mark.parametrize(
    ("fields", "named", "shape"),
    [
        ({"policy": torch.zeros(4)}, "policy", "(4,)"),
        ({"policy": torch.zeros(4, 2, 1)}, "policy", "(4, 2, 1)"),
        ({"reference": torch.zeros(2, 4)}, "reference", "(2, 4)"),
        ({"lengths": torch.ones(4)}, "lengths", "(4,)"),
        ({"columns": {"gains": torch.zeros(4)}}, "gains", "(4,)"),
        ({"prob": torch.ones(4, 2)}, "prob", "(4, 2)"),
        ({"weight": torch.ones(2)}, "weight", "(2,)"),
        ({"offset": torch.ones(4, 1)}, "offset", "(4, 1)"),
        ({"tokens": Tokens(torch.zeros(2, 4, 3), torch.ones(2, 4, 3).bool())}, "tokens", "(2, 4, 3)"),
    ],
)
def test_scores_of_other_shapes_are_refused_with_name_shape_and_axes(fields, named, shape):
    with pytest.raises(ValueError, match="records") as error:
        Scores(**{"policy": torch.zeros(4, 2), **fields})
    assert f"`{named}`" in str(error.value)
    assert shape in str(error.value)


def test_tokens_of_other_shapes_are_refused_with_name_shape_and_axes():
    with pytest.raises(ValueError, match=r"`kl` is of shape \(4, 2\).*tokens"):
        Tokens(torch.zeros(4, 2, 3), torch.ones(4, 2, 3).bool(), kl=torch.zeros(4, 2))


def test_one_candidate_is_refused_wherever_two_are_compared():
    alone = [name for name in OBJECTIVES if OBJECTIVES[name].facts.candidates == 1]
    assert alone == ["poft", "denoise", "distil"]
    unpaired = [name for name in OBJECTIVES if OBJECTIVES[name].facts.unpaired]
    assert unpaired == ["bco", "kto", "diffusion_kto"]  # test_by_hand.py
    for name in OBJECTIVES.keys() - {*alone, *unpaired}:
        with pytest.raises(ValueError, match=rf"`{name}` compares candidates; .*\(4, 1\)"):
            bound(name)(Scores(torch.zeros(4, 1), torch.zeros(4, 1)))


def test_no_constant_of_any_objective_may_be_negative_where_that_means_nothing_nor_not_finite():
    s = Scores(torch.zeros(1, 2), torch.zeros(1, 2))
    accepted = []
    for name in OBJECTIVES:
        numbers = [key for key, default in constants_of(name).items() if default is inspect.Parameter.empty or isinstance(default, float)]
        needed = {key: 0.5 for key, default in constants_of(name).items() if default is inspect.Parameter.empty}
        for key in numbers:
            for value in (math.nan, math.inf, -math.inf, *([-1.0] if key in RANGES and key != "threshold" else [])):
                for refuse in (lambda c, name=name: OBJECTIVES[name](s, **c), lambda c, name=name: bind_objective({name: c})):
                    try:
                        refuse({**needed, key: value})
                    except ConfigError as error:
                        assert f"objective.{name}.{key}" in str(error)  # noqa: PT017  # two ways to refuse, one message
                    else:
                        accepted.append((name, key, value))
    assert not accepted
