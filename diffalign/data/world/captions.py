"""Captions of scenes, such as "a large red heart at the left on a gray background" or "a star", and how they are parsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffalign.data.world.scenes import ATTRIBUTES, Scene

if TYPE_CHECKING:
    import numpy as np

PLACES = {
    "center": "in the center",
    "left": "at the left",
    "right": "at the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
OPTIONAL = ("size", "color", "position", "background")
_OWNER = {value: name for name, values in ATTRIBUTES.items() for value in values}
VOCABULARY = tuple(sorted({*_OWNER, *" ".join(PLACES.values()).split(), "a", "an", "on", "background"}))


def caption(named: dict[str, str]) -> str:
    """Return the caption that names exactly the attributes in `named` (`shape` is required).

    >>> caption({"shape": "star"}), caption({"shape": "heart", "color": "orange", "position": "left", "background": "gray"})
    ('a star', 'an orange heart at the left on a gray background')
    """
    noun = " ".join(named[name] for name in ("size", "color", "shape") if name in named)
    words = [("an " if noun[0] in "aeiou" else "a ") + noun]
    if "position" in named:
        words.append(PLACES[named["position"]])
    if "background" in named:
        words.append(f"on a {named['background']} background")
    return " ".join(words)


def full_caption(scene: Scene) -> str:
    """Return the caption that names all five attributes."""
    return caption(scene.attributes())


def random_caption(scene: Scene, rng: np.random.Generator, keep: float = 0.5, without: Sequence[str] = ()) -> str:
    """Return a caption that names the shape, and each other attribute with probability `keep`, but none of those in `without`."""
    named = {name: value for name, value in scene.attributes().items() if name == "shape" or rng.random() < keep}
    return caption({name: value for name, value in named.items() if name not in without})


def parse(prompt: str) -> dict[str, str]:
    """Return the attributes that `prompt` names, {attribute: value}; words that are not in the vocabulary are ignored.

    >>> parse("a large star on a gray background")
    {'size': 'large', 'shape': 'star', 'background': 'gray'}
    """
    return {_OWNER[word]: word for word in prompt.lower().replace(",", " ").split() if word in _OWNER}
