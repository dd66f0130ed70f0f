"""The inputs of data/text_losses.json as scores: 8 pairs and 2 lists, float64, with what their table and tokens say."""

from __future__ import annotations

import json

import torch
from torch.nn.utils.rnn import pad_sequence

from diffalign.core.types import Scores, Tokens
from tests.paths import GOLDENS

GOLDEN = json.loads((GOLDENS / "text_losses.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


class Pairs:
    """The pairs' columns by name, (8,) each; those of the policy are leaves of the gradient."""

    def __init__(self):
        self.rows = GOLDEN["pairs"]
        self.w, self.l = self["pi_w"].requires_grad_(), self["pi_l"].requires_grad_()
        self.lengths = self.both("len")

    def __getitem__(self, name):
        return tensor([row[name] for row in self.rows])

    def both(self, name):
        """Return the columns of the preferred and the dispreferred candidate, (8, 2)."""
        return torch.stack([self[f"{name}_w"], self[f"{name}_l"]], dim=1)

    def ragged(self, name):
        """Return a number of every token, (8, 2, L), zero beyond the completion."""
        rows = [tensor(row[name.format(side)]) for row in self.rows for side in "wl"]
        return pad_sequence(rows, batch_first=True).unflatten(0, (-1, 2))

    def scores(self, *, further=(), **fields):
        """Return the pairs' scores; `further` are (policy, reference) of candidates 2, 3, ...; fields of `Scores` replace these."""
        policy = torch.stack([self.w, self.l, *(policy for policy, _ in further)], dim=1)
        reference = torch.stack([self["ref_w"], self["ref_l"], *(reference for _, reference in further)], dim=1)
        return Scores(**{"policy": policy, "reference": reference, "lengths": self.lengths, **fields})

    def tokens(self, **fields):
        """Return what is said of the pairs' tokens."""
        mask = torch.arange(int(self.lengths.max())) < self.lengths[..., None]
        return Tokens(self.ragged("pi_{}_tok"), mask, self.ragged("ref_{}_tok"), **fields)


def lists(place):
    """Return the scores of a golden list, (1, 4), best first."""
    row = GOLDEN["lists"][place]
    policy, reference, lengths, gains = (tensor([row[name]]) for name in ("pi", "ref", "len", "reward"))
    return Scores(policy, reference, lengths=lengths, columns={"gains": gains})
