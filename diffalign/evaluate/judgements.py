"""The judgements of people and of scorers, read from a preference table or from columns of a dataset file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffalign.core.errors import ConfigError, TableError, did_you_mean
from diffalign.core.files import write
from diffalign.data.readers.base import Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Record
from diffalign.data.table import Table, is_table, read_table
from diffalign.data.view import without_content
from diffalign.evaluate.verdicts import SIGNS, verdict_in, verdict_of
from diffalign.rewards.agreement import Comparisons, Estimate, Items, majority


@dataclass(frozen=True, slots=True)
class Judgements:
    """The judgements of people and of scorers on the same things."""

    human: Items | Comparisons
    """Of people; metric or gap is zero."""
    scorers: dict[str, Items | Comparisons]
    left_out: dict[str, int]
    """By scorer, how much has no score."""
    raters: dict[str, list[str | None]] = field(default_factory=dict)
    """The verdicts in every column of votes and of verdicts, None where there is none."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By column of votes, the votes as cast."""
    unlabelled: int = 0
    """Rows or records that people did not judge; they are left out."""
    people: list[str] = field(default_factory=list)
    """Of votes: the verdict of most raters on every pair."""
    judges: dict[str, list[str | None]] = field(default_factory=dict)
    """Of votes: each scorer's verdicts on the same pairs, None where it could not be read."""


def read_judgements(
    dataset_name: str,
    *,
    scores: Sequence[str] = (),
    human: str | None = None,
    votes: Sequence[str] = (),
    prompt: str | None = None,
    both_bad: str = "tie",
) -> Judgements:
    """Return the judgements of a dataset. Raises ConfigError for columns that are not there, RecordError for a vote in unknown words."""
    if is_table(dataset_name):
        if votes or prompt is not None:
            raise ConfigError(f"{dataset_name}: a preference table has its votes and prompts; leave out --votes and --prompt")
        return _of_table(read_table(dataset_name), scores, human)
    if bool(votes) == (human is not None):
        raise ConfigError(f"{dataset_name}: name what people think, with --human (a column of ratings) or with --votes (columns of votes)")
    rows = rows_of(dataset_name)
    return _of_votes(rows, scores, votes, prompt, both_bad) if votes else _of_ratings(rows, scores, str(human), prompt)


def rows_of(dataset_name: str) -> list[Row]:
    """Return all rows of a dataset file."""
    rows = list(open_rows(dataset_name))
    if not rows:
        raise ConfigError(f"{dataset_name}: no rows")
    return rows


def require(rows: Sequence[Row], columns: Iterable[str]) -> None:
    """Raise ConfigError for a column that the first row does not have."""
    for name in columns:
        if name not in rows[0].value:
            raise ConfigError(f"{rows[0].where}: no column `{name}`.{did_you_mean(name, map(str, rows[0].value))}")


def prompts_in(rows: Sequence[Row], prompt: str | None) -> list[str]:
    """Return what tells the prompts of rows apart: a column, or the rows' own numbers where there is none."""
    if prompt is None and "prompt" not in rows[0].value:
        return [row.id for row in rows]
    require(rows, [prompt or "prompt"])
    return [str(row.get(prompt or "prompt")) for row in rows]


def _of_ratings(rows: Sequence[Row], scores: Sequence[str], human: str, prompt: str | None) -> Judgements:
    """Return judgements of single things, a row each; a row without a human rating is left out, and counted."""
    require(rows, [human, *scores])
    labelled = [row for row in rows if row.optional(human) is not None]
    if not labelled:
        raise ConfigError(f"{rows[0].where}: column `{human}` is empty in every row; expected ratings")
    rated = np.array([row.number(human) for row in labelled])
    scored = {name: np.array([_number(row, name) for row in labelled]) for name in scores}
    things = _of_things(prompts_in(labelled, prompt), rated, comparable=True)
    return _judgements(things, scored, unlabelled=len(rows) - len(labelled))


def _of_votes(rows: Sequence[Row], scores: Sequence[str], votes: Sequence[str], prompt: str | None, both_bad: str) -> Judgements:
    """Return judgements of two things, a row each; `human` is what most raters say, a tie where no verdict leads.

    A row without any vote is left out, and counted; with `both_bad` "drop" also one with a vote that both are bad.
    """
    require(rows, votes)
    cast = {name: [verdict_of(row, name) for row in rows] for name in votes}
    counts = {name: dict(sorted(Counter(filter(None, verdicts)).items())) for name, verdicts in cast.items()}
    voted = [i for i in range(len(rows)) if any(cast[name][i] for name in votes)]
    kept = [i for i in voted if both_bad != "drop" or all(cast[name][i] != "both_bad" for name in votes)]
    if not kept:
        raise ConfigError("no row has a vote, or every vote is that both are bad, and these are dropped; nothing is left to agree with")
    rows, everyone = [rows[i] for i in kept], [[cast[name][i] for name in votes] for i in kept]
    people = [majority([verdict for verdict in row if verdict is not None]) or "tie" for row in everyone]
    raters: dict[str, list[str | None]] = {name: [_tied(cast[name][i]) for i in kept] for name in votes}
    judges, gaps = _judges(rows, scores)
    raters |= {name: list(map(_tied, verdicts)) for name, verdicts in judges.items() if name not in _scored(rows, scores)}
    human = np.array([SIGNS[str(_tied(verdict))] for verdict in people])
    labels = people if both_bad == "class" else [str(_tied(verdict)) for verdict in people]
    read = judges if both_bad == "class" else {name: list(map(_tied, verdicts)) for name, verdicts in judges.items()}
    facts = _judgements(
        _of_two(prompts_in(rows, prompt), human), gaps, raters=raters, counts=counts, unlabelled=len(cast[votes[0]]) - len(voted)
    )
    return replace(facts, people=labels, judges=read)


def _scored(rows: Sequence[Row], scores: Sequence[str]) -> list[str]:
    """Return the names that stand for two columns of scores; the others are columns of verdicts."""
    return [name for name in scores if f"{name}_0" in rows[0].value and f"{name}_1" in rows[0].value]


def _judges(rows: Sequence[Row], names: Sequence[str]) -> tuple[dict[str, list[str | None]], dict[str, NDArray[np.float64]]]:
    """Return each judge's verdicts, None where there is none, and its gaps (P,): first score minus second, or 1, -1 and 0 of a verdict."""
    verdicts: dict[str, list[str | None]] = {}
    gaps: dict[str, NDArray[np.float64]] = {}
    for name in names:
        if name in _scored(rows, names):
            gaps[name] = np.array([_number(row, f"{name}_0") - _number(row, f"{name}_1") for row in rows])
            verdicts[name] = [None if math.isnan(gap) else "left" if gap > 0 else "right" if gap < 0 else "tie" for gap in gaps[name]]
            continue
        if name not in rows[0].value:
            raise ConfigError(f"{rows[0].where}: no columns `{name}_0` and `{name}_1` of scores, and no column `{name}` of verdicts")
        verdicts[name] = [verdict_in(row.optional(name)) for row in rows]
        gaps[name] = np.array([math.nan if verdict is None else SIGNS[str(_tied(verdict))] for verdict in verdicts[name]])
    return verdicts, gaps


def _of_table(table: Table, scores: Sequence[str], human: str | None) -> Judgements:
    """Return the judgements of a preference table: ratings `human`, else rankings, else votes on pairs."""
    names = sorted(table.manifest["scores"])
    for name in (*scores, *([human] if human is not None else [])):
        if name not in names:
            raise ConfigError(f"{table.path}: no candidate has a score `{name}`.{did_you_mean(name, names) if names else ' It has none.'}")
    scores = scores or [name for name in names if name != human]
    records = list(without_content(table))
    if human is None and not any(_ranked(record) for record in records):
        return _of_pairs(table, records, scores)
    things: list[tuple[str, float, Mapping[str, float]]] = []
    used = 0
    for record in records:
        rated = [c for c in record.candidates if human in c.scores] if human is not None else record.candidates if _ranked(record) else ()
        things += [
            (record.id, -float(c.rank or 0.0), c.scores) if human is None else (record.prompt, c.scores[human], c.scores) for c in rated
        ]
        used += bool(rated)
    scored = {name: np.array([values.get(name, math.nan) for *_, values in things]) for name in scores}
    values = np.array([value for _, value, _ in things])
    everything = _of_things([name for name, *_ in things], values, comparable=human is not None)
    return _judgements(everything, scored, unlabelled=len(records) - used)


def _of_pairs(table: Table, records: Sequence[Record], scores: Sequence[str]) -> Judgements:
    """Return the votes on pairs; a share of voters is what most of them say."""
    labelled = [record for record in records if record.prob is not None and len(record.candidates) > 1]
    if not labelled:
        raise TableError(f"{table.path}: no record has a vote or ranks; name ratings among its scores with --human")
    human = np.array([np.sign(float(record.prob or 0.0) - 0.5) for record in labelled])
    gaps = {}
    for name in scores:
        first, second = (np.array([r.candidates[k].scores.get(name, math.nan) for r in labelled]) for k in (0, 1))
        gaps[name] = first - second
    return _judgements(_of_two([r.prompt for r in labelled], human), gaps, unlabelled=len(records) - len(labelled))


def _ranked(record: Record) -> bool:
    return len(record.candidates) > 1 and all(candidate.rank is not None for candidate in record.candidates)


def _tied(verdict: str | None) -> str | None:
    """Return a verdict with both bad as a tie."""
    return "tie" if verdict == "both_bad" else verdict


def _number(row: Row, name: str) -> float:
    """Return a score, not a number where there is none."""
    value = row.number(name) if row.optional(name) is not None else math.nan
    return value if math.isfinite(value) else math.nan


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the names as numbers from 0."""
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _judgements(
    everything: Items | Comparisons,
    scored: Mapping[str, NDArray[np.float64]],
    *,
    raters: dict[str, list[str | None]] | None = None,
    counts: dict[str, dict[str, int]] | None = None,
    unlabelled: int = 0,
) -> Judgements:
    missing = {name: int((~np.isfinite(values)).sum()) for name, values in scored.items()}
    scorers = {name: everything.scored(values) for name, values in scored.items()}
    return Judgements(everything, scorers, missing, raters or {}, counts or {}, unlabelled)


def _of_things(group: Sequence[str], human: NDArray[np.float64], *, comparable: bool) -> Items:
    return Items(_numbered(group), human, np.zeros(len(human)), comparable)


def _of_two(group: Sequence[str], human: NDArray[np.float64]) -> Comparisons:
    return Comparisons(_numbered(group), human, np.zeros(len(human)))


def check_resamples(resamples: int) -> None:
    """Raise ConfigError for too few redraws."""
    if resamples < 100:
        raise ConfigError(f"`resamples` is {resamples}; expected at least 100, or the ends of an interval mean nothing")


def write_numbers(destination: str, facts: Any) -> None:
    """Write all numbers as JSON."""
    write({Path(destination): json.dumps(_plain(facts), indent=2) + "\n"})


def _plain(value: Any) -> Any:
    """Return nested results as JSON has them; a number that is none becomes null."""
    if isinstance(value, Estimate):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
