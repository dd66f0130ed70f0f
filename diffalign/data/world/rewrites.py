"""Short prompts, fuller captions of the same scene, and how much of its meaning a short prompt keeps in a rewrite."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from diffalign.data.world.captions import OPTIONAL, caption, parse
from diffalign.data.world.scenes import ATTRIBUTES, SHAPES

if TYPE_CHECKING:
    import numpy as np


def short_prompts(most: int = 2) -> list[str]:
    """Return every caption that names a shape and at most so many other attributes, in a fixed order; 1168 for two.

    >>> short_prompts(0)[:2], short_prompts(1)[8:10]
    (['a circle', 'a square'], ['a small circle', 'a large circle'])
    """
    prompts = []
    for count in range(most + 1):
        for names in itertools.combinations(OPTIONAL, count):
            values = itertools.product(SHAPES, *(ATTRIBUTES[name] for name in names))
            prompts += [caption(dict(zip(("shape", *names), chosen, strict=True))) for chosen in values]
    return prompts


def kept(prompt: str, rewrite: str) -> dict[str, bool]:
    """Return for each attribute that `prompt` names whether `rewrite` names it with the same value.

    >>> kept("a red star at the left", "a large red star at the top")
    {'color': True, 'shape': True, 'position': False}
    """
    named = parse(rewrite)
    return {name: named.get(name) == value for name, value in parse(prompt).items()}


def distance(prompt: str, rewrite: str) -> float:
    """Return the share in [0, 1] of what `prompt` names that `rewrite` lost; 0 where it names nothing, so that nothing can be lost.

    The place of one minus the cosine of sentence embeddings in Sem-DPO (2507.20133). Attributes that the rewrite adds cost nothing.

    >>> distance("a red star", "a large red star"), distance("a red star", "a blue star"), distance("hello", "a star")
    (0.0, 0.5, 0.0)
    """
    same = kept(prompt, rewrite).values()
    return 1.0 - sum(same) / len(same) if same else 0.0


def random_rewrite(prompt: str, rng: np.random.Generator, *, add: float = 0.7, drift: float = 0.2) -> str:
    """Return a caption that names what `prompt` names and more; what it means drifts with chance `drift`.

    Each attribute left open is named with chance `add`, at least one in all, its value uniform. Where the meaning drifts, one of the
    attributes that `prompt` names takes another value. Raises ValueError for a prompt that names no shape.
    """
    named = parse(prompt)
    if "shape" not in named:
        raise ValueError(f"`{prompt}` names no shape, and a caption must")
    open_ones = [name for name in OPTIONAL if name not in named]
    added = [name for name in open_ones if rng.random() < add]
    if open_ones and not added:
        added = [str(rng.choice(open_ones))]
    if rng.random() < drift:
        moved = str(rng.choice(list(named)))
        named[moved] = str(rng.choice([value for value in ATTRIBUTES[moved] if value != named[moved]]))
    return caption(named | {name: str(rng.choice(ATTRIBUTES[name])) for name in added})
