"""Fitted to users' choices, the set encoder tells those of users it has not seen; where pairs say nothing, that is said."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffalign.data.users import Users
from diffalign.models.users.encoders import make
from diffalign.models.users.evidence import ChoicesEvidence
from diffalign.models.users.pretrain import fit
from diffalign.models.users.settings import PairsSettings
from tests.data.voters import number_of, view_of, votes

USERS, EACH, F = 60, 8, 4


class Table:
    """Features of a picture, looked up by its number."""

    width, fingerprint, source = F, "table", "table"

    def __init__(self, values):
        self.values = torch.from_numpy(values).float()

    def __call__(self, images):
        return self.values[[number_of(image) for image in images]]


def evidence(folder, values, users=USERS, **settings):
    """Return the choices of users of whom every other one likes a picture's first number to be small, and the others large."""
    records = votes([(f"u{number:02}", EACH) for number in range(users)])
    for place, record in enumerate(records):
        first, second = values[2 * place, 0], values[2 * place + 1, 0]
        records[place] = replace(record, prob=float((first > second) == (int(record.user[1:]) % 2 == 0)))
    view = view_of(folder, records)
    known = PairsSettings(tokens=2, width=4, hidden=16, max_shots=4, **{"fit_steps": 400, "fit_batch": 64, **settings})
    return ChoicesEvidence(view, Users.of(view), Table(values), known, folder), known


def fitted(seen, known, seed=0):
    torch.manual_seed(0)
    encoder = make(known, seen.sizes)
    fit(encoder, seen, known, seed)
    return encoder


@pytest.fixture(scope="module")
def values():
    return 3.0 + 2.0 * np.random.default_rng(0).standard_normal((2 * USERS * EACH, F))


@pytest.mark.parametrize("variational", [False, True], ids=["plain", "variational"])
def test_a_taste_for_one_feature_is_told_of_users_left_out(tmp_path, values, variational, caplog):
    with caplog.at_level(logging.INFO):
        encoder = fitted(*evidence(tmp_path, values, variational=variational))
    (share,) = re.findall(r"the user encoder tells (\d+) % of the choices of 6 users it was not fitted to", caplog.text)
    assert int(share) > 80
    assert "next to nothing" not in caplog.text
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())  # which the training would add to its first
    torch.testing.assert_close(encoder.mean, torch.from_numpy(values.mean(axis=0)).float())
    torch.testing.assert_close(encoder.deviation, torch.from_numpy(values.std(axis=0, ddof=1)).float())


def test_pictures_that_look_alike_say_nothing_and_this_is_said(tmp_path, values, caplog):
    seen, known = evidence(tmp_path, np.ones_like(values), fit_steps=2)
    fitted(seen, known)
    assert "a user's pairs say next to nothing about their other choices; tokens will hardly be personal" in caplog.text


def test_a_fit_repeats_to_the_bit_and_depends_on_the_seed(tmp_path, values):
    seen, known = evidence(tmp_path, values, fit_steps=3)
    first, again, other = (fitted(seen, known, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image.0.weight"], other["image.0.weight"])


def test_of_a_few_users_none_is_left_out(tmp_path, values, caplog):
    with caplog.at_level(logging.INFO):
        fitted(*evidence(tmp_path, values, users=4, fit_steps=1))
    assert caplog.records == []
