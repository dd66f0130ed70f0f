"""What an alignment did: `report.json` with the facts, and `report.html`, a page in one file that runs and fetches nothing.

A missing fact drops its part of the page; a number that is not finite is a dash there, a gap in a curve, and null in the JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core.files import plain, write
from diffalign.evaluate.pages.html import HUGE, bracket, document, fill, interval, number, percent, picture, show, table, verdict

SHOWN = 24  # comparisons in the grid
BUCKETS = 300  # a longer curve keeps the lowest and the highest value of so many buckets: no spike is lost
WIDTH, HEIGHT, ACROSS, DOWN = 288, 180, (34, 282), (148, 20)  # pixels of a chart and of its axes, from low to high
LOGISTIC = (math.log(2), "ln 2: equal to its reference")  # -log sigmoid(0)
CHARTS = (  # title, what it says, log columns, reference level with its label, values that the y axis always holds
    ("Loss", "The objective; training starts from a model equal to its reference.", ("loss",), LOGISTIC, ()),
    ("Implicit accuracy", "Share of pairs whose preferred one gains more on the reference.", ("implicit_acc",), (0.5, "chance"), (0, 1)),
    ("Log-ratio", "Above zero, the model explains these candidates better than the reference; rejected is dashed.",
     ("log_ratio/chosen", "log_ratio/rejected"), (0, ""), ()),
    ("Margins of rewards", "A tenth of the pairs lie above the first curve, a tenth below the dashed one.",
     ("rewards/margins_p90", "rewards/margins_p10"), (0, ""), ()),
    ("Saturation", "Share of pairs whose margin of rewards is beyond 5: they teach little more.", ("rewards/saturated",), None, (0, 1)),
    ("Displacement", "Share of pairs whose preferred one lost on the reference though their margin grew.", ("displaced",), None, (0, 1)),
    ("Ranking accuracy", "Share of pairs of texts whose preferred one is the likelier.", ("ranking_acc",), None, (0, 1)),
    ("Alignment gap", "Ranking accuracy of the ideal policy minus that of this one.", ("alignment_gap",), (0, ""), ()),
    ("Gradient norm", "Before clipping; lasting growth is a sign of instability.", ("grad_norm",), None, (0,)),
    ("Learning rate", "As the schedule set it.", ("lr",), None, (0,)),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """One held-out prompt drawn by both models with the same seed; scores are the taste's, in [0, 1]."""

    prompt: str
    base: Image.Image
    aligned: Image.Image
    base_score: float
    aligned_score: float
    base_text: str = ""  # what a model of texts made of the prompt, and the image was drawn from
    aligned_text: str = ""


def write_report(folder: Path, facts: Mapping[str, Any], log: Sequence[Mapping[str, float]], comparisons: Sequence[Comparison]) -> Path:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all, and return the path of the page.

    `comparisons` come in the order of the held-out prompts: the page shows the first 24 and says so.
    """
    known, page = plain(facts), folder / "report.html"
    write({folder / "report.json": json.dumps(known, indent=2) + "\n", page: _page(known, log, comparisons)})
    return page


def _headline(facts: Mapping[str, Any]) -> str:
    rate, ends = number(facts.get("win_rate")), interval(facts)
    if math.isnan(rate):
        return "The win rate of the aligned model was not measured"
    spread = f" (95&nbsp;% interval {percent(ends[0])} to {percent(ends[1])}&nbsp;%)" if ends else ""
    wins = f"{percent(rate)}&nbsp;% of {fill(facts, {'prompts_heldout': '{} '})}held-out prompts{spread}"
    wins += fill(facts, {"taste": " under the taste <code>{}</code>"})
    if ends is None:
        return f"The aligned model wins {wins}; there is no interval, so this may be chance"
    if verdict(ends) == "loss":
        return f"The aligned model loses: it wins only {wins}, and the interval lies below one half"
    if verdict(ends) == "unclear":
        return f"No clear win: the aligned model wins {wins}, and the interval is not above one half"
    return f"The aligned model wins {wins}"


def _lede(facts: Mapping[str, Any]) -> str:
    how = {"model": "<code>{}</code>", "method": "aligned with <code>{}</code>", "pairs_train": "on {} pairs", "steps": "in {} steps"}
    settings = {"train_batch_size": "{} pairs a step", "beta": "beta {}", "learning_rate": "learning rate {}", "rank": "adapter rank {}"}
    parts = [part for part in (fill(facts, how, " "), fill(facts, settings, ", ")) if part]
    return f'<p class="soft">{"; ".join(parts)}.</p>' if parts else ""


def _figure(prompt: str, model: str, image: Image.Image, score: float, other: float) -> str:
    outcome = f' <span class="{model}">wins</span>' if score > other else " tie" if score == other else ""
    return f"""<figure>{picture(image, f"{prompt}, by the {model} model")}
<figcaption>{model} {show(score, ".3f")}{outcome}</figcaption></figure>"""


def _grid(facts: Mapping[str, Any], comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    cards, wins, losses = [], 0, 0
    for c in comparisons[:SHOWN]:
        base, aligned = number(c.base_score), number(c.aligned_score)
        wins, losses = wins + (aligned > base), losses + (aligned < base)
        pair = _figure(c.prompt, "base", c.base, base, aligned) + _figure(c.prompt, "aligned", c.aligned, aligned, base)
        texts = (("base", c.base_text), ("aligned", c.aligned_text))
        words = "".join(f'<small><span class="{model}">{model}</span> {escape(text)}</small>' for model, text in texts if text)
        cards.append(f'<div class="card"><h3>{escape(c.prompt)}</h3><div class="pair">{pair}</div>{words}</div>')
    return f"""<h2>Before and after</h2>
<p>The first {len(cards)} of {escape(str(facts.get("prompts_heldout") or len(comparisons)))} held-out prompts in their own order, not picked
by result: here the aligned model wins {wins}, the base model {losses}. Both start from the same noise; the number is the taste's score.</p>
<div class="grid">{"".join(cards)}</div>"""


def _win_rate(facts: Mapping[str, Any]) -> str:
    rate, ends = number(facts.get("win_rate")), interval(facts)
    if math.isnan(rate):
        return ""
    return f"""<h2>Win rate</h2><p>The share of prompts where the taste scores the aligned image above the base image;
a tie counts one half. {"The bracket is the 95&nbsp;% interval, from resampling the prompts." if ends else ""}</p>
<svg height="54" role="img" aria-label="win rate {percent(rate)} percent"><rect class="track" width="100%" height="32"/>
<rect class="bar" width="{100 * min(max(rate, 0.0), 1.0):.2f}%" y="6" height="20"/><line class="level" x1="50%" x2="50%" y2="36"/>
{bracket(*ends, 16) if ends else ""}<text class="rate" x="10" y="21">{percent(rate)}&nbsp;%</text>
<text y="50">0&nbsp;%</text><text x="50%" y="50" text-anchor="middle">50&nbsp;%, a coin toss</text>
<text x="100%" y="50" text-anchor="end">100&nbsp;%</text></svg>"""


def _numbers(facts: Mapping[str, Any]) -> str:
    lines = (
        ("Mean taste score", "taste_base", "taste_aligned", "What was trained for: the taste's score of the held-out images, 0 to 1."),
        ("Adherence", "adherence_base", "adherence_aligned", "Share of what the prompt names that the image shows; it should not fall."),
        ("Adherence, named", "adherence_named_base", "adherence_named_aligned", "The same on prompts that name what the taste judges."),
        ("Meaning kept", "kept_base", "kept_aligned", "Share of what the short prompt names that the rewrite names, too."),
        ("Mean taste score, plain", "taste_base", "taste_plain", "Trained on the same pairs without the weight of their meaning."),
        ("Meaning kept, plain", "kept_base", "kept_plain", "The same without that weight."),
        ("Implicit accuracy, held-out", "", "implicit_accuracy_heldout", "Share of unseen pairs ranked as the taste does; chance is 0.5."),
    )
    rows = []
    for name, before, after, meaning in lines:
        base, aligned = number(facts.get(before)), number(facts.get(after))
        if math.isfinite(aligned):
            rows.append((f"{name}<small>{meaning}</small>", show(base, ".3f"), show(aligned, ".3f"), show(aligned - base, "+.3f")))
    return f"<h2>Numbers</h2>{table(rows, ('', 'base', 'aligned', 'change'))}" if rows else ""


def _mean(y: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the finite values among the last `window`, NaN where there is none."""
    finite, ones = np.isfinite(y), np.ones(window)
    count = np.convolve(finite, ones)[: len(y)]
    return np.where(count > 0, np.convolve(np.where(finite, y, 0.0), ones)[: len(y)] / np.maximum(count, 1.0), np.nan)


def _path(x: np.ndarray, y: np.ndarray, kind: str) -> str:
    """Return a polyline through pixel positions that breaks where y is NaN."""
    buckets = np.array_split(np.arange(len(y)), min(len(y), BUCKETS))
    keep = np.unique([b[np.nan_to_num(sign * y[b], nan=np.inf).argmin()] for b in buckets for sign in (1, -1)])
    pieces, pen = [], "M"
    for i in keep:
        pieces += [] if np.isnan(y[i]) else [f"{pen}{x[i]:.1f},{y[i]:.1f}{'h0' * (pen == 'M')}"]
        pen = "M" if np.isnan(y[i]) else "L"
    return f'<path class="{kind}" d="{"".join(pieces)}"/>'


def _ticks(low: float, high: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 4 * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def _axes(steps: tuple[float, float], values: tuple[float, float]) -> str:
    """Return grid lines and labels; values far from one share a power of ten."""
    exponent = 0 if -3 < (power := math.floor(math.log10(max(map(abs, values))))) < 4 else power
    lines = f'<text x="{sum(ACROSS) / 2}" y="{HEIGHT - 2}" text-anchor="middle">step</text>'
    if exponent:
        lines += f'<text x="{ACROSS[0]}" y="{DOWN[1] - 8}">&times; 10<tspan dy="-4" font-size="9">{show(exponent, "d")}</tspan></text>'
    for tick in _ticks(*values):
        y = np.interp(tick, values, DOWN)
        lines += f'<line class="rule" x1="{ACROSS[0]}" x2="{ACROSS[1]}" y1="{y:.1f}" y2="{y:.1f}"/>'
        lines += f'<text x="{ACROSS[0] - 6}" y="{y + 4:.1f}" text-anchor="end">{show(tick / 10.0**exponent + 0.0, ".4g")}</text>'
    for tick in _ticks(*steps):
        lines += f'<text x="{np.interp(tick, steps, ACROSS):.1f}" y="{DOWN[0] + 14}" text-anchor="middle">{tick:.6g}</text>'
    return lines


def _chart(log: Sequence[Mapping[str, float]], window: int, chart: tuple, level: tuple[float, str] | None) -> str:
    title, note, keys, _, bounds = chart
    lines = [np.array([number(row.get(key)) for row in log]) for key in keys]
    if all(np.isnan(line).all() for line in lines):
        return ""
    steps = np.array([i if math.isnan(number(row.get("step"))) else row["step"] for i, row in enumerate(log)])
    seen = np.concatenate([*lines, bounds, [level[0]] if level else []])
    first, last, low, high = steps.min(), steps.max(), np.nanmin(seen), np.nanmax(seen)
    across, down = (first, max(last, first + 1)), (low, high if high - low > 1 / HUGE else low + max(0.1 * abs(low), 1e-3))
    x, drawn = np.interp(steps, across, ACROSS), _axes(across, down)
    for line, kind in zip(lines, ("first", "second"), strict=False):
        smooth = line if keys == ("lr",) else _mean(line, window)
        drawn += _path(x, np.interp(line, down, DOWN), f"raw {kind}") + _path(x, np.interp(smooth, down, DOWN), f"mean {kind}")
    if level:
        y = np.interp(level[0], down, DOWN)
        drawn += f'<line class="level" x1="{ACROSS[0]}" x2="{ACROSS[1]}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += f'<text class="halo" x="{ACROSS[1]}" y="{y - 5:.1f}" text-anchor="end">{level[1]}</text>'
    both = zip(("aligned", "base"), (key.replace("/", "_").rpartition("_")[2] for key in keys), strict=False)
    names = ": " + ", ".join(f'<span class="{kind}">{word}</span>' for kind, word in both) if len(keys) > 1 else ""
    return f"""<figure><h3>{title}{names}</h3>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over the steps">{drawn}</svg><figcaption>{note}</figcaption></figure>"""


def _curves(facts: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    window = max(1, min(len(log), max(5, len(log) // 15)))
    other = "dpo" not in str(facts.get("method", "dpo"))  # only a logistic loss starts at ln 2
    charts = [_chart(log, window, chart, None if other and chart[3] is LOGISTIC else chart[3]) for chart in CHARTS]
    text = f"<h2>Training</h2><p>Thin: each logged step. Bold: the mean of the last {window} of them."
    text += fill(facts, {"skipped_steps": " Steps skipped, as not finite or a spike: {}."})
    return f'{text}</p><div class="grid curves">{"".join(charts)}</div>' if any(charts) else ""


def _origin(facts: Mapping[str, Any]) -> str:
    """Return what it took and how to do it again: timings, the command, every fact."""
    seconds = facts.get("seconds") or {}
    times = table([(escape(name), show(number(spent), ".1f") + " s") for name, spent in seconds.items()], (), "narrow")
    again = fill(facts, {"command": "{}", "seed": "# seed {}", "version": "# diffalign {}"}, "\n")
    every = table([(escape(k), escape(v if isinstance(v, str) else json.dumps(v))) for k, v in facts.items()], (), "facts")
    return f"""{f"<h2>Timings</h2>{times}" if times else ""}{f"<h2>Do it again</h2><pre>{again}</pre>" if again else ""}
{f"<details><summary>All facts</summary>{every}</details>" if every else ""}"""


def _page(facts: Mapping[str, Any], log: Sequence[Mapping[str, float]], comparisons: Sequence[Comparison]) -> str:
    body = "\n".join((_lede(facts), _grid(facts, comparisons), _win_rate(facts), _numbers(facts), _curves(facts, log), _origin(facts)))
    return document("diffalign report", _headline(facts), body)
