"""The page of `diffalign data explain`, in one file that runs and fetches nothing: what votes reward, with the pictures that carry it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffalign.core.errors import RecordError
from diffalign.core.files import plain
from diffalign.data.pictures import decode_image
from diffalign.data.records import Candidate
from diffalign.evaluate.explain.regression import POSITION
from diffalign.evaluate.explain.report import Explanation
from diffalign.evaluate.explain.votes import Votes
from diffalign.evaluate.pages.html import document, interval, number, percent, picture, share, short, show, table

STYLE = Path(__file__).with_name("explanation.css")
SIDE = 192  # pixels of a picture: a hundred of them stay below 2 MB
TEXT, PROMPT = 400, 160  # characters
FINDINGS, LISTED, COLUMNS = 8, 12, 6  # findings with pictures, votes of each other kind, attributes of a table by user
PICTURES = 200  # on the page, at most


def page(explanation: Explanation, *, title: str, meanings: Mapping[str, str]) -> str:
    """Return the page. `meanings` say in a few words what an attribute measures."""
    facts = plain(explanation.facts)
    parts = (
        _lede(facts),
        _warnings(facts),
        _weights(facts, meanings),
        _findings(explanation, facts, meanings),
        _against(explanation, facts),
        _groups(facts, "users", "By user"),
        _groups(facts, "sources", "By source"),
        _origin(facts),
        _contradictions(explanation, facts),
        _unlikely(explanation, facts),
    )
    return document(f"diffalign: what {title} rewards", headline(facts), "\n".join(parts), STYLE.read_text(encoding="utf-8"))


def headline(facts: Mapping[str, Any]) -> str:
    """Return what the votes reward, in a sentence of markup."""
    sure = [row for row in facts["attributes"] if row["finding"]][:3]
    if not sure:
        return "No difference that was measured explains these votes for certain"
    parts = [_rewarded(row) for row in sure]
    return f"These votes reward {' and '.join([', '.join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)}"


def _rewarded(row: Mapping[str, Any]) -> str:
    more = row["weight"] > 0
    if row["name"] == POSITION:
        return f"being shown {'first' if more else 'second'}"
    return f"{'more' if more else 'less'} <code>{escape(row['name'])}</code>"


def _lede(facts: Mapping[str, Any]) -> str:
    counts, held_out = facts["votes"], facts["held_out"]
    what = f"{counts['votes']:,} votes ({counts['ties']:,} ties) on {counts['candidates']:,} candidates under {counts['prompts']:,} prompts"
    users = f", by {counts['users']:,} {'person' if counts['users'] == 1 else 'people'}" if counts["users"] else ""
    if counts["decided"] < counts["needed"]:
        return f"<p>{what}{users}. Intervals and findings take {counts['needed']:,} decided votes, or fewer attributes.</p>"
    if held_out is None:
        return f"<p>{what}{users}. These are too few prompts to predict votes that were not looked at.</p>"
    ends = interval(held_out)
    spread = f" (95&nbsp;% interval {percent(ends[0])} to {percent(ends[1])})" if ends else ""
    accuracy = f"{percent(held_out['accuracy'])}&nbsp;%{spread}"
    return f"<p>{what}{users}. The weights below predict {accuracy} of the votes on prompts that they were not fitted on; chance is 50.</p>"


def _warnings(facts: Mapping[str, Any]) -> str:
    """Return the box of warnings: origin that predicts labels, and votes that contradict themselves."""
    lines = [
        f"<code>{escape(row['column'])}</code> alone predicts {percent(row['share'])}&nbsp;% of the votes between candidates that "
        f"differ in it ({percent(row['low'])} to {percent(row['high'])}&nbsp;%), under prompts that were held out: {escape(row['rule'])}."
        for row in facts["origin"]
        if row["warns"]
    ]
    counts = facts["contradictions"]
    if counts["both_ways"] or counts["circles_of_three"]:
        lines.append(
            f"{counts['both_ways']} pairs have votes both ways by one person, and {counts['circles_of_three']} circles of three stand."
        )
    if not lines:
        return ""
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<section class="warning"><h2>Look into this before training</h2><ul>{items}</ul></section>'


def _weights(facts: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    rows = facts["attributes"]
    reach = max((abs(number(end)) for row in rows for end in (row["weight"], *(interval(row) or ()))), default=1.0) or 1.0
    lines = []
    for row in rows:
        ends, alone = interval(row), interval(row, "alone_ci95")
        about = [meanings.get(row["name"], ""), f"missing in {row['missing']} votes" if row["missing"] else ""]
        about += [f"goes with {', '.join(row['goes_with'])}" if row["goes_with"] else ""]
        name = f"{escape(row['name'])}<small>{escape('; '.join(filter(None, about)))}</small>"
        spread = f"<small>{show(ends[0], '+.2f')} to {show(ends[1], '+.2f')}</small>" if ends else ""
        share = f"{percent(row['alone'])}&nbsp;%" if row["alone"] is not None else "&ndash;"
        share += f"<small>{percent(alone[0])} to {percent(alone[1])}</small>" if alone else ""
        kind = "sure" if row["finding"] else "unsure"
        lines.append((name, _plot(number(row["weight"]), ends, reach, kind), f"<b>{show(number(row['weight']), '+.2f')}</b>{spread}", share,
                      show(number(row["typical_difference"]), ".3g")))  # fmt: skip
    body = table(lines, ("", "", "weight", "has more and wins", "typical difference"), "weights")
    return f"""<h2>What is rewarded</h2><p>A weight is what one typical difference between two candidates adds to the log-odds of being
preferred, all other attributes being equal: +0.7 doubles the odds. Attributes that go together share their weight; the column beside it
looks at each alone. Filled points are findings, of which one in twenty may be chance; the others are not told from zero.</p>
<div class="wide">{body}</div>""" if body else "<p>No attribute differs between the candidates of these votes.</p>"  # fmt: skip


def _plot(value: float, ends: tuple[float, float] | None, reach: float, kind: str) -> str:
    """Return a weight with its interval on a line from -reach to reach."""
    low, high = (50.0 + 48.0 * end / reach for end in ends) if ends else (math.nan, math.nan)
    line = f'<line class="spread" x1="{low:.2f}%" x2="{high:.2f}%" y1="13" y2="13"/>' if ends else ""
    return f"""<svg class="{kind}" height="26" role="img" aria-label="weight {value:.2f}">
<rect class="track" y="4" width="100%" height="18"/>
<line class="level" x1="50%" x2="50%" y2="26"/>{line}<circle cx="{50.0 + 48.0 * value / reach:.2f}%" cy="13" r="5"/></svg>"""


def _findings(explanation: Explanation, facts: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    """Return the pairs that carry each finding."""
    parts = []
    for row in [row for row in facts["attributes"] if row["name"] in explanation.carried][:FINDINGS] if _shows(explanation.votes) else ():
        with_it, against_it = explanation.carried[row["name"]]
        about = f": {escape(meanings[row['name']])}" if row["name"] in meanings else ""
        cards = "".join(_card(explanation.votes, i, "") for i in with_it)
        cards += "".join(_card(explanation.votes, i, "against it") for i in against_it)
        parts.append(f'<h3>{_rewarded(row)}{about}</h3><div class="grid">{cards}</div>')
    return f"""<h2>The pairs that carry each finding</h2><p>Those that differ most in the attribute and whose vote goes with its weight,
and the plainest one against it. The preferred candidate is framed.</p>{"".join(parts)}""" if parts else ""  # fmt: skip


def _shows(votes: Votes) -> bool:
    """Return whether there is anything to look at."""
    return votes.table is not None


def _card(votes: Votes, vote: int, note: str) -> str:
    """Return a vote as a card: prompt, both candidates in the order of the table, the preferred one framed."""
    sign, prompt = votes.sign[vote], votes.prompts[votes.group[vote]]
    sides = ((votes.first[vote], sign > 0), (votes.second[vote], sign < 0))
    shown = "".join(_candidate(votes.candidate(int(thing)), bool(preferred)) for thing, preferred in sides)
    user = f", by {escape(str(votes.users[vote])[:24])}" if votes.users[vote] else ""
    words = f"<small>{escape(votes.ids[vote])}{user}{f'; {note}' if note else ''}</small>"
    return f'<div class="card"><h3>{escape(short(prompt, PROMPT)) or "(no prompt)"}{words}</h3><div class="two">{shown}</div></div>'


def _candidate(candidate: Candidate, preferred: bool) -> str:
    kind = ' class="preferred"' if preferred else ""
    if candidate.image is None:
        return f"<blockquote{kind}>{escape(short(candidate.text or '', TEXT))}</blockquote>"
    try:
        image = decode_image(candidate.image, "", least=(SIDE, SIDE))
    except RecordError:
        return f"<blockquote{kind}>does not decode</blockquote>"
    image.thumbnail((SIDE, SIDE))
    return f"<figure{kind}>{picture(image, 'preferred' if preferred else 'not preferred', share(PICTURES))}</figure>"


def _against(explanation: Explanation, facts: Mapping[str, Any]) -> str:
    """Return where another judge's votes differ."""
    against = facts.get("against")
    if not against:
        return ""
    rows = [
        (
            escape(row["name"]),
            show(number(row["weight"]), "+.2f"),
            show(number(row["other"]), "+.2f"),
            f"{'<b>' if row['clear'] else ''}{show(number(row['difference']), '+.2f')}{'</b>' if row['clear'] else ''}{_spread(row)}",
        )
        for row in against["attributes"]
    ]
    agreed = ""
    if against["agreement"] is not None:
        ends = interval(against, "agreement_ci95")
        spread = f" ({percent(ends[0])} to {percent(ends[1])})" if ends else ""
        agreed = f" On {against['pairs_of_both']:,} pairs that both decide they agree in {percent(against['agreement'])}&nbsp;%{spread}."
    name = f"<code>{escape(str(against['name']))}</code>"
    cards = "".join(_card(explanation.votes, i, "") for i in explanation.disagreed[:LISTED]) if _shows(explanation.votes) else ""
    shown = f'<h3>Pairs on which the other judge says the opposite of the frame</h3><div class="grid">{cards}</div>' if cards else ""
    return f"""<h2>Where {name} judges differently</h2><p>Weights of these votes, of {name}, and the difference, bold where its 95&nbsp;%
interval leaves zero out.{agreed}</p><div class="wide">{table(rows, ("", "these votes", "the other", "difference"))}</div>{shown}"""


def _spread(row: Mapping[str, Any]) -> str:
    ends = interval(row)
    return f"<small>{show(ends[0], '+.2f')} to {show(ends[1], '+.2f')}</small>" if ends else ""


def _groups(facts: Mapping[str, Any], key: str, title: str) -> str:
    """Return the weights by user or source, those of the attributes that count most for all."""
    rows, names = facts[key], [row["name"] for row in facts["attributes"]][:COLUMNS]
    if not rows:
        return ""
    lines = [
        (
            f"{escape(str(row['name']))}<small>{row['votes']} votes, {row['prompts']} prompts</small>",
            *(_cell(row["weights"][n]) for n in names),
        )
        for row in rows
    ]
    return f"""<h2>{title}</h2><p>Bold where the interval leaves zero out. Few votes draw a weight to everybody's.</p>
<div class="wide">{table(lines, ("", *map(escape, names)))}</div>"""


def _cell(weight: Mapping[str, Any]) -> str:
    ends = interval(weight)
    value = show(number(weight["weight"]), "+.2f")
    return f"<b>{value}</b>{_spread(weight)}" if ends and not ends[0] <= 0.0 <= ends[1] else f"{value}{_spread(weight)}"


def _origin(facts: Mapping[str, Any]) -> str:
    rows = [
        (escape(row["column"]), f"{percent(row['share'])}&nbsp;%<small>{percent(row['low'])} to {percent(row['high'])}</small>",
         f"{row['votes']:,}", escape(row["rule"]))
        for row in facts["origin"]
        if math.isfinite(number(row["low"]))
    ]  # fmt: skip
    body = table(rows, ("", "predicted", "votes", "rule"), "facts")
    return f"""<h2>Where candidates come from</h2><p>The share of votes under held-out prompts that each column predicts alone, of those
between candidates that differ in it; chance is 50&nbsp;%. A better model may well win; a file type should
not.</p>{body}""" if body else ""  # fmt: skip


def _contradictions(explanation: Explanation, facts: Mapping[str, Any]) -> str:
    counts, where = facts["contradictions"], explanation.contradictions
    lines = [f"{counts['both_ways']} of {counts['pairs_repeated_by_one_person']} pairs on which one person voted twice have both labels."]
    lines += [f"{counts['circles_of_three']} circles of three: a is preferred to b, b to c, and c to a, by one person under one prompt."]
    if counts["pairs_shared_by_people"]:
        lines += [f"On {counts['pairs_on_which_people_differ']} of {counts['pairs_shared_by_people']} shared pairs people differ."]
    groups = [*where.both_ways[: LISTED // 2], *where.circles[: LISTED // 3]]
    cards = "".join(f'<div class="grid">{"".join(_card(explanation.votes, i, "") for i in group[:LISTED])}</div>' for group in groups)
    return f"<h2>Contradictions</h2><ul>{_items(lines)}</ul>{cards if _shows(explanation.votes) else ''}"


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{line}</li>" for line in lines)


def _unlikely(explanation: Explanation, facts: Mapping[str, Any]) -> str:
    """Return the votes that the weights make least likely."""
    rows: Sequence[Mapping[str, Any]] = facts.get("unlikely") or []
    if not rows:
        return ""
    if not _shows(explanation.votes):
        return "<p>The JSON file beside this page lists the votes to which the weights, fitted on other prompts, give the least chance.</p>"
    cards = "".join(
        _card(explanation.votes, i, f"likelihood {rows[n]['likelihood']:.2f}") for n, i in enumerate(explanation.unlikely[:LISTED])
    )
    return f"""<h2>Votes that look wrong</h2><p>Those to which the weights, fitted on other prompts, give the least chance: slips, or a
taste that no attribute here measures. The JSON file beside this page lists more.</p>
<div class="grid">{cards}</div>"""
