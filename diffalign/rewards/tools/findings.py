"""What tools find in a picture, and whether it agrees with what its prompt asks for: GenEval's rules, each check by itself."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diffalign.data.colours import flattened
from diffalign.rewards.tools.requirements import COLORS, PLACES, Requirements

Corners = tuple[float, float, float, float]  # left, top, right, bottom in pixels
SLACK = 0.1  # of two things' sizes, by which their centres must lie apart beyond overlapping to stand in a relation (GenEval)


@dataclass(frozen=True, slots=True)
class Box:
    """A thing that a detector finds."""

    label: str
    score: float
    box: Corners
    color: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A text that a reader finds."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What tools find in one picture."""

    size: tuple[int, int]  # width, height
    boxes: tuple[Box, ...] = ()
    lines: tuple[Line, ...] = ()


def checks(wanted: Requirements, found: Findings) -> dict[str, float]:
    """Return for each thing that a prompt asks for how far a picture shows it, in [0, 1]; all but texts are 0 or 1.

    The rules are those of GenEval's evaluate_images.py: so many boxes of a class, best first; of these the wanted number has the colour;
    each stands in its relation to each of the other things. A place is the nearest of five, 3/16 of the side from the middle. A text is
    1 - edit distance / length, as Flow-GRPO rewards it (2505.05470).
    """
    results: dict[str, float] = {}
    dealt = _dealt(wanted, found)
    labels = [one.label for one in wanted.include]
    for one, own in zip(wanted.include, dealt, strict=True):
        which = f"{one.color} {one.label}" if one.color is not None and labels.count(one.label) > 1 else one.label
        name = f"{one.count} {which}"
        results[name] = float(len(own) == one.count)
        if one.color is not None:
            results[f"{name}: {one.color}"] = float(len(own) == one.count and all(_alike(box.color, one.color) for box in own))
        if one.place is not None:
            results[f"{name}: {one.place}"] = float(bool(own) and all(place_of(box.box, found.size) == one.place for box in own))
        if one.relation is not None:
            relation, other = one.relation
            others = dealt[other]
            stand = bool(own) and bool(others) and all(relation in relations(a.box, b.box) for a in own for b in others)
            results[f"{name}: {relation} {wanted.include[other].label}"] = float(stand)
    for label, count in wanted.exclude:
        results[f"fewer than {count} {label}"] = float(sum(_alike(box.label, label) for box in found.boxes) < count)
    if wanted.text is not None:
        results[f'"{wanted.text}"'] = likeness(" ".join(line.text for line in found.lines), wanted.text)
    return results


def _dealt(wanted: Requirements, found: Findings) -> list[list[Box]]:
    """Return the boxes that stand for each wanted thing, at most its number: the best of its class.

    Where a class is wanted more than once, which GenEval's prompts never do, a box stands for one thing, and first for one of its colour.
    """
    best = sorted(found.boxes, key=lambda box: -box.score)
    left = {one.label: [box for box in best if _alike(box.label, one.label)] for one in wanted.include}
    again = Counter(one.label for one in wanted.include)
    dealt: dict[int, list[Box]] = {}
    for place, one in sorted(enumerate(wanted.include), key=lambda pair: pair[1].color is None):
        boxes = left[one.label]
        if again[one.label] > 1:
            boxes = sorted(boxes, key=lambda box: one.color is not None and not _alike(box.color, one.color))
        dealt[place] = boxes[: one.count]
        left[one.label] = boxes[one.count :]
    return [dealt[place] for place in range(len(wanted.include))]


def _alike(found: str | None, wanted: str) -> bool:
    """Return whether a tool's word is the wanted one, in any case and either spelling of gray."""
    return found is not None and found.strip().casefold().replace("grey", "gray") == wanted.casefold().replace("grey", "gray")


def relations(a: Corners, b: Corners) -> set[str]:
    """Return how `a` stands to `b`, GenEval's rule: the offset of the centres, less a tenth of both sizes, by its direction.

    >>> sorted(relations((0, 0, 10, 10), (30, 0, 40, 10)))
    ['left of']
    """
    offsets = []
    for low, high in ((0, 2), (1, 3)):
        apart = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        sizes = (a[high] - a[low]) + (b[high] - b[low])
        offsets.append(math.copysign(max(abs(apart) - SLACK * sizes, 0.0), apart))
    length = math.hypot(*offsets)
    if max(map(abs, offsets)) < 1e-3:
        return set()
    across, down = (offset / length for offset in offsets)
    named = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, holds in named.items() if holds}


def place_of(box: Corners, size: tuple[int, int]) -> str:
    """Return which of the five places a box is nearest to."""
    across, down = ((box[i] + box[i + 2]) / 2 / size[i] - 0.5 for i in (0, 1))
    return min(PLACES, key=lambda name: math.hypot(across - PLACES[name][0], down - PLACES[name][1]))


def likeness(read: str, wanted: str) -> float:
    """Return 1 - edit distance / length of two texts without spaces and case, at least 0; 1 where the text stands within what is read.

    >>> likeness("Grand OPENING today", "grand opening"), likeness("0pening", "opening")
    (1.0, 0.8571428571428572)
    """
    ours, theirs = (re.sub(r"[\W_]+", "", text.casefold()) for text in (wanted, read))
    if not ours or ours in theirs:
        return float(ours in theirs)
    row = list(range(len(theirs) + 1))
    for i, letter in enumerate(ours, 1):
        row, before = [i], row
        for j, other in enumerate(theirs, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return max(0.0, 1.0 - row[-1] / len(ours))


def color_of(image: Image.Image, box: Corners) -> str:
    """Return the name of the colour nearest to the median of the middle half of a box."""
    left, top, right, bottom = box
    middle = (left + (right - left) / 4, top + (bottom - top) / 4, right - (right - left) / 4, bottom - (bottom - top) / 4)
    area = [round(max(0.0, value)) for value in middle]
    area[2], area[3] = max(area[2], area[0] + 1), max(area[3], area[1] + 1)
    pixels = np.asarray(flattened(image).crop((area[0], area[1], area[2], area[3])), dtype=np.float64).reshape(-1, 3)
    median = np.median(pixels, axis=0)
    return min(COLORS, key=lambda name: float(((median - np.array(COLORS[name])) ** 2).sum()))


def evidence(found: Findings, results: Mapping[str, float]) -> dict[str, object]:
    """Return findings and checks as plain values, for a table."""
    boxes = [{"label": b.label, "score": b.score, "box": [round(x, 1) for x in b.box], "color": b.color} for b in found.boxes]
    return {"checks": dict(results), "boxes": boxes, "lines": [{"text": line.text, "score": line.score} for line in found.lines]}


def drawn(image: Image.Image, boxes: Sequence[Mapping[str, object]]) -> Image.Image:
    """Return a copy of a picture with the boxes of `evidence` drawn on it."""
    copy = flattened(image).copy()
    pen = ImageDraw.Draw(copy)
    for box in boxes:
        left, top, right, bottom = (float(x) for x in box["box"])  # pyright: ignore[reportGeneralTypeIssues]  # four numbers of `evidence`
        pen.rectangle((left, top, right, bottom), outline="red")
        pen.text((left + 2, top + 1), str(box["label"]), fill="red")
    return copy
