"""The page of a comparison, in one file that runs and fetches nothing: `eval.html`, and with training curves quickstart's `report.html`.

A missing fact drops its part of the page; a number that is not finite is a dash. The numbers are those of the JSON file beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffalign.core.files import plain
from diffalign.core.intervals import Verdict, verdict
from diffalign.evaluate.pages.curves import curves
from diffalign.evaluate.pages.grid import Shown, extremes, grid, style
from diffalign.evaluate.pages.html import document, fill, interval, number, percent, show, table
from diffalign.evaluate.ratings import ELO
from diffalign.rewards.base import standing

__all__ = ["Shown", "page"]

STYLE = Path(__file__).with_name("comparison.css")
DRIFT = {
    "diversity": "How far apart the pictures of one prompt are; a fall means that they become alike.",
    "saturation": "Mean chroma, 0 to 1; chased rewards often make colours loud.",
    "sharpness": "Variance of the Laplacian of luma; it rises with noise and over-sharpening, and falls with blur.",
    "high_frequency": "Share of luma's variance in patterns finer than four pixels; noise and checkerboards raise it.",
    "pixel_grid": "Amplitude of a mesh of two pixels, which chased rewards leave; half a level of 255 where there is none.",
    "prompt_diversity": "How far apart the pictures of different prompts are; a fall means that the prompt is heeded less.",
}
DRAWN = {
    "prompts": "{} prompts",
    "images_per_prompt": "{} images each",
    "num_inference_steps": "{} steps",
    "guidance_scale": "guidance {}",
    "seed": "seed {}",
}
TRAINED = {"method": "Aligned with <code>{}</code>", "pairs_train": "on {} pairs", "steps": "in {} steps"}
SETTINGS = {"train_batch_size": "{} pairs a step", "beta": "beta {}", "learning_rate": "learning rate {}", "rank": "adapter rank {}"}


def page(facts: Mapping[str, Any], shown: Sequence[Shown], log: Sequence[Mapping[str, float]] = ()) -> str:
    """Return the page of a comparison.

    Args:
        facts: what `eval.json` holds, the base first in `runs`; ratings are log-odds. `headline` names the scorers that the headline
            asks, those held out of training if it is not there.
        shown: all drawings in the order of the prompts: the page shows the first of them, and those that lose and win most, and says so.
        log: the rows of a training log, drawn as curves.
    """
    facts = plain(facts)
    runs = [run["name"] for run in facts.get("runs") or []] or (list(shown[0].images) if shown else [])
    parts = (
        _lede(facts),
        _verdicts(facts, runs),
        _alarm(facts),
        _comparisons(facts),
        grid(runs, shown, facts.get("images_per_prompt"), margins=_margins(facts), scorers=_headliners(facts)),
        extremes(runs, shown, _headliners(facts), _margins(facts)),
        curves(log, facts),
        _scores(facts, runs),
        _checks(facts, runs),
        _drift(facts, runs),
        _ratings(facts),
        _origin(facts),
    )
    look = STYLE.read_text(encoding="utf-8") + style(runs)
    return document(f"diffalign: {', '.join(runs)}", _headline(facts, runs), "\n".join(parts), look)


def _scorers(facts: Mapping[str, Any], kind: str) -> list[str]:
    """Return the scorers that are held out of training (`held_out`), or that it optimised (`reward`)."""
    return [scorer["name"] for scorer in facts.get("scorers") or [] if scorer.get(kind)]


def _headliners(facts: Mapping[str, Any]) -> list[str]:
    """Return the scorers that the headline asks."""
    return list(facts.get("headline") or _scorers(facts, "held_out"))


def _margins(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return by scorer the difference from which a win can be seen."""
    margins = {str(one.get("scorer")): number(one.get("visible_margin")) for one in facts.get("comparisons") or []}
    return {scorer: margin for scorer, margin in margins.items() if math.isfinite(margin)}


def _listed(words: Sequence[str], last: str = "and") -> str:
    """Return escaped names in a row, as prose has them."""
    return _joined([f"<code>{escape(word)}</code>" for word in words], last)


def _joined(parts: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 2 else parts)


def _headline(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    """Return the verdict on the run, or on how many runs there are."""
    verdicts = [_verdict(facts, run) for run in runs[1:]]
    if not verdicts:
        return "No run was compared with the base"
    if len(verdicts) == 1:
        return verdicts[0][1]
    won = [run for run, (outcome, _) in zip(runs[1:], verdicts, strict=True) if outcome == "win"]
    count = f"{len(won)} of {len(verdicts)} runs {'wins' if len(won) == 1 else 'win'}" if won else f"None of the {len(verdicts)} runs wins"
    judges = _listed(facts["headline"]) if facts.get("headline") else "every held-out scorer"
    return f"{count} against the base under {judges}{': ' if won else ''}{_listed(won)}"


def _outcome(comparison: Mapping[str, Any]) -> Verdict:
    """Return whether a comparison is a win, a loss or neither, by its interval and its sign test."""
    low, high = interval(comparison) or (math.nan, math.nan)
    return verdict(low, high, number(comparison.get("sign_test_p")))


def _verdict(facts: Mapping[str, Any], run: str) -> tuple[Verdict, str]:
    """Return the verdict on a run, `win` only where all scorers of the headline agree, and the sentence for it."""
    rows = [c for c in facts.get("comparisons") or [] if c.get("run") == run and c.get("scorer") in _headliners(facts)]
    rows = [c for c in rows if math.isfinite(number(c.get("win_rate")))]
    name = f"<code>{escape(run)}</code>"
    if not rows:
        return "unclear", f"No held-out scorer compared {name} with the base"
    rang = "; the alarm has gone off" if (facts.get("alarm") or {}).get(run) else ""
    if len(rows) == 1:
        return _single(facts, rows[0], name, rang)
    by = {word: [c for c in rows if _outcome(c) == word] for word in ("win", "unclear", "loss")}
    if len(by["win"]) == len(rows):
        rates = _joined([f"{_rate(c)} by <code>{escape(c['scorer'])}</code>" for c in rows])
        of = fill(facts, {"prompts": ", of {} prompts"})
        return "win", f"{name} wins under {'both' if len(rows) == 2 else f'all {len(rows)}'} held-out scorers{of}: {rates}{rang}"
    clear = [f"{verb} under {_listed([c['scorer'] for c in by[word]])}" for word, verb in (("win", "wins"), ("loss", "loses")) if by[word]]
    unsure = _listed([c["scorer"] for c in by["unclear"]])
    if not clear:
        return "unclear", f"No clear win: {unsure} cannot tell {name} from the base{rang}"
    return "unclear" if by["win"] else "loss", f"{name} {' but '.join(clear)}{f'; {unsure} cannot tell' if unsure else ''}{rang}"


def _rate(comparison: Mapping[str, Any], of: str = "", spread: str = "") -> str:
    """Return a win rate with what was won, lost and tied."""
    counts = (f"{show(number(comparison.get(key)), 'g')} {word}" for key, word in (("wins", "won"), ("losses", "lost"), ("ties", "tied")))
    return f"{percent(number(comparison['win_rate']))}&nbsp;%{of} ({spread}{', '.join(counts)})"


def _single(facts: Mapping[str, Any], comparison: Mapping[str, Any], name: str, rang: str) -> tuple[Verdict, str]:
    """Return verdict and sentence where the headline asks one scorer."""
    ends, outcome = interval(comparison), _outcome(comparison)
    spread = f"95&nbsp;% interval {percent(ends[0])} to {percent(ends[1])}&nbsp;%; " if ends else ""
    scorer = comparison["scorer"]
    judge = f"{'the held-out ' if scorer in _scorers(facts, 'held_out') else ''}{_listed([scorer])}"
    wins = f"{_rate(comparison, fill(facts, {'prompts': ' of {} prompts'}), spread)} under {judge}"
    if outcome == "unclear":
        p = number(comparison.get("sign_test_p"))
        why = f": the sign test's p is {show(p, '.2g')}" if ends and not ends[0] <= 0.5 <= ends[1] else ", which may be chance"
        return outcome, f"No clear win: {name} wins {wins}{why}{rang}"
    visible, total = number(comparison.get("visible_wins")), number(comparison.get("wins"))
    plain_eye = f"; {visible:g} of the {total:g} wins can be seen" if total > 0 and math.isfinite(visible) else ""
    return outcome, f"{name} {'wins' if outcome == 'win' else 'loses: it wins only'} {wins}{plain_eye}{rang}"


def _verdicts(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    """Return the sentence for each run, where the headline only counts them."""
    lines = "".join(f"<li>{_verdict(facts, run)[1]}.</li>" for run in runs[1:])
    return f"<ul>{lines}</ul>" if len(runs) > 2 else ""


def _lede(facts: Mapping[str, Any]) -> str:
    """Return what the base is, how pictures were drawn, and how the run was trained."""
    drawn = {key: form for key, form in DRAWN.items() if key != "images_per_prompt" or facts.get(key) != 1}
    base = [f"The base is <code>{escape(str(run.get('path') or run['name']))}</code>" for run in facts.get("runs") or []][:1]
    how = ", ".join([*base, *filter(None, [fill(facts, drawn, ", ")])])
    training = "; ".join(part for part in (fill(facts, TRAINED, " "), fill(facts, SETTINGS, ", ")) if part)
    sentences = ([f"{how}; the same seeds for every run."] if how else []) + ([f"{training}."] if training else [])
    return f'<p class="soft">{" ".join(sentences)}</p>' if sentences else ""


def _alarm(facts: Mapping[str, Any]) -> str:
    """Return the box of the alarm: why it went off, or that it is silent, and what it watched."""
    reasons: Mapping[str, Sequence[str]] = facts.get("alarm") or {}
    if not reasons:
        return ""
    trained, mute = _scorers(facts, "reward"), facts.get("mute") or {}
    judges = _scorers(facts, "held_out") + _scorers(facts, "chose")
    falls = f"{_listed(judges, 'or')} falls, or " if judges else ""
    watched = f"It watches whether {falls}pictures look otherwise than the base's"
    watched += f", while training optimised {_listed(trained)}." if trained else "; name what training optimised with --reward."
    fired = {run: why for run, why in reasons.items() if why}
    calm = [run for run in reasons if run not in fired and run not in mute]
    silent = [f"The alarm could not go off for <code>{escape(run)}</code>: {escape(why)}." for run, why in mute.items()]
    if not fired:
        silent += [f"<strong>The alarm is silent{f' about {_listed(calm)}' if mute else ''}.</strong> {watched}"] if calm else []
        return f'<section class="alarm silent"><p>{" ".join(silent)}</p></section>'
    lines = "".join(f"<li><strong>{escape(run)}</strong>: {escape(reason)}</li>" for run, why in fired.items() for reason in why)
    rest = " ".join([watched, *([f"Silent for {_listed(calm)}."] if calm else []), *silent])
    return f"""<section class="alarm fired"><h2>Alarm: the run may be over-optimised</h2>
<ul>{lines}</ul><p class="soft">{rest}</p></section>"""


def _comparisons(facts: Mapping[str, Any]) -> str:
    """Return the table of runs by scorers: win rate drawn and in numbers, record, sign test, change of the mean score."""
    rows = "".join(_comparison(facts, comparison) for comparison in facts.get("comparisons") or [])
    if not rows:
        return ""
    axis = '<svg height="16"><text y="13">0</text><text x="50%" y="13" text-anchor="middle">50&nbsp;%</text>'
    axis += '<text x="100%" y="13" text-anchor="end">100</text></svg>'
    heads = "".join(f"<th>{word}</th>" for word in ("", axis, "win rate", "won / lost / tied", "sign test p", "change of score"))
    return f"""<h2>Win rate against the base</h2><p>The share of drawings that score above the base's, a tie counting one half; lines and
small numbers are 95&nbsp;% intervals over the prompts. Won, lost and tied count prompts; the sign test leaves ties out. Only where
interval and sign test agree it is called a win. A win can be seen where the prompt's score rises by more than a margin, by default half
a standard deviation of the base's scores.
Nothing is corrected for the number of rows.</p><table class="wins"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"""


def _comparison(facts: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    rate, ends, change = number(comparison.get("win_rate")), interval(comparison), interval(comparison, "change_ci95")
    run = f'<span class="aligned">{escape(str(comparison.get("run")))}</span><br>'
    name = (run if len(facts.get("runs") or []) > 2 else "") + _named(facts, str(comparison.get("scorer")))
    numbers = f"{percent(rate)}&nbsp;%" if math.isfinite(rate) else "&ndash;"
    numbers += f"<small>{percent(ends[0])} to {percent(ends[1])}</small>" if ends else ""
    counts = " / ".join(show(number(comparison.get(key)), "g") for key in ("wins", "losses", "ties"))
    visible, margin = (number(comparison.get(key)) for key in ("visible_wins", "visible_margin"))
    counts += f"<small>{visible:g} can be seen,<br>by over {show(margin, '.2g')}</small>" if math.isfinite(visible) and visible > 0 else ""
    p = number(comparison.get("sign_test_p"))
    moved = show(number(comparison.get("change")), "+.3f")
    moved += f"<small>{show(change[0], '+.3f')} to {show(change[1], '+.3f')}</small>" if change else ""
    cells = (("win rate", numbers), ("won / lost / tied", counts), ("sign test p", "&lt; 0.001" if p < 0.001 else show(p, ".3f")))
    tail = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in (*cells, ("change of score", moved)))
    return f'<tr><th scope="row">{name}</th><td class="plot">{_plot(rate, ends, _outcome(comparison))}</td>{tail}</tr>'


def _plot(rate: float, ends: tuple[float, float] | None, outcome: Verdict) -> str:
    """Return a win rate with its interval, from 0 to 1, in the colour of its verdict."""
    if math.isnan(rate):
        return ""
    line = f'<line class="spread" x1="{100 * ends[0]:.2f}%" x2="{100 * ends[1]:.2f}%" y1="13" y2="13"/>' if ends else ""
    label = f"win rate {percent(rate)} percent" + (f", interval {percent(ends[0])} to {percent(ends[1])}" if ends else "")
    return f"""<svg class="{outcome}" height="26" role="img" aria-label="{label}"><rect class="track" y="4" width="100%" height="18"/>
<line class="level" x1="50%" x2="50%" y2="26"/>{line}<circle cx="{100 * rate:.2f}%" cy="13" r="5"/></svg>"""


def _about(facts: Mapping[str, Any], scorer: str) -> Mapping[str, Any]:
    return next((about for about in facts.get("scorers") or [] if about.get("name") == scorer), {})


def _named(facts: Mapping[str, Any], scorer: str) -> str:
    """Return a scorer's name, and whether training used it."""
    about = _about(facts, scorer)
    return f'{escape(scorer)} <span class="badge">{standing(about)}</span>' if about else escape(scorer)


def _by_run(title: str, note: str, runs: Sequence[str], rows: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """Return a part whose table has a column for each run, or nothing without rows."""
    if not rows:
        return ""
    body = table([(name, *(cells.get(run, "&ndash;") for run in runs)) for name, cells in rows], ("", *map(escape, runs)))
    return f'<h2>{title}</h2><p>{note}</p><div class="wide">{body}</div>'


def _moved(values: Mapping[str, Any], runs: Sequence[str], form: str, change: Callable[[float, float], str]) -> dict[str, str]:
    """Return each run's number with its change from the base's."""
    numbers = {run: number(values.get(run)) for run in runs}
    moved = {run: f"<small>{change(numbers[run], numbers[runs[0]])}</small>" for run in runs[1:]}
    return {run: show(value, form) + moved.get(run, "") for run, value in numbers.items()}


def _difference(value: float, base: float) -> str:
    return show(value - base, "+.3f")


def _relative(value: float, base: float) -> str:
    share = value / base - 1.0 if base else math.nan
    return show(100.0 * share, "+.1f") + ("&nbsp;%" if math.isfinite(share) else "")


def _scores(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    scores, rows = facts.get("scores") or {}, []
    for scorer in [s["name"] for s in facts.get("scorers") or []]:
        of = {run: scores[run][scorer] for run in runs if scorer in scores.get(run, {})}
        cells = {}
        for run, score in of.items():
            ends, unjudged = interval(score, "mean_ci95"), number(score.get("unjudged"))
            lines = [f"{show(ends[0], '.3f')} to {show(ends[1], '.3f')}"] if ends else []
            lines += [f"median {show(number(score.get('median')), '.3f')}", f"{unjudged:g} unjudged" if unjudged > 0 else ""]
            cells[run] = show(number(score.get("mean")), ".3f") + "".join(f"<small>{line}</small>" for line in lines if line)
        meaning = fill(_about(facts, scorer), {"scale": "{}", "licence": "licence: {}"}, "; ")
        rows += [(f"{_named(facts, scorer)}<small>{meaning}</small>", cells)] if cells else []
    accuracy = fill(facts, {"implicit_accuracy_heldout": " Implicit accuracy on held-out pairs: {}; chance is 0.5."})
    accuracy += fill(facts.get("heldout_pairs") or {}, {"right": " {} right", "wrong": "{} wrong", "tied": "{} tied."}, ", ")
    return _by_run("Scores", f"The mean of each run with its 95&nbsp;% interval, and the median.{accuracy}", runs, rows)


def _checks(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    checks = facts.get("checks") or {}
    names = dict.fromkeys(name for run in runs for name in checks.get(run) or {})
    rows = [(escape(name), _moved({run: (checks.get(run) or {}).get(name) for run in runs}, runs, ".3f", _difference)) for name in names]
    return _by_run("Checks", "Share of pictures that show what their prompt names, and the change from the base.", runs, rows)


def _drift(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    drift, rows = facts.get("drift") or {}, []
    for name, meaning in DRIFT.items():
        values = {run: (drift.get(run) or {}).get(name) for run in runs}
        rows += (
            [(f"{name}<small>{meaning}</small>", _moved(values, runs, ".3g", _relative))]
            if any(v is not None for v in values.values())
            else []
        )
    return _by_run("Drift", "What pictures become, whatever they score, and by how much that differs from the base.", runs, rows)


def _ratings(facts: Mapping[str, Any]) -> str:
    """Return a table of Elo points around 1000 for each scorer, from ratings in log-odds."""
    parts = []
    for scorer, ratings in (facts.get("ratings") or {}).items():
        rows = []
        for r in ratings:
            points, low, high = (1000.0 + ELO * number(r.get(key)) for key in ("rating", "low", "high"))
            record = (show(number(r.get(key)), "g") for key in ("wins", "losses", "ties"))
            rows.append((escape(str(r.get("model"))), show(points, ".0f"), f"{show(low, '.0f')} to {show(high, '.0f')}", *record))
        body = table(rows, ("", "Elo", "95&nbsp;% interval", "won", "lost", "tied"))
        parts += [f'<h3>{_named(facts, scorer)}</h3><div class="wide">{body}</div>'] if body else []
    return f"""<h2>Bradley&ndash;Terry ratings</h2><p>Every run against every other, ties counting one half, in Elo points around 1000:
400 points are odds of ten to one.</p>{"".join(parts)}""" if parts else ""  # fmt: skip


def _origin(facts: Mapping[str, Any]) -> str:
    """Return what was compared, how long it took, how to do it again, and the settings."""
    runs = [[escape(str(run.get("name"))), *(fill(run, {key: "{}"}) for key in ("method", "path"))] for run in facts.get("runs") or []]
    times = [(escape(name), show(number(spent), ".1f") + " s") for name, spent in (facts.get("seconds") or {}).items()]
    again = fill(facts, {"command": "{}", "seed": "# seed {}", "version": "# diffalign {}"}, "\n")
    simple = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
    rows = [(escape(key), escape(value if isinstance(value, str) else json.dumps(value))) for key, value in simple.items()]
    every = table(rows, (), "facts")
    return f"""{f"<h2>Runs</h2>{table(runs, ('', 'method', 'path'), 'facts')}" if runs else ""}
{f"<h2>Timings</h2>{table(times, (), 'narrow')}" if times else ""}{f"<h2>Do it again</h2><pre>{again}</pre>" if again else ""}
{f"<details><summary>All settings and numbers</summary>{every}</details>" if every else ""}"""
