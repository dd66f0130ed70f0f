"""Rewrites of short prompts, the pictures drawn from them, and their scores: what a prompt rewriter learns from and is measured by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.intervals import bootstrapped
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.world import rewrites
from diffalign.data.world.judge import adherence, read
from diffalign.data.world.tastes import taste_score
from diffalign.infer.sample import draw

Meaning = Callable[[Sequence[str], Sequence[str]], list[float]]  # prompts, rewrites -> distances in [0, 1], 0 for the same meaning


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewrite, and the picture that was drawn from it."""

    prompt: str  # the short one
    text: str
    image: Image.Image
    taste: float  # in [0, 1]
    adherence: float  # share in [0, 1] of what the short prompt names that the picture shows
    distance: float  # of meaning, in [0, 1]: what Sem-DPO weighs with


def attribute_distance(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """Return the share of each prompt's attributes that its rewrite lost."""
    return [rewrites.distance(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


@dataclass(frozen=True, slots=True)
class Studio:
    """Draws what rewrites ask for, and judges the pictures by a taste and by the short prompts."""

    pipe: Any
    taste: str
    meaning: Meaning = attribute_distance
    num_inference_steps: int = 8
    guidance_scale: float = 4.0

    def judge(self, prompts: Sequence[str], texts: Sequence[str], seeds: Sequence[int], label: str = "draw") -> list[Rewrite]:
        """Return the rewrite `texts` of `prompts` with their pictures, one for each of `seeds`, and scores."""
        settings = {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}
        images = draw(self.pipe, texts, seeds, **settings, label=label)
        made = []
        for prompt, text, image, far in zip(prompts, texts, images, self.meaning(prompts, texts), strict=True):
            reading = read(image)
            made.append(Rewrite(prompt, text, image, taste_score(self.taste, reading), adherence(prompt, reading), far))
        return made


def preferences(made: Sequence[Rewrite], name: str = "rewrites") -> list[Record]:
    """Return one record for each run of rewrites of the same prompt, a conversation of one turn; equal texts are one candidate.

    Scores by name: taste, adherence and distance (the one where lower is better). Prompts with a single text are left out.
    """
    records = []
    for index, (prompt, group) in enumerate(itertools.groupby(made, lambda rewrite: rewrite.prompt)):
        texts = {rewrite.text: rewrite for rewrite in group}
        candidates = tuple(
            Candidate(text=text, scores={"taste": one.taste, "adherence": one.adherence, "distance": one.distance})
            for text, one in texts.items()
        )
        if len(candidates) > 1:
            turns = (Message("user", prompt),)
            records.append(Record(f"{index:06d}", prompt, candidates, source=f"{name}, row {index}", messages=turns).check())
    return records


@dataclass(frozen=True, slots=True)
class Gain:
    """Mean of paired differences with its 95 % interval."""

    mean: float
    low: float
    high: float


def gain(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Gain:
    """Return by how much `after` lies above `before`, prompt by prompt; the interval is bootstrapped over prompts."""
    gaps = np.asarray(after) - np.asarray(before)
    return Gain(float(gaps.mean()), *bootstrapped(gaps, seed))
