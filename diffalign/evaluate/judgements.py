"""What people and scorers say, read from a preference table or from columns of a dataset file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffalign.core.errors import ConfigError, RecordError, TableError, did_you_mean
from diffalign.core.files import write
from diffalign.data.readers.base import Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Record
from diffalign.data.table import Table, is_table, read_table
from diffalign.data.view import without_content
from diffalign.rewards.agreement import Comparisons, Estimate, Items, majority

WORDS = {
    "left": ("left", "leftvote", "model_a", "a", "1"),
    "right": ("right", "rightvote", "model_b", "b", "2"),
    "tie": ("tie", "tievote", "0"),
    "both_bad": ("bothbad", "bothbad_vote", "tie (bothbad)"),
}  # of GenAI-Arena, Chatbot Arena and PandaLM
VERDICTS = {word: verdict for verdict, words in WORDS.items() for word in words}
SIGNS = {"left": 1.0, "right": -1.0, "tie": 0.0}


@dataclass(frozen=True, slots=True)
class Judgements:
    """What people say (`human`; its metric or gap is zero), what each of `scorers` says of the same, and how much of it has no score.

    `raters` are the verdicts of every column of votes and of verdicts, None where there is none; `counts` are the votes as cast.
    """

    human: Items | Comparisons
    scorers: dict[str, Items | Comparisons]
    left_out: dict[str, int]
    raters: dict[str, list[str | None]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    unlabelled: int = 0


def read_judgements(
    dataset_name: str,
    *,
    scores: Sequence[str] = (),
    human: str | None = None,
    votes: Sequence[str] = (),
    prompt: str | None = None,
    both_bad: str = "tie",
) -> Judgements:
    """Return the judgements of a dataset. Raises ConfigError for columns that are not there, RecordError for a vote that is none."""
    if is_table(dataset_name):
        if votes or prompt is not None:
            raise ConfigError(f"{dataset_name}: a preference table knows its votes and prompts; leave out --votes and --prompt")
        return _of_table(read_table(dataset_name), scores, human)
    if bool(votes) == (human is not None):
        raise ConfigError(f"{dataset_name}: say what people think, with --human (a column of ratings) or with --votes (columns of votes)")
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


def verdict_of(row: Row, column: str) -> str:
    """Return the vote in a column: left, right, tie or both_bad. Raises RecordError for anything else."""
    word = row.optional(column)
    verdict = VERDICTS.get((word or "").strip().lower())
    if verdict is None:
        raise RecordError(f"{row.where}: column `{column}` holds {word!r}, which is no vote; expected one of {', '.join(VERDICTS)}")
    return verdict


def _of_ratings(rows: Sequence[Row], scores: Sequence[str], human: str, prompt: str | None) -> Judgements:
    """Return judgements of single things, a row each."""
    require(rows, [human, *scores])
    rated = np.array([row.number(human) for row in rows])
    scored = {name: np.array([_number(row, name) for row in rows]) for name in scores}
    return _judgements(_of_things(prompts_in(rows, prompt), rated, comparable=True), scored)


def _of_votes(rows: Sequence[Row], scores: Sequence[str], votes: Sequence[str], prompt: str | None, both_bad: str) -> Judgements:
    """Return judgements of two things, a row each; `human` is what most raters say, a tie where no verdict leads."""
    require(rows, votes)
    cast = {name: [verdict_of(row, name) for row in rows] for name in votes}
    counts = {name: dict(sorted(Counter(verdicts).items())) for name, verdicts in cast.items()}
    kept = [i for i in range(len(rows)) if both_bad == "tie" or all(cast[name][i] != "both_bad" for name in votes)]
    if not kept:
        raise ConfigError("every vote is that both are bad, and these are dropped; nothing is left to agree with")
    rows = [rows[i] for i in kept]
    raters: dict[str, list[str | None]] = {name: [_tied(verdicts[i]) for i in kept] for name, verdicts in cast.items()}
    human = np.array([SIGNS[majority([str(v) for v in verdicts]) or "tie"] for verdicts in zip(*raters.values(), strict=True)])
    gaps: dict[str, NDArray[np.float64]] = {}
    for name in scores:
        if f"{name}_0" in rows[0].value and f"{name}_1" in rows[0].value:
            gaps[name] = np.array([_number(row, f"{name}_0") - _number(row, f"{name}_1") for row in rows])
            continue
        if name not in rows[0].value:
            raise ConfigError(f"{rows[0].where}: no columns `{name}_0` and `{name}_1` of scores, and no column `{name}` of verdicts")
        read = [VERDICTS.get((row.optional(name) or "").strip().lower()) for row in rows]
        raters[name] = [None if verdict is None else _tied(verdict) for verdict in read]
        gaps[name] = np.array([math.nan if verdict is None else SIGNS[verdict] for verdict in raters[name]])
    return _judgements(_of_two(prompts_in(rows, prompt), human), gaps, raters=raters, counts=counts)


def _of_table(table: Table, scores: Sequence[str], human: str | None) -> Judgements:
    """Return the judgements of a preference table: ratings `human`, else rankings, else votes on pairs."""
    known = sorted(table.manifest["scores"])
    for name in (*scores, *([human] if human is not None else [])):
        if name not in known:
            raise ConfigError(f"{table.path}: no candidate has a score `{name}`.{did_you_mean(name, known) if known else ' It has none.'}")
    scores = scores or [name for name in known if name != human]
    records = list(without_content(table))
    if human is None and not any(_ranked(record) for record in records):
        return _of_pairs(table, records, scores)
    judged: list[tuple[str, float, Mapping[str, float]]] = []
    used = 0
    for record in records:
        rated = [c for c in record.candidates if human in c.scores] if human is not None else record.candidates if _ranked(record) else ()
        judged += [
            (record.id, -float(c.rank or 0.0), c.scores) if human is None else (record.prompt, c.scores[human], c.scores) for c in rated
        ]
        used += bool(rated)
    scored = {name: np.array([own.get(name, math.nan) for *_, own in judged]) for name in scores}
    values = np.array([value for _, value, _ in judged])
    everything = _of_things([name for name, *_ in judged], values, comparable=human is not None)
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


def _tied(verdict: str) -> str:
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
