"""The curves of a training log, as drawings within a page; values that are not finite are gaps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffalign.evaluate.pages.html import HUGE, fill, number, show

BUCKETS = 300  # a longer curve keeps the lowest and the highest value of so many buckets: no spike is lost
WIDTH, HEIGHT, ACROSS, DOWN = 288, 180, (34, 282), (148, 20)  # pixels of a chart and of its axes, from low to high
LOGISTIC = (math.log(2), "ln 2: equal to its reference")  # -log sigmoid(0)


@dataclass(frozen=True, slots=True)
class Chart:
    """What a drawing shows: one column of the log, or two, the second dashed."""

    title: str
    note: str
    columns: tuple[str, ...]
    level: tuple[float, str] | None = None  # a line of reference, with its label
    bounds: tuple[float, ...] = ()  # values that the y axis always holds


CHARTS = (
    Chart("Loss", "The objective; training starts from a model equal to its reference.", ("loss",), LOGISTIC),
    Chart(
        "Implicit accuracy",
        "Share of pairs whose preferred one gains more on the reference.",
        ("implicit_acc",),
        (0.5, "chance"),
        (0, 1),
    ),
    Chart(
        "Log-ratio",
        "Above zero, the model explains these candidates better than the reference; rejected is dashed.",
        ("log_ratio/chosen", "log_ratio/rejected"),
        (0, ""),
    ),
    Chart(
        "Margins of rewards",
        "A tenth of the pairs lie above the first curve, a tenth below the dashed one.",
        ("rewards/margins_p90", "rewards/margins_p10"),
        (0, ""),
    ),
    Chart(
        "Saturation",
        "Share of pairs whose margin of rewards is beyond 5: they teach little more.",
        ("rewards/saturated",),
        bounds=(0, 1),
    ),
    Chart(
        "Displacement",
        "Share of pairs whose preferred one lost on the reference though their margin grew.",
        ("displaced",),
        bounds=(0, 1),
    ),
    Chart("Ranking accuracy", "Share of pairs of texts whose preferred one is the likelier.", ("ranking_acc",), bounds=(0, 1)),
    Chart("Alignment gap", "Ranking accuracy of the ideal policy minus that of this one.", ("alignment_gap",), (0, "")),
    Chart("Gradient norm", "Before clipping; lasting growth is a sign of instability.", ("grad_norm",), bounds=(0,)),
    Chart("Learning rate", "As the schedule set it.", ("lr",), bounds=(0,)),
)


def curves(log: Sequence[Mapping[str, float]], facts: Mapping[str, Any]) -> str:
    """Return the part of a page with a drawing of each logged quantity; nothing for a log without any."""
    window = max(1, min(len(log), max(5, len(log) // 15)))
    logistic = "dpo" in str(facts.get("method", "dpo"))  # only a logistic loss starts at ln 2
    charts = [_chart(log, window, one, one.level if logistic or one.level is not LOGISTIC else None) for one in CHARTS]
    text = f"<h2>Training</h2><p>Thin: each logged step. Bold: the mean of the last {window} of them."
    text += fill(facts, {"skipped_steps": " Steps skipped, as not finite or a spike: {}."})
    return f'{text}</p><div class="grid curves">{"".join(charts)}</div>' if any(charts) else ""


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


def _chart(log: Sequence[Mapping[str, float]], window: int, chart: Chart, level: tuple[float, str] | None) -> str:
    lines = [np.array([number(row.get(column)) for row in log]) for column in chart.columns]
    if all(np.isnan(line).all() for line in lines):
        return ""
    steps = np.array([i if math.isnan(number(row.get("step"))) else row["step"] for i, row in enumerate(log)])
    values = np.concatenate([*lines, chart.bounds, [level[0]] if level else []])
    first, last, low, high = steps.min(), steps.max(), np.nanmin(values), np.nanmax(values)
    across, down = (first, max(last, first + 1)), (low, high if high - low > 1 / HUGE else low + max(0.1 * abs(low), 1e-3))
    x, drawn = np.interp(steps, across, ACROSS), _axes(across, down)
    for line, kind in zip(lines, ("first", "second"), strict=False):
        smooth = line if chart.columns == ("lr",) else _mean(line, window)
        drawn += _path(x, np.interp(line, down, DOWN), f"raw {kind}") + _path(x, np.interp(smooth, down, DOWN), f"mean {kind}")
    if level:
        y = np.interp(level[0], down, DOWN)
        drawn += f'<line class="level" x1="{ACROSS[0]}" x2="{ACROSS[1]}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += f'<text class="halo" x="{ACROSS[1]}" y="{y - 5:.1f}" text-anchor="end">{level[1]}</text>'
    both = zip(("aligned", "base"), (column.replace("/", "_").rpartition("_")[2] for column in chart.columns), strict=False)
    names = ": " + ", ".join(f'<span class="{kind}">{word}</span>' for kind, word in both) if len(chart.columns) > 1 else ""
    return f"""<figure><h3>{chart.title}{names}</h3>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{chart.title} over the steps">{drawn}</svg>
<figcaption>{chart.note}</figcaption></figure>"""
