"""The page that shows what an alignment did: `report.json` with the facts and `report.html`, one file that fetches nothing.

Images are data URIs, curves are SVG drawn here, and there is no script. A missing fact drops its part of the page; a number that is not
finite is a dash there, a gap in a curve, and null in the JSON.
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
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 288, 168, 34, 6, 8, 32  # a chart and its margins, pixels
DASH = "&ndash;"
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f5f6f7; --ink: #1b1f24; --soft: #5b6470; --rule: #dcdfe3; --aligned: #0068a6;
  --base: #b34a00; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #15181c; --panel: #1d2126; --ink: #e6e8eb; --soft: #9aa4b0;
  --rule: #343a42; --aligned: #62b8ea; --base: #eda13c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
main { max-width: 948px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: clamp(24px, 4vw, 32px); line-height: 1.25; font-weight: 650; margin: 0 0 12px; text-wrap: balance; }
h2 { font-size: 20px; font-weight: 650; margin: 56px 0 4px; break-after: avoid; }
h3 { font-size: 15px; line-height: 1.35; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
p { margin: 0 0 16px; max-width: 70ch; } figure { margin: 0; min-width: 0; }
small, figcaption, .soft { color: var(--soft); } small, figcaption, thead { font-size: 13px; line-height: 1.4; }
code, pre { font: 0.92em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--panel); border-radius: 6px; padding: 12px 16px; white-space: pre-wrap; margin: 8px 0 0; font-size: 14px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 288px), 1fr)); gap: 18px; } .curves { gap: 28px 18px; }
.card { background: var(--panel); border-radius: 8px; padding: 12px; break-inside: avoid; display: flex; flex-direction: column; }
.card h3 { font-weight: 500; flex: 1; } .pair { display: flex; gap: 8px; justify-content: center; }
img { display: block; width: 128px; border-radius: 3px; margin-bottom: 6px; image-rendering: pixelated; }
img.large { width: 100%; image-rendering: auto; } .aligned, .base { font-weight: 600; color: var(--aligned); } .base { color: var(--base); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 0 9px 18px; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; } th small { display: block; max-width: 62ch; } td { overflow-wrap: anywhere; }
.narrow { max-width: 420px; } thead { color: var(--soft); } details { margin-top: 28px; } summary { cursor: pointer; font-weight: 600; }
svg { display: block; width: 100%; overflow: visible; font-size: 11px; font-variant-numeric: tabular-nums; } svg text { fill: var(--soft); }
.rule { stroke: var(--rule); } .level { stroke: var(--soft); stroke-dasharray: 3 3; } .track { fill: var(--panel); }
.halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
path { fill: none; stroke: var(--aligned); stroke-linecap: round; stroke-linejoin: round; } path.second { stroke: var(--base); }
.raw { opacity: 0.3; } .mean { stroke-width: 2; } .bar { fill: var(--aligned); } .interval { stroke: var(--ink); stroke-width: 2; }
@media print { main { max-width: none; padding: 0; } h2 { margin-top: 28px; } img { width: 92px; } figure, tr { break-inside: avoid; }
  .grid { grid-template-columns: repeat(3, 1fr); gap: 10px; } }
"""
LOSS = ("Loss", "Below ln 2, the model tells the pairs apart better than before training.", ("loss",), None, ())
LOGISTIC = (math.log(2), "ln 2: untrained")  # -log sigmoid(0), the loss of a model that equals its reference
CHARTS = (
    ("Implicit accuracy", "Share of pairs whose preferred image gains more on the reference.", ("implicit_acc",), (0.5, "chance"), (0.0, 1.0)),
    ("Log-ratio", "Above zero, the model explains these images better than the reference does.", ("log_ratio/chosen", "log_ratio/rejected"),
     (0.0, ""), ()),
    ("Gradient norm", "Before clipping; lasting growth is a sign of instability.", ("grad_norm",), None, (0.0,)),
    ("Learning rate", "As scheduled.", ("lr",), None, (0.0,)),
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


def _plain(value: Any) -> Any:
    """Return `value` as strict JSON holds it: numpy as Python's own, not finite as None, any other kind as text."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number) and abs(value) < HUGE else math.nan


def _show(value: float, form: str = ".2f") -> str:
    return f"{value:{form}}".replace("-", "&minus;") if math.isfinite(value) else DASH


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _interval(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    ends = facts.get("ci95")
    low, high = map(_number, ends) if isinstance(ends, list) and len(ends) == 2 else (math.nan, math.nan)
    return (low, high) if math.isfinite(low + high) else None


def _text(facts: Mapping[str, Any], forms: Mapping[str, str], glue: str) -> str:
    """Return the form of each fact that is there, filled in and joined."""
    return glue.join(form.format(escape(str(facts[key]))) for key, form in forms.items() if facts.get(key) is not None)


def _headline(facts: Mapping[str, Any]) -> str:
    rate, ends = _number(facts.get("win_rate")), _interval(facts)
    if math.isnan(rate):
        return "The win rate of the aligned model was not measured"
    spread = f" (95&nbsp;% interval {_percent(ends[0])} to {_percent(ends[1])}&nbsp;%)" if ends else ""
    wins = f"{_percent(rate)}&nbsp;% of {_text(facts, {'prompts_heldout': '{} '}, '')}held-out prompts{spread}"
    wins += _text(facts, {"taste": " under the taste <code>{}</code>"}, "")
    if ends is None:
        return f"The aligned model wins {wins}; there is no interval, so this may be chance"
    if ends[1] < 0.5:
        return f"The aligned model loses: it wins only {wins}, and the interval lies below one half"
    if ends[0] <= 0.5:
        return f"No clear win: the aligned model wins {wins}, and the interval is not above one half"
    return f"The aligned model wins {wins}"


def _lede(facts: Mapping[str, Any]) -> str:
    how = {
        "model": "<code>{}</code>",
        "method": "aligned with <code>{}</code>",
        "pairs_train": "on {} preference pairs",
        "steps": "in {} steps",
    }
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
<figcaption>{model} {_show(score)}{verdict}</figcaption></figure>"""


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
<p>The first {len(cards)} of {escape(str(facts.get("prompts_heldout") or len(comparisons)))} held-out prompts in their own order, not picked by
result: here the aligned model wins {wins} and the base model {losses}. Both start from the same noise; the number is the taste's score.</p>
<div class="grid">{"".join(cards)}</div>"""


def _win_rate(facts: Mapping[str, Any]) -> str:
    rate, ends = _number(facts.get("win_rate")), _interval(facts)
    if math.isnan(rate):
        return ""
    lines = ((ends[0], 16, ends[1], 16), (ends[0], 9, ends[0], 23), (ends[1], 9, ends[1], 23)) if ends else ()
    bracket = "".join(f'<line x1="{100 * a:.2f}%" y1="{b}" x2="{100 * c:.2f}%" y2="{d}"/>' for a, b, c, d in lines)
    return f"""<h2>Win rate</h2><p>The share of prompts where the taste scores the aligned image above the base image; a tie counts one half.
{"The bracket is the 95&nbsp;% interval, from resampling the prompts." if ends else ""}</p>
<svg height="54" role="img" aria-label="win rate {_percent(rate)} percent"><rect class="track" width="100%" height="32"/>
<rect class="bar" width="{100 * min(max(rate, 0.0), 1.0):.2f}%" y="6" height="20"/><line class="level" x1="50%" x2="50%" y2="36"/>
<g class="interval">{bracket}</g><text y="50">0&nbsp;%</text><text x="50%" y="50" text-anchor="middle">50&nbsp;%, a coin toss</text>
<text x="100%" y="50" text-anchor="end">100&nbsp;%</text></svg>"""


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), kind: str = "") -> str:
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    top = f"<thead><tr>{''.join(f'<th>{word}</th>' for word in head)}</tr></thead>" if head else ""
    return f'<table class="{kind}">{top}<tbody>{body}</tbody></table>' if body else ""


def _numbers(facts: Mapping[str, Any]) -> str:
    lines = (
        ("Mean taste score", "taste_base", "taste_aligned", "What was trained for: the taste's score of the held-out images, 0 to 1."),
        ("Adherence", "adherence_base", "adherence_aligned", "Share of what the prompt names that the image shows; it should not fall."),
        ("Implicit accuracy, held-out", "", "implicit_accuracy_heldout", "Share of unseen pairs ranked as the taste does; chance is 0.5."),
    )
    rows = []
    for name, before, after, meaning in lines:
        base, aligned = _number(facts.get(before)), _number(facts.get(after))
        if math.isfinite(base) or math.isfinite(aligned):
            rows.append((f"{name}<small>{meaning}</small>", _show(base, ".3f"), _show(aligned, ".3f"), _show(aligned - base, "+.3f")))
    return f"<h2>Numbers</h2>{_table(rows, ('', 'base', 'aligned', 'change'))}" if rows else ""


def _window(log: Sequence[Any]) -> int:
    return max(1, min(len(log), max(5, len(log) // 15)))


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


def _chart(log: Sequence[Mapping[str, float]], title: str, note: str, keys: Sequence[str], level: Any, bounds: Sequence[float]) -> str:
    """Return one small chart of log columns. `level` is a reference value with its label or None; the y axis always holds `bounds`."""
    steps = np.array([_number(row.get("step", i)) for i, row in enumerate(log)])
    steps = np.where(np.isnan(steps), np.arange(len(log)), steps)
    lines = [np.array([_number(row.get(key)) for row in log]) for key in keys]
    if not log or all(np.isnan(line).all() for line in lines):
        return ""
    seen = np.concatenate([*lines, bounds, [level[0]] if level else []])
    low, high, first, last = np.nanmin(seen), np.nanmax(seen), steps.min(), steps.max()
    high, last = (high if high > low else low + (0.1 * abs(low) or 1.0)), (last if last > first else first + 1.0)
    exponent = math.floor(math.log10(max(abs(low), abs(high))))
    exponent = 0 if -3 < exponent < 4 else exponent
    floor, end = HEIGHT - BOTTOM, WIDTH - RIGHT

    def across(x: Any) -> Any:
        return LEFT + (x - first) / (last - first) * (end - LEFT)

    def down(y: Any) -> Any:
        return TOP + (high - y) / (high - low) * (floor - TOP)

    drawn = [f'<line class="rule" x1="{LEFT}" x2="{end}" y1="{down(t):.1f}" y2="{down(t):.1f}"/><text x="{LEFT - 6}" y="{down(t) + 4:.1f}" '
             f'text-anchor="end">{_show(t / 10.0**exponent + 0.0, ".4g")}</text>' for t in _ticks(low, high)]  # fmt: skip
    drawn += [f'<text x="{across(t):.1f}" y="{floor + 14}" text-anchor="middle">{t:.6g}</text>' for t in _ticks(first, last)]
    for line, kind in zip(lines, ("", "second"), strict=False):
        drawn.append(_path(across(steps), down(line), f"raw {kind}"))
        drawn.append(_path(across(steps), down(_mean(line, _window(log))), f"mean {kind}"))
    if level:
        y = down(level[0])
        drawn.append(f'<line class="level" x1="{LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="halo" x="{end}" y="{y - 5:.1f}" text-anchor="end">{level[1]}</text>')  # fmt: skip
    names = ", ".join(f'<span class="{c}">{k.split("/")[-1]}</span>' for k, c in zip(keys, ("aligned", "base"), strict=False))
    return f"""<figure><h3>{title}{f": {names}" if len(keys) > 1 else ""}{f" &times; 10<sup>{_show(exponent, 'd')}</sup>" if exponent else ""}</h3>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} over the steps">{"".join(drawn)}
<text x="{(LEFT + end) / 2}" y="{HEIGHT - 2}" text-anchor="middle">step</text></svg><figcaption>{note}</figcaption></figure>"""


def _curves(facts: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> str:
    title, note, keys, _, bounds = LOSS
    loss = (title, note, keys, LOGISTIC, bounds) if "dpo" in str(facts.get("method", "dpo")) else LOSS
    charts = "".join(_chart(log, *chart) for chart in (loss, *CHARTS))
    skipped = _text(facts, {"skipped_steps": " Skipped as not finite or a spike: {} steps."}, "")
    return (
        f"""<h2>Training</h2><p>Light: each step. Dark: the mean of the last {_window(log)} steps.{skipped}</p>
<div class="grid curves">{charts}</div>"""
        if charts
        else ""
    )


def _origin(facts: Mapping[str, Any]) -> str:
    """Return what it took and how to do it again: timings, the command, every fact."""
    seconds = facts.get("seconds")
    times = (
        _table([(escape(k), _show(_number(v), ".1f") + " s") for k, v in seconds.items()], (), "narrow")
        if isinstance(seconds, dict)
        else ""
    )
    again = _text(facts, {"command": "{}", "seed": "# seed {}", "version": "# diffalign {}"}, "\n")
    every = _table([(escape(k), escape(v if isinstance(v, str) else json.dumps(v))) for k, v in facts.items()])
    return f"""{f"<h2>Timings</h2>{times}" if times else ""}{f"<h2>Do it again</h2><pre>{again}</pre>" if again else ""}
{f"<details><summary>All facts</summary>{every}</details>" if every else ""}"""


def _page(facts: Mapping[str, Any], log: Sequence[Mapping[str, float]], comparisons: Sequence[Comparison]) -> str:
    body = "\n".join((_lede(facts), _grid(facts, comparisons), _win_rate(facts), _numbers(facts), _curves(facts, log), _origin(facts)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>diffalign report</title><style>{STYLE}</style></head>
<body><main><h1>{_headline(facts)}</h1>
{body}
</main></body></html>
"""
