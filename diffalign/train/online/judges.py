"""Who judges the pictures of a turn: scorers that stay in memory, and servers and people, who judge while more is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec, single
from diffalign.rewards.base import Scorer
from diffalign.rewards.scorers.people import PeopleScorer
from diffalign.rewards.shards import ABOUT, audit_of
from diffalign.rewards.table import load_scorer

Pending = Mapping[str, Callable[[], np.ndarray]]  # by the score's name, what waits for it


class Judges:
    """The scorers of a run, loaded. Raises ConfigError where two of them give a score of one name."""

    def __init__(self, specs: Sequence[Spec], device: str) -> None:
        self.specs = list(specs)
        self.scorers: list[Scorer] = [load_scorer(spec, device=device) for spec in specs]
        names = self.names
        if len(set(names)) < len(names):
            raise ConfigError(f"`scorers`: two of them give a score of the same name, of {', '.join(names)}; leave one out")
        self._remote = [constants.get("url") is not None for _, constants in (single("scorer", spec) for spec in specs)]
        self._pool = ThreadPoolExecutor(max_workers=max(1, sum(self._remote)))

    @property
    def names(self) -> list[str]:
        """Return what the scores are called."""
        return [scorer.name for scorer in self.scorers]

    def about(self) -> list[dict[str, Any]]:
        """Return what a table's manifest says of the scorers."""
        return [
            {name: getattr(scorer, name) for name in ABOUT} | {"spec": spec} | ({"audit": audit} if (audit := audit_of(scorer)) else {})
            for scorer, spec in zip(self.scorers, self.specs, strict=True)
        ]

    def ask(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Pending:
        """Return the scores (N,) of images to come: servers and people begin at once, the others judge now."""
        pending: dict[str, Callable[[], np.ndarray]] = {}
        for scorer, remote in zip(self.scorers, self._remote, strict=True):
            if isinstance(scorer, PeopleScorer):
                pending[scorer.name] = scorer.begin(images, prompts)
            elif remote:
                pending[scorer.name] = self._pool.submit(scorer, list(images), list(prompts)).result
            else:
                pending[scorer.name] = _done(np.asarray(scorer(images, prompts), dtype=np.float64))
        return pending


def _done(scores: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: scores
