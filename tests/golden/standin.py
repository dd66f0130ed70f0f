"""The stand-in denoiser of the SmPO and InPO goldens, and their inversions through the public functions."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file

from diffalign.core.types import Query
from diffalign.models.diffusion.inversion import invert
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.path import VPPath, landed
from tests.paths import GOLDENS

DATA = GOLDENS
EXACT = {"rtol": 1e-9, "atol": 1e-12}
END = {"d020": {"end": "grid", "label": "source"}, "cur": {"end": "grid", "label": "destination"}, "derived_exact": {"end": "exact"}}


class Net:
    """eps(x, t, c) = tanh(W x + b + M [sin(0.003 t), cos(0.003 t)] + C c), x (..., 4, 8, 8); t may be negative."""

    def __init__(self, arrays, kind, scale=1.0):
        self.weight, self.bias = (arrays[f"{name}_{kind}"].clone().requires_grad_() for name in ("W", "b"))
        self.time, self.prompt, self.scale, self.cond = arrays["M"], arrays["C"], scale, arrays["cond"][0]
        self.calls = 0

    def __call__(self, x, t):
        """Return the output like x (N, 4, 8, 8) at t (N,)."""
        self.calls += 1
        angle = 0.003 * t.double() * self.scale
        told = torch.stack([angle.sin(), angle.cos()], dim=1) @ self.time.T + self.prompt @ self.cond + self.bias
        return torch.tanh(torch.einsum("oi,nihw->nohw", self.weight, x) + told[:, :, None, None])


class Golden:
    """The arrays of one file, and one training step a time t0."""

    def __init__(self, name):
        self.arrays = load_file(DATA / f"{name}.safetensors")
        self.facts = json.loads((DATA / f"{name}.json").read_text())
        self.path = VPPath(self.arrays["alphas_cumprod"])
        self.policy, self.reference = (Net(self.arrays, kind) for kind in ("pol", "ref"))

    def __getitem__(self, name):
        return self.arrays[name]

    def x0(self, count):
        return self["x0"].expand(count, 2, 4, 8, 8)

    def likelihood(self, path=None):
        return DiffusionLikelihood(path or self.path, lambda model, x, t, _: model(x, t), None)

    def invert(self, t, *, draw=None, path=None, net=None, **constants):
        """Return x_inv (len(t), 2, 4, 8, 8), without gradient."""
        network = net or self.policy

        def predict(x, label, *, rows=None):
            return network(x.flatten(0, 1), label.repeat_interleave(2)).view_as(x)

        with torch.no_grad():
            return invert(self.x0(len(t)), predict, path or self.path, t, draw, **constants)

    def scores(self, x, t, path=None, nets=None):
        noised = landed(path or self.path, self.x0(len(t)), x, t)
        query = Query(noised, {})
        policy, reference = nets or (self.policy, self.reference)
        likelihood = self.likelihood(path)
        return noised, likelihood.score(policy, query), likelihood.score(reference, query).detach()
