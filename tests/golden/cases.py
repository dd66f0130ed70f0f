"""Golden cases by name: rows of eight, winners first, turned into four pairs."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from diffalign.core.types import Noised, Query
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.trajectory import forward
from tests.paths import GOLDENS

DATA = GOLDENS
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def load(kind):
    """Return the cases of a file by name, and its arrays."""
    return json.loads((DATA / f"{kind}.json").read_text())["cases"], load_file(DATA / f"{kind}.safetensors")


def pairs(x):
    """Eight rows, winners first -> (4, 2, ...)."""
    return torch.stack([x[:4], x[4:]], dim=1)


class Case:
    """One case: its config, and its arrays by short name; `path` is the subclass's."""

    def __init__(self, name, cases, arrays):
        self.name, self.config, self._arrays = name, cases[name]["config"], arrays

    def __getitem__(self, key):
        kind = "in" if f"{self.name}/in/{key}" in self._arrays else "out"
        return self._arrays[f"{self.name}/{kind}/{key}"].squeeze()

    @property
    def t(self):
        return self["sigmas" if self.config["pred"] == "flow" else "timesteps"][:4]

    def scores(self, predictions):
        """Scores of stored predictions, through the likelihood."""
        noised = Noised(pairs(self["noisy_latents"]), self.t, pairs(self["target"]), torch.ones(4, dtype=torch.float64))
        stored = pairs(predictions).flatten(0, 1)
        return DiffusionLikelihood(self.path, lambda *_: stored, forward).score(None, Query(noised, {}))
