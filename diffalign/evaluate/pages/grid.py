"""The pictures of an evaluation: a grid that flips between runs without scripts, and the largest losses and wins beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image

from diffalign.evaluate.pages.html import SMALL, number, picture, share, short, show

PICTURES, MOST, LEAST = 96, 24, 6  # pictures in the grid, and from how many prompts at most and, with many runs, at least
EXTREMES = 3  # losses, and as many wins, of each run


@dataclass(frozen=True, slots=True)
class Shown:
    """What every run drew of one prompt from the same seed.

    Only the pictures that a page shows are looked up, so that `images` may read each from its file.
    """

    prompt: str
    images: Mapping[str, Image.Image]
    """By run."""
    scores: Mapping[str, Mapping[str, float]]
    """By run and scorer; NaN for what a scorer cannot judge."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """By run: the text that the picture was drawn from, where a language model rewrote the prompt."""


def style(runs: Sequence[str]) -> str:
    """Return the rules that show one run at a time, and its counterpart under the pointer or the keyboard's focus.

    A browser that does not know `:has` drops them, and shows the runs side by side, as paper does.
    """
    rules = []
    for i in range(len(runs)):
        chosen, other = f".flip:has(#show-{i}:checked) .stack", 0 if i else 1
        rules.append(f"{chosen}:not(:hover, :focus) .run:not(.run-{i}), {chosen}:is(:hover, :focus) .run:not(.run-{other})")
    return f"@media screen {{ {', '.join(rules)} {{ visibility: hidden; }} }}\n" if len(runs) > 1 else ""


def grid(
    runs: Sequence[str], shown: Sequence[Shown], images_per_prompt: int | None, *, margins: Mapping[str, float], scorers: Sequence[str]
) -> str:
    """Return the first prompts as cards, with the switch that flips all of them; `runs` starts with the base.

    `margins` are by scorer the differences from which a win can be seen; of `scorers` it is told what they say of the pictures shown.
    """
    by_prompt: dict[str, Shown] = {}
    for one in shown:
        by_prompt.setdefault(one.prompt, one)
    first = list(by_prompt.values())
    first_shown = first[: _prompts(runs)]
    if not first_shown:
        return ""
    cards = [_card(one, runs, margins, _most(runs)) for one in first_shown]
    which = f", the first of {images_per_prompt} images each" if (images_per_prompt or 1) > 1 else ""
    small = max(next(iter(first[0].images.values())).size) <= SMALL
    return f"""<h2>Pictures</h2><p>The first {len(cards)} of {len(first)} prompts in their own order, not picked by result{which}. All runs
start from the same noise. {_tally(first_shown, runs, margins, scorers)} {_legend(runs)}</p>
<div class="flip{" tiny" if small else ""}" style="--runs: {len(runs)}">{_switch(runs)}<div class="grid">{"".join(cards)}</div></div>"""


def extremes(runs: Sequence[str], shown: Sequence[Shown], scorers: Sequence[str], margins: Mapping[str, float]) -> str:
    """Return each run's largest losses and wins against the base by the mean of `scorers`; for `margins` see `grid`."""
    parts = []
    for run in runs[1:]:
        gains = gained(run, runs[0], shown, scorers)
        order = sorted((i for i in range(len(shown)) if math.isfinite(gains[i])), key=lambda i: gains[i])
        ends = (("losses", [i for i in order if gains[i] < 0][:EXTREMES]), ("wins", [i for i in order[::-1] if gains[i] > 0][:EXTREMES]))
        for word, picked in ends:
            cards = "".join(_card(shown[i], (runs[0], run), margins, _most(runs), gains[i]) for i in picked)
            there = f'<div class="grid pairs">{cards}</div>' if cards else "<p>None.</p>"
            parts += [f"<h3>Largest {word} of {escape(run)}</h3>{there}"] if order else []
    judges = ", ".join(f"<code>{escape(scorer)}</code>" for scorer in scorers)
    how = "" if len(scorers) == 1 else ", each in units of its own standard deviation and then averaged"
    return f"""<h2>Largest losses and wins</h2><p>Of {len(shown)} drawings of each run, those that lose and win most against the base
under {judges}{how}: picked by result, the largest first. The number
after a prompt is what the run gains.</p>{"".join(parts)}""" if parts else ""  # fmt: skip


def gained(run: str, base: str, shown: Sequence[Shown], scorers: Sequence[str]) -> np.ndarray:
    """Return (N,): what each drawing gains over the base's under `scorers`; NaN where one of them did not judge.

    Scorers have different scales: several count in units of their standard deviation over both runs, and are averaged.
    """
    both = np.array([[[number(one.scores.get(who, {}).get(s)) for s in scorers] for who in (base, run)] for one in shown])
    if not both.size:
        return np.full(len(shown), np.nan)
    gains = both[:, 1] - both[:, 0]
    if len(scorers) == 1:
        return gains[:, 0]
    complete = both[np.isfinite(gains).all(axis=1)]
    spread = complete.std(axis=(0, 1)) if len(complete) else np.ones(len(scorers))
    return (gains / np.where(spread > 0, spread, 1.0)).mean(axis=1)


def _tally(first: Sequence[Shown], runs: Sequence[str], margins: Mapping[str, float], scorers: Sequence[str]) -> str:
    """Return what one run wins, loses and ties of the pictures shown, and how many of its wins can be seen; nothing for several."""
    if len(runs) != 2 or len(scorers) != 1:
        return ""
    (base, run), (scorer,) = runs, scorers
    gains = [number(one.scores.get(run, {}).get(scorer)) - number(one.scores.get(base, {}).get(scorer)) for one in first]
    wins, losses, ties = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), gains.count(0.0)
    visible = sum(gain > margins.get(scorer, 0.0) for gain in gains)
    eye = f"; of the {wins} wins {visible} can be seen" if wins and scorer in margins else ""
    return f"Of those here <code>{escape(run)}</code> wins {wins}, loses {losses} and ties {ties} under <code>{escape(scorer)}</code>{eye}."


def _legend(runs: Sequence[str]) -> str:
    if len(runs) < 2:
        return ""
    other = "the base's" if len(runs) == 2 else f"the base's, or from the base that of {escape(runs[1])}"
    return f"""<span class="flipping">Flip all of them here, or one by pointing at it or tabbing to it: that shows {other}.</span>
<span class="win">&#9650;</span> scores above the base, <span class="loss">&#9660;</span> below; hollow if by too little to be seen."""


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


def _most(runs: Sequence[str]) -> int:
    """Return the bytes that a picture of a page may take: the grid has as many as this, and each aligned run its extremes."""
    return share(len(runs) * _prompts(runs) + 4 * EXTREMES * (len(runs) - 1))


def _prompts(runs: Sequence[str]) -> int:
    """Return how many prompts the grid shows at most."""
    return max(LEAST, min(MOST, PICTURES // max(1, len(runs))))


def _card(one: Shown, runs: Sequence[str], margins: Mapping[str, float], most: int, gain: float | None = None) -> str:
    figures = "".join(_figure(one, run, i, runs[0], margins, most) for i, run in enumerate(runs))
    reach, change = (' tabindex="0"', "") if gain is None else ("", f" <small>{show(gain, '+.3f')}</small>")
    return f'<div class="card"><h3>{escape(short(one.prompt))}{change}</h3><div class="stack"{reach}>{figures}</div></div>'


def _figure(one: Shown, run: str, place: int, base: str, margins: Mapping[str, float], most: int) -> str:
    lines = []
    for scorer, value in one.scores.get(run, {}).items():
        score, before = number(value), number(one.scores.get(base, {}).get(scorer))
        lines.append(f"<br>{escape(scorer)} {show(score, '.3f')}{_mark(score - before, margins.get(scorer, 0.0))}")
    lines += [f"<br>{escape(short(text))}" for text in [one.texts.get(run)] if text]
    name = f'<span class="{"aligned" if place else "base"}">{escape(run)}</span>'
    image = picture(one.images[run], f"{one.prompt}, by {run}", most)
    return f'<figure class="run run-{place}">{image}<figcaption>{name}{"".join(lines)}</figcaption></figure>'


def _mark(gain: float, margin: float) -> str:
    """Return the triangle of a score above or below the base's, hollow within the margin; nothing for equal ones."""
    visible = abs(gain) > margin
    if gain > 0:
        return f' <span class="win">{"&#9650;" if visible else "&#9651;"}</span>'
    return f' <span class="loss">{"&#9660;" if visible else "&#9661;"}</span>' if gain < 0 else ""
