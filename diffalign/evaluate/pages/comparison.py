"""`eval.html`: what an evaluation found, in one file that runs and fetches nothing, with pictures that flip between the runs.

A missing fact drops its part of the page; a number that is not finite is a dash. The numbers are those of `eval.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffalign.core.files import plain, write
from diffalign.evaluate.pages.grid import Shown, extremes, grid, style
from diffalign.evaluate.pages.html import document, fill, interval, number, percent, show, table, verdict
from diffalign.evaluate.ratings import ELO
from diffalign.rewards.base import standing

__all__ = ["Shown", "write_page"]

STYLE = Path(__file__).with_name("comparison.css")
DRIFT = {
    "diversity": "How far apart the pictures of one prompt are; a fall means that they become alike.",
    "saturation": "Mean chroma, 0 to 1; chased rewards often make colours loud.",
    "sharpness": "Variance of the Laplacian of luma; it rises with noise and over-sharpening, and falls with blur.",
}


def write_page(folder: Path, facts: Mapping[str, Any], shown: Sequence[Shown]) -> Path:
    """Write `eval.html` into `folder`, whole or not at all, and return its path.

    `facts` is what `eval.json` holds, the base first in `runs`; ratings are log-odds. `shown` are all drawings in the order of the
    prompts: the page shows the first of them, and those that lose and win most, and says so.
    """
    page = folder / "eval.html"
    write({page: _page(plain(facts), shown)})
    return page


def _page(facts: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    runs = [run["name"] for run in facts.get("runs") or []] or (list(shown[0].images) if shown else [])
    parts = (
        _lede(facts),
        _verdicts(facts, runs),
        _alarm(facts),
        _comparisons(facts),
        grid(runs, shown, facts.get("images_per_prompt")),
        extremes(runs, shown, _scorers(facts, "held_out")),
        _scores(facts, runs),
        _checks(facts, runs),
        _drift(facts, runs),
        _ratings(facts),
        _origin(facts),
    )
    look = STYLE.read_text(encoding="utf-8") + style(runs)
    return document(f"diffalign eval: {', '.join(runs)}", _headline(facts, runs), "\n".join(parts), look)


def _scorers(facts: Mapping[str, Any], kind: str) -> list[str]:
    """Return the scorers that are held out of training (`held_out`), or that it optimised (`reward`)."""
    return [scorer["name"] for scorer in facts.get("scorers") or [] if scorer.get(kind)]


def _listed(words: Sequence[str], last: str = "and") -> str:
    """Return escaped names in a row, as prose has them."""
    names = [f"<code>{escape(word)}</code>" for word in words]
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 2 else names)


def _headline(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    """Return the verdict of the held-out scorers on the run, or on how many runs there are."""
    verdicts = [_verdict(facts, run) for run in runs[1:]]
    if not verdicts:
        return "No run was compared with the base"
    if len(verdicts) == 1:
        return verdicts[0][1]
    won = [run for run, (outcome, _) in zip(runs[1:], verdicts, strict=True) if outcome == "win"]
    said = f"{len(won)} of {len(verdicts)} runs {'wins' if len(won) == 1 else 'win'}" if won else f"None of the {len(verdicts)} runs wins"
    return f"{said} against the base under every held-out scorer{': ' if won else ''}{_listed(won)}"


def _verdict(facts: Mapping[str, Any], run: str) -> tuple[str, str]:
    """Return what the held-out scorers say of a run (`win` only where all of them do), and the sentence that says it."""
    held = _scorers(facts, "held_out")
    judged = [c for c in facts.get("comparisons") or [] if c.get("run") == run and c.get("scorer") in held]
    judged = [c for c in judged if math.isfinite(number(c.get("win_rate")))]
    name = f"<code>{escape(run)}</code>"
    if not judged:
        return "unclear", f"No held-out scorer compared {name} with the base"
    by = {word: [c["scorer"] for c in judged if verdict(interval(c)) == word] for word in ("win", "unclear", "loss")}
    rang = "; the alarm has gone off" if (facts.get("alarm") or {}).get(run) else ""
    if len(judged) == 1:
        return _single(facts, judged[0], name, rang)
    if len(by["win"]) == len(judged):
        rates = sorted(number(c["win_rate"]) for c in judged)
        span = f"{percent(rates[0])} to {percent(rates[-1])}&nbsp;%{fill(facts, {'prompts': ' of {} prompts'})}"
        return "win", f"{name} wins under {'both' if len(judged) == 2 else f'all {len(judged)}'} held-out scorers: {span}{rang}"
    said = [f"{verb} under {_listed(by[word])}" for word, verb in (("win", "wins"), ("loss", "loses")) if by[word]]
    if not said:
        return "unclear", f"No clear win: {_listed(by['unclear'])} cannot tell {name} from the base{rang}"
    unclear = f"; {_listed(by['unclear'])} cannot tell" if by["unclear"] else ""
    return "unclear" if by["win"] else "loss", f"{name} {' but '.join(said)}{unclear}{rang}"


def _verdicts(facts: Mapping[str, Any], runs: Sequence[str]) -> str:
    """Return what the held-out scorers say of each run, where the headline only counts them."""
    lines = "".join(f"<li>{_verdict(facts, run)[1]}.</li>" for run in runs[1:])
    return f"<ul>{lines}</ul>" if len(runs) > 2 else ""


def _single(facts: Mapping[str, Any], comparison: Mapping[str, Any], name: str, rang: str) -> tuple[str, str]:
    """Return verdict and sentence where one held-out scorer judged a run."""
    ends, rate = interval(comparison), number(comparison["win_rate"])
    spread = f" (95&nbsp;% interval {percent(ends[0])} to {percent(ends[1])}&nbsp;%)" if ends else ""
    of = fill(facts, {"prompts": " of {} prompts"})
    wins = f"{percent(rate)}&nbsp;%{of}{spread} under the held-out {_listed([comparison['scorer']])}"
    if ends is None:
        return "unclear", f"{name} wins {wins}; there is no interval, so this may be chance{rang}"
    forms = {
        "win": "{} wins {}",
        "loss": "{} loses: it wins only {}",
        "unclear": "No clear win: {} wins {}, an interval around one half",
    }
    return verdict(ends), forms[verdict(ends)].format(name, wins) + rang


def _lede(facts: Mapping[str, Any]) -> str:
    forms = {
        "prompts": "{} prompts",
        "images_per_prompt": "{} images each",
        "num_inference_steps": "{} steps",
        "guidance_scale": "guidance {}",
        "seed": "seed {}",
    }
    if facts.get("images_per_prompt") == 1:
        forms.pop("images_per_prompt")
    base = [escape(run["name"]) for run in facts.get("runs") or []][:1]
    said = ", ".join(part for part in (f"The base is <code>{base[0]}</code>" if base else "", fill(facts, forms, ", ")) if part)
    return f'<p class="soft">{said}; the same seeds for every run.</p>' if said else ""


def _alarm(facts: Mapping[str, Any]) -> str:
    """Return the box of the alarm: why it went off, or that it is silent, and what it watched."""
    reasons: Mapping[str, Sequence[str]] = facts.get("alarm") or {}
    if not reasons:
        return ""
    trained, drift, mute = _scorers(facts, "reward"), facts.get("drift") or {}, facts.get("mute") or {}
    judges = _scorers(facts, "held_out") + _scorers(facts, "chose")
    judges += ["diversity"] * any(number((own or {}).get("diversity")) > 0 for own in drift.values())
    watched = f"It watches whether what training optimised, {_listed(trained)}, rises while {_listed(judges, 'or')} falls."
    fired = {run: why for run, why in reasons.items() if why}
    calm = [run for run in reasons if run not in fired and run not in mute]
    said = [f"The alarm could not go off for <code>{escape(run)}</code>: {escape(why)}." for run, why in mute.items()]
    if not fired:
        said += [f"<strong>The alarm is silent{f' about {_listed(calm)}' if mute else ''}.</strong> {watched}"] if calm else []
        return f'<section class="alarm silent"><p>{" ".join(said)}</p></section>'
    lines = "".join(f"<li><strong>{escape(run)}</strong>: {escape(reason)}</li>" for run, why in fired.items() for reason in why)
    rest = " ".join([watched, *([f"Silent for {_listed(calm)}."] if calm else []), *said])
    return f"""<section class="alarm fired"><h2>Alarm: the reward may have been hacked</h2>
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
small numbers are 95&nbsp;% intervals from resampling the prompts. Won, lost and tied count prompts; the sign test leaves ties out.
Nothing is corrected for the number of rows.</p><table class="wins"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"""


def _comparison(facts: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    rate, ends, change = number(comparison.get("win_rate")), interval(comparison), interval(comparison, "change_ci95")
    run = f'<span class="aligned">{escape(str(comparison.get("run")))}</span><br>'
    name = (run if len(facts.get("runs") or []) > 2 else "") + _named(facts, str(comparison.get("scorer")))
    numbers = f"{percent(rate)}&nbsp;%" if math.isfinite(rate) else "&ndash;"
    numbers += f"<small>{percent(ends[0])} to {percent(ends[1])}</small>" if ends else ""
    record = " / ".join(show(number(comparison.get(key)), "g") for key in ("wins", "losses", "ties"))
    p = number(comparison.get("sign_test_p"))
    moved = show(number(comparison.get("change")), "+.3f")
    moved += f"<small>{show(change[0], '+.3f')} to {show(change[1], '+.3f')}</small>" if change else ""
    cells = (("win rate", numbers), ("won / lost / tied", record), ("sign test p", "&lt; 0.001" if p < 0.001 else show(p, ".3f")))
    tail = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in (*cells, ("change of score", moved)))
    return f'<tr><th scope="row">{name}</th><td class="plot">{_plot(rate, ends)}</td>{tail}</tr>'


def _plot(rate: float, ends: tuple[float, float] | None) -> str:
    """Return a win rate with its interval, from 0 to 1, in the colour of its verdict."""
    if math.isnan(rate):
        return ""
    line = f'<line class="spread" x1="{100 * ends[0]:.2f}%" x2="{100 * ends[1]:.2f}%" y1="13" y2="13"/>' if ends else ""
    label = f"win rate {percent(rate)} percent" + (f", interval {percent(ends[0])} to {percent(ends[1])}" if ends else "")
    return f"""<svg class="{verdict(ends)}" height="26" role="img" aria-label="{label}"><rect class="track" y="4" width="100%" height="18"/>
<line class="level" x1="50%" x2="50%" y2="26"/>{line}<circle cx="{100 * rate:.2f}%" cy="13" r="5"/></svg>"""


def _about(facts: Mapping[str, Any], scorer: str) -> Mapping[str, Any]:
    return next((about for about in facts.get("scorers") or [] if about.get("name") == scorer), {})


def _named(facts: Mapping[str, Any], scorer: str) -> str:
    """Return a scorer's name, and whether training saw it."""
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
    found = {run: number(values.get(run)) for run in runs}
    moved = {run: f"<small>{change(found[run], found[runs[0]])}</small>" for run in runs[1:]}
    return {run: show(value, form) + moved.get(run, "") for run, value in found.items()}


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
        for run, found in of.items():
            ends, unjudged = interval(found, "mean_ci95"), number(found.get("unjudged"))
            lines = [f"{show(ends[0], '.3f')} to {show(ends[1], '.3f')}"] if ends else []
            lines += [f"median {show(number(found.get('median')), '.3f')}", f"{unjudged:g} unjudged" if unjudged > 0 else ""]
            cells[run] = show(number(found.get("mean")), ".3f") + "".join(f"<small>{line}</small>" for line in lines if line)
        meaning = fill(_about(facts, scorer), {"scale": "{}", "licence": "licence: {}"}, "; ")
        rows += [(f"{_named(facts, scorer)}<small>{meaning}</small>", cells)] if cells else []
    accuracy = fill(facts, {"implicit_accuracy_heldout": " Implicit accuracy on held-out pairs: {}; chance is 0.5."})
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
    """Return what was compared and how to do it again."""
    runs = [[escape(str(run.get("name"))), *(fill(run, {key: "{}"}) for key in ("method", "path"))] for run in facts.get("runs") or []]
    again = fill(facts, {"command": "{}", "seed": "# seed {}", "version": "# diffalign {}"}, "\n")
    return f"""{f"<h2>Runs</h2>{table(runs, ('', 'method', 'path'), 'facts')}" if runs else ""}
{f"<h2>Do it again</h2><pre>{again}</pre>" if again else ""}"""
