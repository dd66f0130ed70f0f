"""Exact checks of whether images of the embedded world show what their prompts name, after GenEval (2310.11513, djghosh13/geneval).

GenEval counts an image as correct if it shows everything its prompt names. Its overall score is the mean, over kinds of tasks, of the
share of correct images, so that every kind counts the same however many prompts it has. GenEval finds objects with a detector; here
`judge.read` measures the image, and the kinds of tasks are the attributes.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from diffalign.data.world.captions import caption, parse
from diffalign.data.world.judge import matches, read
from diffalign.data.world.scenes import ATTRIBUTES


def is_caption(text: str) -> bool:
    """Return whether `text` is exactly a caption of the embedded world.

    >>> is_caption("a red star at the left"), is_caption("a star red"), is_caption("at the left")
    (True, False, False)
    """
    named = parse(text)
    return "shape" in named and caption(named) == text


def checks(prompt: str, image: Image.Image) -> dict[str, bool]:
    """Return for each attribute that `prompt` names (size, color, shape, position, background) whether `image` shows it.

    Each is checked separately: a blue star fails `color` for "a red star" and passes `shape`. An image without a shape can pass
    `background` alone. The result is empty for a prompt that names no attribute; the share that passes is `judge.adherence`.
    """
    return matches(prompt, read(image))


def shares(results: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Return the shares in [0, 1] of correct images, from the `checks` of each image.

    `all` is the share of images that show everything their prompt names; each attribute's share is among the images whose prompt names
    it; `overall` is the mean over the attributes. Images whose prompt names nothing are not counted; without others the result is empty.

    >>> shares([{"shape": True, "color": False}, {"shape": True}, {}])
    {'all': 0.5, 'color': 0.0, 'shape': 1.0, 'overall': 0.5}
    """
    counted = [result for result in results if result]
    if not counted:
        return {}
    columns = {name: [result[name] for result in counted if name in result] for name in ATTRIBUTES}
    parts = {name: sum(column) / len(column) for name, column in columns.items() if column}
    correct = sum(all(result.values()) for result in counted) / len(counted)
    return {"all": correct} | parts | {"overall": sum(parts.values()) / len(parts)}
