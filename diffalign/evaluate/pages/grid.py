"""The pictures of an evaluation: a grid that flips between runs without scripts, and the largest losses and wins beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from diffalign.evaluate.pages.html import SMALL, number, picture, show

PICTURES, MOST, LEAST = 96, 24, 6  # pictures in the grid, and from how many prompts at most and, with many runs, at least
EXTREMES = 3  # losses, and as many wins, of each run


@dataclass(frozen=True, slots=True)
class Shown:
    """What every run drew of one prompt from the same seed, and what it scored: by run name, then by scorer; NaN if not judged.

    Only the pictures that a page shows are looked up, so `images` may read them when asked.
    """

    prompt: str
    images: Mapping[str, Image.Image]
    scores: Mapping[str, Mapping[str, float]]


def style(runs: Sequence[str]) -> str:
    """Return the rules that show one run at a time, and its counterpart under the pointer or the keyboard's focus.

    A browser that does not know `:has` drops them, and shows the runs side by side, as paper does.
    """
    rules = []
    for i in range(len(runs)):
        chosen, other = f".flip:has(#show-{i}:checked) .stack", 0 if i else 1
        rules.append(f"{chosen}:not(:hover, :focus) .run:not(.run-{i}), {chosen}:is(:hover, :focus) .run:not(.run-{other})")
    return f"@media screen {{ {', '.join(rules)} {{ visibility: hidden; }} }}\n" if len(runs) > 1 else ""


def grid(runs: Sequence[str], shown: Sequence[Shown], images_per_prompt: int | None) -> str:
    """Return the first prompts as cards, with the switch that flips all of them; `runs` starts with the base."""
    by_prompt: dict[str, Shown] = {}
    for one in shown:
        by_prompt.setdefault(one.prompt, one)
    first = list(by_prompt.values())
    cards = [_card(one, runs) for one in first[: max(LEAST, min(MOST, PICTURES // max(1, len(runs))))]]
    if not cards:
        return ""
    which = f", the first of {images_per_prompt} images each" if (images_per_prompt or 1) > 1 else ""
    small = max(next(iter(first[0].images.values())).size) <= SMALL
    return f"""<h2>Pictures</h2><p>The first {len(cards)} of {len(first)} prompts in their own order, not picked by result{which}. All runs
start from the same noise. {_legend(runs)}</p>
<div class="flip{" tiny" if small else ""}" style="--runs: {len(runs)}">{_switch(runs)}<div class="grid">{"".join(cards)}</div></div>"""


def extremes(runs: Sequence[str], shown: Sequence[Shown], scorers: Sequence[str]) -> str:
    """Return each run's largest losses and wins against the base by the mean of `scorers`, those held out of training."""
    parts = []
    for run in runs[1:]:
        gains = gained(run, runs[0], shown, scorers)
        order = sorted((i for i in range(len(shown)) if math.isfinite(gains[i])), key=lambda i: gains[i])
        ends = (("losses", [i for i in order if gains[i] < 0][:EXTREMES]), ("wins", [i for i in order[::-1] if gains[i] > 0][:EXTREMES]))
        for word, picked in ends:
            cards = "".join(_card(shown[i], (runs[0], run), gains[i]) for i in picked)
            there = f'<div class="grid pairs">{cards}</div>' if cards else "<p>None.</p>"
            parts += [f"<h3>Largest {word} of {escape(run)}</h3>{there}"] if order else []
    judges = ", ".join(f"<code>{escape(scorer)}</code>" for scorer in scorers)
    how = "" if len(scorers) == 1 else ", each in units of its own standard deviation and then averaged"
    return f"""<h2>Largest losses and wins</h2><p>Of {len(shown)} drawings of each run, those that lose and win most against the base
under {judges}{how}: picked by result, the largest first. The number
after a prompt is what the run gains.</p>{"".join(parts)}""" if parts else ""  # fmt: skip


def gained(run: str, base: str, shown: Sequence[Shown], scorers: Sequence[str]) -> np.ndarray:
    """Return (N,): what each drawing gains over the base's under `scorers`; NaN where one of them did not judge.

    Scorers have scales of their own: several count in units of their standard deviation over both runs, and are averaged.
    """
    both = np.array([[[number(one.scores.get(who, {}).get(s)) for s in scorers] for who in (base, run)] for one in shown])
    if not both.size:
        return np.full(len(shown), np.nan)
    gains = both[:, 1] - both[:, 0]
    if len(scorers) == 1:
        return gains[:, 0]
    judged = both[np.isfinite(gains).all(axis=1)]
    spread = judged.std(axis=(0, 1)) if len(judged) else np.ones(len(scorers))
    return (gains / np.where(spread > 0, spread, 1.0)).mean(axis=1)


def _legend(runs: Sequence[str]) -> str:
    if len(runs) < 2:
        return ""
    other = "the base's" if len(runs) == 2 else f"the base's, or from the base that of {escape(runs[1])}"
    return f"""<span class="flipping">Flip all of them here, or one by pointing at it or tabbing to it: that shows {other}.</span>
<span class="win">&#9650;</span> scores above the base, <span class="loss">&#9660;</span> below."""


def _switch(runs: Sequence[str]) -> str:
    """Return the radio buttons, the first aligned run chosen: arrow keys move between them."""
    if len(runs) < 2:
        return ""
    names = [(str(i), escape(run)) for i, run in enumerate(runs)] + [("all", "side by side")]
    buttons = "".join(
        f'<label><input type="radio" name="show" id="show-{i}" autocomplete="off"{" checked" * (i == "1")}><span>{name}</span></label>'
        for i, name in names
    )
    return f'<fieldset class="switch"><legend>Show</legend>{buttons}</fieldset>'


def _card(one: Shown, runs: Sequence[str], gain: float | None = None) -> str:
    figures = "".join(_figure(one, run, i, runs[0]) for i, run in enumerate(runs))
    reach, change = (' tabindex="0"', "") if gain is None else ("", f" <small>{show(gain, '+.3f')}</small>")
    return f'<div class="card"><h3>{escape(one.prompt)}{change}</h3><div class="stack"{reach}>{figures}</div></div>'


def _figure(one: Shown, run: str, place: int, base: str) -> str:
    lines = []
    for scorer, value in one.scores.get(run, {}).items():
        score, before = number(value), number(one.scores.get(base, {}).get(scorer))
        mark = ' <span class="win">&#9650;</span>' if score > before else ' <span class="loss">&#9660;</span>' if score < before else ""
        lines.append(f"<br>{escape(scorer)} {show(score, '.3f')}{mark}")
    name = f'<span class="{"aligned" if place else "base"}">{escape(run)}</span>'
    image = picture(one.images[run], f"{one.prompt}, by {run}")
    return f'<figure class="run run-{place}">{image}<figcaption>{name}{"".join(lines)}</figcaption></figure>'
