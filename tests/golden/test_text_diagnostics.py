"""Diagnostics of texts against numbers from formulas re-derived elsewhere (README.md says how), to 1e-9."""

from __future__ import annotations

import json

import pytest
import torch

from diffalign.core.types import Scores
from diffalign.objectives.metrics import (
    ches,
    describe,
    flip_threshold,
    idealised_ranking_accuracy,
    ranking_accuracy,
    reward_accuracy,
    top_k,
)
from tests.paths import GOLDENS

GOLDEN = json.loads((GOLDENS / "text_losses.json").read_text())
KNOWN = GOLDEN["diagnostics"]
EXACT = {"rel": 1e-9, "abs": 1e-9}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def column(*names):
    return tensor([[pair[name] for name in names] for pair in GOLDEN["pairs"]])


POLICY, REFERENCE, LENGTHS = (column(f"{name}_w", f"{name}_l") for name in ("pi", "ref", "len"))
PROB, BETA = column("p_soft")[:, 0], KNOWN["idealised_params"]["beta"]


def test_accuracies_are_the_golden_ones():
    assert ranking_accuracy(POLICY).item() == KNOWN["ranking_accuracy"]
    assert ranking_accuracy(POLICY / LENGTHS).item() == KNOWN["ranking_accuracy_len_norm"]
    assert reward_accuracy(POLICY - REFERENCE).item() == KNOWN["reward_accuracy"]
    assert idealised_ranking_accuracy(REFERENCE, BETA, PROB).item() == KNOWN["idealised_ranking_accuracy"]


def test_the_log_of_a_step_holds_them():
    seen = describe(Scores(POLICY, REFERENCE, PROB, lengths=LENGTHS), BETA)
    assert seen["ranking_acc"].item() == KNOWN["ranking_accuracy"]
    assert seen["ranking_acc_normalized"].item() == KNOWN["ranking_accuracy_len_norm"]
    assert seen["rewards/accuracies"].item() == KNOWN["reward_accuracy"]
    assert seen["alignment_gap"].item() == KNOWN["idealised_ranking_accuracy"] - KNOWN["ranking_accuracy"]


def test_flip_thresholds_are_the_golden_ones():
    assert flip_threshold(REFERENCE, BETA).tolist() == pytest.approx(KNOWN["dpo_flip_threshold"], **EXACT)


def test_ches_is_the_golden_one():
    known = KNOWN["ches"]
    own = zip((known["h_plus"], known["h_minus"]), known["last_prompt_index"], strict=True)
    predicting = [tensor(states)[last:-1] for states, last in own]
    counts = torch.tensor([[len(states) for states in predicting]])
    plain, normalised = ches(torch.stack([states.sum(0) for states in predicting])[None], counts)
    assert plain.item() == pytest.approx(known["ches"], **EXACT)
    assert normalised.item() == pytest.approx(known["ln_ches"], **EXACT)


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("mass", "mass"),
        ("entropy", "entropy_raw"),
        ("entropy_renormalised", "entropy_renormalised"),
        ("full_entropy", "full_entropy"),
    ],
)
def test_top_k_mass_and_entropies_are_the_golden_ones(name, golden):
    known = KNOWN["topk"]
    assert top_k(tensor(known["logits"]), known["k"])[name].tolist() == pytest.approx(known[golden], **EXACT)
