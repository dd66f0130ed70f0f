"""Exact checks of pictures of the embedded world, after GenEval: what a prompt names is in the picture, or it is not.

GenEval (Ghosh, Hajishirzi, Schmidt, "GenEval: An object-focused framework for evaluating text-to-image alignment", 2310.11513;
djghosh13/geneval) asks of each picture whether everything its prompt names is there, takes the share of correct pictures in each
kind of task, and as overall score the mean of these shares, so that a kind with many prompts counts no more than one with few. It
finds objects with a detector; here the judge that measures pictures (`judge.read`) takes its place, and kinds of tasks are
attributes.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from diffalign.data.world.captions import caption, parse
from diffalign.data.world.judge import matches, read
from diffalign.data.world.scenes import ATTRIBUTES


def is_caption(text: str) -> bool:
    """Return whether `text` is a caption of the world's own grammar, word for word.

    >>> is_caption("a red star at the left"), is_caption("a star red"), is_caption("at the left")
    (True, False, False)
    """
    named = parse(text)
    return "shape" in named and caption(named) == text


def checks(prompt: str, image: Image.Image) -> dict[str, bool]:
    """Return for each attribute that `prompt` names (size, color, shape, position, background) whether `image` shows it.

    Each is checked by itself: a blue star fails `color` for "a red star" and passes `shape`. A picture without a shape passes none
    but perhaps `background`. Nothing for a prompt that names nothing; the share that passes is the judge's adherence.
    """
    return matches(prompt, read(image))


def shares(found: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Return what part of the pictures is right, of the `checks` of each, all in [0, 1].

    `all`: pictures that show everything their prompt names (GenEval's correct pictures); then each attribute, among the pictures
    whose prompt names it; `overall`: the mean over these attributes (GenEval's overall score, with attributes for its tasks).
    Pictures whose prompt names nothing count nowhere; empty where that is all of them.

    >>> shares([{"shape": True, "color": False}, {"shape": True}, {}])
    {'all': 0.5, 'color': 0.0, 'shape': 1.0, 'overall': 0.5}
    """
    named = [one for one in found if one]
    if not named:
        return {}
    columns = {name: [one[name] for one in named if name in one] for name in ATTRIBUTES}
    parts = {name: sum(column) / len(column) for name, column in columns.items() if column}
    return {"all": sum(all(one.values()) for one in named) / len(named)} | parts | {"overall": sum(parts.values()) / len(parts)}
