"""What an alignment did: `report.json` with the facts, and `report.html`, a page in one file that runs and fetches nothing.

A missing fact drops its part of the page; a number that is not finite is a dash there, a gap in a curve, and null in the JSON.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHOWN = 24  # comparisons in the grid
SMALL, LARGEST = 128, 384  # pixels: up to the first, images are enlarged without smoothing; beyond the second, they are scaled down
BUCKETS = 300  # a longer curve keeps the lowest and the highest value of so many buckets: no spike is lost
HUGE = 1e100  # counts as not finite: it could not be drawn
WIDTH, HEIGHT, ACROSS, DOWN = 288, 180, (34, 282), (148, 20)  # pixels of a chart and of its axes, from low to high
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f5f6f7; --ink: #1b1f24; --soft: #5b6470; --rule: #dcdfe3;
--aligned: #0068a6; --base: #b34a00; --tint: #9cc8e4; } @media screen and (prefers-color-scheme: dark) { :root { --paper: #15181c;
--panel: #1f242a; --ink: #e6e8eb; --soft: #9aa4b0; --rule: #363c45; --aligned: #62b8ea; --base: #eda13c; --tint: #24587a; } }
* { box-sizing: border-box; } main { max-width: 948px; margin: 0 auto; padding: 40px 24px 64px; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; print-color-adjust: exact; }
h1 { font-size: clamp(22px, 4vw, 28px); line-height: 1.3; font-weight: 650; margin: 0 0 12px; text-wrap: balance; }
h2 { font-size: 20px; font-weight: 650; margin: 56px 0 4px; break-after: avoid; } p { margin: 0 0 16px; max-width: 70ch; }
h3 { font-size: 15px; line-height: 1.35; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; } figure { margin: 0; min-width: 0; }
small, figcaption, thead { color: var(--soft); font-size: 13px; line-height: 1.4; margin-top: 6px; } .soft { color: var(--soft); }
code, pre { font-family: ui-monospace, monospace; font-size: 0.92em; overflow-wrap: anywhere; }
pre { background: var(--panel); border-radius: 6px; padding: 12px 16px; white-space: pre-wrap; margin: 8px 0 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 288px), 1fr)); gap: 18px; } .curves { gap: 32px 18px; }
.card { background: var(--panel); border-radius: 8px; padding: 12px; display: flex; flex-direction: column; }
.card h3 { font-weight: 500; flex: 1; } .pair { display: flex; gap: 8px; white-space: nowrap; }
img { display: block; width: 128px; border-radius: 3px; outline: 1px solid var(--rule); image-rendering: pixelated; }
img.large { width: 100%; image-rendering: auto; } .aligned { color: var(--aligned); } .base { color: var(--base); }
span { font-weight: 600; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 0 9px 18px; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; font-weight: 400; }
.narrow { max-width: 420px; } td { white-space: nowrap; } .facts td { white-space: normal; overflow-wrap: anywhere; }
th:first-child { text-align: left; padding-left: 0; } th small { display: block; max-width: 62ch; margin: 0; } details { margin-top: 28px; }
summary { cursor: pointer; font-weight: 600; } svg { display: block; width: 100%; overflow: visible; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } .rule { stroke: var(--rule); } .level { stroke: var(--soft); stroke-dasharray: 3 3; }
.track { fill: var(--panel); } .bar { fill: var(--tint); } .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
svg .rate { font-size: 15px; font-weight: 600; fill: var(--ink); } path { fill: none; stroke: var(--aligned); stroke-linecap: round; }
.raw { opacity: 0.3; } .mean { stroke-width: 2; } .second { stroke: var(--base); } .mean.second { stroke-dasharray: 7 4; }
.interval { stroke: var(--ink); stroke-width: 2; }
@media print { main { max-width: none; padding: 0; } h2 { margin-top: 28px; } .pair img { width: 96px; }
.card, figure, tr { break-inside: avoid; } .card figcaption { font-size: 10px; } .grid { grid-template-columns: repeat(3, 1fr); gap: 9px; }}
"""
LOGISTIC = (math.log(2), "ln 2: equal to its reference")  # -log sigmoid(0)
CHARTS = (  # title, what it says, log columns, reference level with its label, values that the y axis always holds
    ("Loss", "The objective; training starts from a model equal to its reference.", ("loss",), LOGISTIC, ()),
    ("Implicit accuracy", "Share of pairs whose preferred image gains more on the reference.", ("implicit_acc",), (0.5, "chance"), (0, 1)),
    ("Log-ratio", "Above zero, the model explains these images better than the reference; rejected is dashed.",
     ("log_ratio/chosen", "log_ratio/rejected"), (0, ""), ()),
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


def write_report(folder: Path, facts: Mapping[str, Any], log: Sequence[Mapping[str, float]], comparisons: Sequence[Comparison]) -> Path:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all, and return the path of the page.

    `comparisons` come in the order of the held-out prompts: the page shows the first 24 and says so.
    """
    known, page = _plain(facts), folder / "report.html"
    texts = {folder / "report.json": json.dumps(known, indent=2) + "\n", page: _page(known, log, comparisons)}
    folder.mkdir(parents=True, exist_ok=True)
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    try:
        for path, text in texts.items():
            temporaries[path].write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    return page


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `facts` as strict JSON holds them: numpy as Python's own, not finite as None, any other kind as text."""
    text = json.dumps(dict(facts), default=lambda value: value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value))
    return json.loads(text, parse_constant=lambda _: None)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number) and abs(value) < HUGE else math.nan


def _show(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "&minus;") if math.isfinite(value) else "&ndash;"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _interval(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    low, high = (_number(end) for end in facts.get("ci95") or (None, None))
    return (low, high) if math.isfinite(low + high) else None


def _text(facts: Mapping[str, Any], forms: Mapping[str, str], glue: str = "") -> str:
    """Return the form of each fact that is there, filled in and joined."""
    there = {key: facts[key] for key in forms if facts.get(key) is not None}
    return glue.join(forms[key].format(escape(f"{v:g}" if isinstance(v, float) else str(v))) for key, v in there.items())


def _headline(facts: Mapping[str, Any]) -> str:
    rate, ends = _number(facts.get("win_rate")), _interval(facts)
    if math.isnan(rate):
        return "The win rate of the aligned model was not measured"
    spread = f" (95&nbsp;% interval {_percent(ends[0])} to {_percent(ends[1])}&nbsp;%)" if ends else ""
    wins = f"{_percent(rate)}&nbsp;% of {_text(facts, {'prompts_heldout': '{} '})}held-out prompts{spread}"
    wins += _text(facts, {"taste": " under the taste <code>{}</code>"})
    if ends is None:
        return f"The aligned model wins {wins}; there is no interval, so this may be chance"
    if ends[1] < 0.5:
        return f"The aligned model loses: it wins only {wins}, and the interval lies below one half"
    if ends[0] <= 0.5:
        return f"No clear win: the aligned model wins {wins}, and the interval is not above one half"
    return f"The aligned model wins {wins}"


def _lede(facts: Mapping[str, Any]) -> str:
    how = {"model": "<code>{}</code>", "method": "aligned with <code>{}</code>", "pairs_train": "on {} pairs", "steps": "in {} steps"}
    settings = {"train_batch_size": "{} pairs a step", "beta": "beta {}", "learning_rate": "learning rate {}", "rank": "adapter rank {}"}
    parts = [part for part in (_text(facts, how, " "), _text(facts, settings, ", ")) if part]
    return f'<p class="soft">{"; ".join(parts)}.</p>' if parts else ""


def _picture(prompt: str, model: str, image: Image.Image, score: float, other: float) -> str:
    small, buffer, image = max(image.size) <= SMALL, io.BytesIO(), image.convert("RGB")
    image.thumbnail((LARGEST, LARGEST))
    image.save(buffer, "PNG" if small else "JPEG", quality=90)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    verdict = f' <span class="{model}">wins</span>' if score > other else " tie" if score == other else ""
    return f"""<figure><img class="{"small" if small else "large"}" src="{source}" alt="{escape(prompt)}, by the {model} model">
<figcaption>{model} {_show(score, ".3f")}{verdict}</figcaption></figure>"""


def _grid(facts: Mapping[str, Any], comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    cards, wins, losses = [], 0, 0
    for c in comparisons[:SHOWN]:
        base, aligned = _number(c.base_score), _number(c.aligned_score)
        wins, losses = wins + (aligned > base), losses + (aligned < base)
        pair = _picture(c.prompt, "base", c.base, base, aligned) + _picture(c.prompt, "aligned", c.aligned, aligned, base)
        cards.append(f'<div class="card"><h3>{escape(c.prompt)}</h3><div class="pair">{pair}</div></div>')
    return f"""<h2>Before and after</h2>
<p>The first {len(cards)} of {escape(str(facts.get("prompts_heldout") or len(comparisons)))} held-out prompts in their own order, not picked
by result: here the aligned model wins {wins}, the base model {losses}. Both start from the same noise; the number is the taste's score.</p>
<div class="grid">{"".join(cards)}</div>"""


def _win_rate(facts: Mapping[str, Any]) -> str:
    rate, ends = _number(facts.get("win_rate")), _interval(facts)
    if math.isnan(rate):
        return ""
    lines = ((ends[0], 16, ends[1], 16), (ends[0], 9, ends[0], 23), (ends[1], 9, ends[1], 23)) if ends else ()
    bracket = "".join(f'<line x1="{100 * a:.2f}%" y1="{b}" x2="{100 * c:.2f}%" y2="{d}"/>' for a, b, c, d in lines)
    return f"""<h2>Win rate</h2><p>The share of prompts where the taste scores the aligned image above the base image;
a tie counts one half. {"The bracket is the 95&nbsp;% interval, from resampling the prompts." if ends else ""}</p>
<svg height="54" role="img" aria-label="win rate {_percent(rate)} percent"><rect class="track" width="100%" height="32"/>
<rect class="bar" width="{100 * min(max(rate, 0.0), 1.0):.2f}%" y="6" height="20"/><line class="level" x1="50%" x2="50%" y2="36"/>
<g class="interval">{bracket}</g><text class="rate" x="10" y="21">{_percent(rate)}&nbsp;%</text>
<text y="50">0&nbsp;%</text><text x="50%" y="50" text-anchor="middle">50&nbsp;%, a coin toss</text>
<text x="100%" y="50" text-anchor="end">100&nbsp;%</text></svg>"""


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), kind: str = "") -> str:
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    top = f"<thead><tr>{''.join(f'<th>{word}</th>' for word in head)}</tr></thead>" if head else ""
    return f'<table class="{kind}">{top}<tbody>{body}</tbody></table>' if body else ""


def _numbers(facts: Mapping[str, Any]) -> str:
    lines = (
        ("Mean taste score", "taste_base", "taste_aligned", "What was trained for: the taste's score of the held-out images, 0 to 1."),
        ("Adherence", "adherence_base", "adherence_aligned", "Share of what the prompt names that the image shows; it should not fall."),
        ("Adherence, named", "adherence_named_base", "adherence_named_aligned", "The same on prompts that name what the taste judges."),
        ("Implicit accuracy, held-out", "", "implicit_accuracy_heldout", "Share of unseen pairs ranked as the taste does; chance is 0.5."),
    )
    rows = []
    for name, before, after, meaning in lines:
        base, aligned = _number(facts.get(before)), _number(facts.get(after))
        if math.isfinite(base) or math.isfinite(aligned):
            rows.append((f"{name}<small>{meaning}</small>", _show(base, ".3f"), _show(aligned, ".3f"), _show(aligned - base, "+.3f")))
    return f"<h2>Numbers</h2>{_table(rows, ('', 'base', 'aligned', 'change'))}" if rows else ""


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
        lines += f'<text x="{ACROSS[0]}" y="{DOWN[1] - 8}">&times; 10<tspan dy="-4" font-size="9">{_show(exponent, "d")}</tspan></text>'
    for tick in _ticks(*values):
        y = np.interp(tick, values, DOWN)
        lines += f'<line class="rule" x1="{ACROSS[0]}" x2="{ACROSS[1]}" y1="{y:.1f}" y2="{y:.1f}"/>'
        lines += f'<text x="{ACROSS[0] - 6}" y="{y + 4:.1f}" text-anchor="end">{_show(tick / 10.0**exponent + 0.0, ".4g")}</text>'
    for tick in _ticks(*steps):
        lines += f'<text x="{np.interp(tick, steps, ACROSS):.1f}" y="{DOWN[0] + 14}" text-anchor="middle">{tick:.6g}</text>'
    return lines


def _chart(log: Sequence[Mapping[str, float]], window: int, chart: tuple, level: tuple[float, str] | None) -> str:
    title, note, keys, _, bounds = chart
    lines = [np.array([_number(row.get(key)) for row in log]) for key in keys]
    if all(np.isnan(line).all() for line in lines):
        return ""
    steps = np.array([i if math.isnan(_number(row.get("step"))) else row["step"] for i, row in enumerate(log)])
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
    names = ': <span class="aligned">chosen</span>, <span class="base">rejected</span>' if len(keys) > 1 else ""
    return f"""<figure><h3>{title}{names}</h3>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over the steps">{drawn}</svg><figcaption>{note}</figcaption></figure>"""


def _curves(facts: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    window = max(1, min(len(log), max(5, len(log) // 15)))
    other = "dpo" not in str(facts.get("method", "dpo"))  # only a logistic loss starts at ln 2
    charts = [_chart(log, window, chart, None if other and chart[3] is LOGISTIC else chart[3]) for chart in CHARTS]
    text = f"<h2>Training</h2><p>Thin: each logged step. Bold: the mean of the last {window} of them."
    text += _text(facts, {"skipped_steps": " Steps skipped, as not finite or a spike: {}."})
    return f'{text}</p><div class="grid curves">{"".join(charts)}</div>' if any(charts) else ""


def _origin(facts: Mapping[str, Any]) -> str:
    """Return what it took and how to do it again: timings, the command, every fact."""
    seconds = facts.get("seconds") or {}
    times = _table([(escape(name), _show(_number(spent), ".1f") + " s") for name, spent in seconds.items()], (), "narrow")
    again = _text(facts, {"command": "{}", "seed": "# seed {}", "version": "# diffalign {}"}, "\n")
    every = _table([(escape(k), escape(v if isinstance(v, str) else json.dumps(v))) for k, v in facts.items()], (), "facts")
    return f"""{f"<h2>Timings</h2>{times}" if times else ""}{f"<h2>Do it again</h2><pre>{again}</pre>" if again else ""}
{f"<details><summary>All facts</summary>{every}</details>" if every else ""}"""


def _page(facts: Mapping[str, Any], log: Sequence[Mapping[str, float]], comparisons: Sequence[Comparison]) -> str:
    body = "\n".join((_lede(facts), _grid(facts, comparisons), _win_rate(facts), _numbers(facts), _curves(facts, log), _origin(facts)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>diffalign report</title><style>{STYLE}</style></head>
<body><main><h1>{_headline(facts)}</h1>{body}</main></body></html>
"""
