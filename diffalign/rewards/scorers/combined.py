"""One score of several scorers', by the combiners that online training and the transform `combined` use, too.

So it may rank in `pairs generate`, score a table, be `eval_reward`, or judge in rounds and online. A combiner that standardises, or takes
its centres from the prompt's own pictures, scores pictures of a prompt beside each other; the others, each by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec
from diffalign.rewards.base import Scorer
from diffalign.rewards.combine import check_combiner, combiner_of, scope_of
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.people import PeopleScorer
from diffalign.rewards.scorers.trained import HeadScorer


def check_combination(names: Sequence[str | None], how: Spec) -> None:
    """Raise ConfigError for less than two scorers, scores of one name, and a combiner that looks at all prompts at once, or at others."""
    if len(names) < 2:
        raise ConfigError(f"scorer `combined`: `scorers` are {len(names)}; expected at least two")
    if twice := [name for name in names if name is not None and list(names).count(name) > 1]:
        raise ConfigError(f"scorer `combined`: two of its scorers give a score named `{twice[0]}`; leave one out")
    if scope_of(how) == "all":
        raise ConfigError(f"scorer `combined`: `how` is {how!r}, which looks at all prompts at once; use `combine` of online training")
    check_combiner(how, names)


def combination(scorers: Sequence[Scorer], how: Spec, name: str) -> CallableScorer:
    """Return the scorer that combines the scores of others; a picture that one of them cannot judge has none.

    Where pictures are scored beside each other, no picture of a prompt has a score if one of them has none.
    """
    check_combination([scorer.name for scorer in scorers], how)
    combiner, audit = combiner_of(how), Counter[str]()
    beside = combiner.scope == "prompt"

    def score(images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        tables = {scorer.name: np.asarray(scorer(images, prompts), dtype=np.float64) for scorer in scorers}
        audit.clear()
        audit.update(sum((scorer.audit for scorer in scorers if isinstance(scorer, CallableScorer)), Counter()))
        groups = [[place for place, own in enumerate(prompts) if own == prompt] for prompt in dict.fromkeys(prompts)]
        scores = np.full(len(images), np.nan)
        for places in groups if beside else [[place] for place in range(len(images))]:
            rewards = {scorer: table[None, places] for scorer, table in tables.items()}
            if np.isfinite(list(rewards.values())).all():
                scores[places] = combiner.under(rewards, [prompts[places[0]]])[0]
        return scores

    inner = ", ".join(scorer.name for scorer in scorers)
    side = beside or any(
        isinstance(one, PeopleScorer) or (isinstance(one, CallableScorer | HeadScorer) and one.together) for one in scorers
    )
    return CallableScorer(name, f"{how!r} of {inner}", score, name, audit=audit, together=side)
