"""Scores that any objective of the table can read: what it needs besides two candidates is made up from theirs."""

from __future__ import annotations

import torch

from diffalign.core.types import Residuals, Scores, Tokens
from diffalign.objectives import OBJECTIVES

# Scores above 0 are no log-probabilities, and no errors of which a root is taken.
PROBABILITIES = {"orpo", "asft", "awm"}
SHARES = (0.5, 0.3, 0.2)  # of a sum in each of three tokens


def widened(x, candidates):
    """Return (B, K) from (B, 2): pairs of candidates like the first; a single further one is what both have in common."""
    if candidates == 3:
        return torch.cat([x, 0.7 * x.mean(dim=1, keepdim=True)], dim=1)
    return torch.cat([x * (1.0 - 0.2 * place) for place in range(max(candidates, 2) // 2)], dim=1)


def tokens_of(policy, reference):
    """Return three tokens a completion and two of its prompt; what the policy's gradient does not reach follows the reference."""
    shares = policy.new_tensor(SHARES)
    given = torch.sigmoid(reference)[..., None] * shares
    prompt = -torch.ones_like(policy)[..., None].expand(*policy.shape, 2)
    return Tokens(
        policy[..., None] * shares,
        torch.ones_like(given, dtype=torch.bool),
        reference[..., None] * shares,
        kl=given,
        collision=-given,
        prompt=prompt,
        prompt_mask=torch.ones_like(prompt, dtype=torch.bool),
        activation=(2.0 * shares).expand(given.shape),
    )


def residuals_of(policy, reference):
    """Return residuals of one element, the scores themselves: they need not fit the scores, which may be above 0."""
    single = (None if x is None else x[:, :, None, None, None] for x in (policy, reference))
    kept = next(single)
    return Residuals(kept, torch.full((len(policy),), 0.5, dtype=policy.dtype), *single)


def fitted(name, policy, reference=None, prob=None, **fields):
    """Return scores for the objective `name` from those (B, 2) of a pair. Exchanging its candidates exchanges all that is made up."""
    needs = OBJECTIVES[name].facts
    if name in PROBABILITIES:
        policy = torch.nn.functional.logsigmoid(policy)
    policy = widened(policy, needs.candidates)
    base = torch.zeros_like(policy) if reference is None else widened(reference, needs.candidates)
    made = {
        "gains": base.sigmoid(),
        "margin": base.tanh(),
        "hallucinated": (base > 0.0).to(base),
        "previous": 0.5 * base,
        "teacher": base.tanh() - 1.0,
        "advantage": base.tanh(),
    }
    columns = {column: made[column] for column in needs.columns}
    known = None if reference is None else base
    tokens = tokens_of(policy, base) if needs.tokens else None
    residuals = residuals_of(policy, known) if needs.residuals else None
    return Scores(policy, known, prob, columns=columns, tokens=tokens, residuals=residuals, **fields)
