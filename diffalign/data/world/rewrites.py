"""Short prompts, rewrites of them into fuller captions, and how much of a prompt's meaning a rewrite preserves."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from diffalign.data.world.captions import OPTIONAL, caption, parse
from diffalign.data.world.scenes import ATTRIBUTES, SHAPES

if TYPE_CHECKING:
    import numpy as np


def short_prompts(max_attributes: int = 2) -> list[str]:
    """Return every caption that names a shape and at most `max_attributes` others, in a fixed order; 1168 for two.

    >>> short_prompts(0)[:2], short_prompts(1)[8:10]
    (['a circle', 'a square'], ['a small circle', 'a large circle'])
    """
    prompts = []
    for count in range(max_attributes + 1):
        for names in itertools.combinations(OPTIONAL, count):
            values = itertools.product(SHAPES, *(ATTRIBUTES[name] for name in names))
            prompts += [caption(dict(zip(("shape", *names), chosen, strict=True))) for chosen in values]
    return prompts


def preserved(prompt: str, rewrite: str) -> dict[str, bool]:
    """Return for each attribute that `prompt` names whether `rewrite` names it with the same value.

    >>> preserved("a red star at the left", "a large red star at the top")
    {'color': True, 'shape': True, 'position': False}
    """
    named = parse(rewrite)
    return {name: named.get(name) == value for name, value in parse(prompt).items()}


def distance(prompt: str, rewrite: str) -> float:
    """Return the share in [0, 1] of the attributes of `prompt` that `rewrite` changes or drops; 0 if the prompt names none.

    It stands in for the distance in Sem-DPO (2507.20133), 1 - cosine of sentence embeddings. Attributes that the rewrite adds do not count.

    >>> distance("a red star", "a large red star"), distance("a red star", "a blue star"), distance("hello", "a star")
    (0.0, 0.5, 0.0)
    """
    same = preserved(prompt, rewrite).values()
    return 1.0 - sum(same) / len(same) if same else 0.0


def random_rewrite(prompt: str, rng: np.random.Generator, *, add: float = 0.7, drift: float = 0.2) -> str:
    """Return a caption that names the attributes of `prompt` and at least one more, if it leaves any open.

    Each open attribute is named with probability `add`, its value uniform. With probability `drift`, one attribute of the prompt is
    changed to another value. Raises ValueError for a prompt that names no shape.
    """
    named = parse(prompt)
    if "shape" not in named:
        raise ValueError(f"`{prompt}` names no shape, and a caption must")
    open_attributes = [name for name in OPTIONAL if name not in named]
    added = [name for name in open_attributes if rng.random() < add]
    if open_attributes and not added:
        added = [str(rng.choice(open_attributes))]
    if rng.random() < drift:
        changed = str(rng.choice(list(named)))
        named[changed] = str(rng.choice([value for value in ATTRIBUTES[changed] if value != named[changed]]))
    return caption(named | {name: str(rng.choice(ATTRIBUTES[name])) for name in added})
