"""Scores all pictures of a preference table; what is done survives a kill."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError, TableError
from diffalign.core.files import settle
from diffalign.core.processes import process_state
from diffalign.core.specs import Spec, single
from diffalign.data.records import Record
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.rewards.shards import Shard, read_evidence, read_shards, score_shards, spec_key
from diffalign.rewards.table import SCORERS, check_scorers, judges_texts

SHARD, MOST_SHARDS = 16, 4096  # records in a shard, unless that makes too many of them
KEPT = ("reader", "dataset_name", "split")  # of the manifest of the table that is scored

Scores = Mapping[str, Sequence[Sequence[float | None]]]  # by scorer, of every candidate of every record
Evidence = Mapping[str, Sequence[Sequence[str | None]]]  # the same of what scores stand on, JSON
EVIDENCE = "evidence."  # before a scorer's name: the column of a record with that, a JSON list over its candidates


def score_table(
    table: Table, path: str | Path, specs: Sequence[Spec], *, device: str = "cpu", overwrite: bool = False, shard: int = SHARD
) -> Table:
    """Write a table with a score of every picture by every scorer, and return it, opened.

    Scores that the table has of the same name are replaced; where a scorer cannot judge a picture, it has none of that name. The
    manifest lists the scorers with their units under `scorers`. What is scored lies in `.NAME.scores` beside `path` until the table is
    whole: the same call after a kill or a failure goes on from there, also with other scorers. Of a launch each process scores its share,
    and the first one writes the table.

    Args:
        table: preference table of images; of texts for scorers that are a language model's run (`implicit`, `trained`).
        path: folder of the new table; may be that of `table` itself, with `overwrite`.
        specs: scorers by name, constants as {"hps": {"version": "2.0"}}; one is in memory at a time.
        device: where scorers run.
        overwrite: replace a table that lies at `path`.
        shard: records between two files of finished scores.

    Raises ConfigError for scorers that are none, or two of one name; TableError for a table that a scorer does not judge, or
    where `path` exists and `overwrite` is not set.

    Example:
        >>> score_table(read_table("votes"), "votes-scored", ["pickscore"])  # doctest: +SKIP
    """
    path = Path(path)
    check(specs, path, overwrite=overwrite)
    _check_kind(table, specs)
    progress = _progress(path)
    if path.exists() and not overwrite:
        return _scored_before(path, table, specs)
    progress.mkdir(parents=True, exist_ok=True)
    scorers, scores, notes = _scored_by_all(table, progress, specs, device, max(shard, math.ceil(len(table) / MOST_SHARDS)))
    kept = [about for about in table.manifest.get("scorers") or [] if about["name"] not in scores]
    manifest = {key: table.manifest[key] for key in KEPT if key in table.manifest} | {"scorers": kept + scorers}
    if (state := process_state()).is_main_process:
        records = (_with_evidence(_with_scores(record, index, scores), index, notes) for index, record in enumerate(table))
        write_table(path, records, rejected=table.manifest["rejected"], overwrite=overwrite, **manifest)
        shutil.rmtree(progress)
    state.wait_for_everyone()
    return read_table(path)


def _check_kind(table: Table, specs: Sequence[Spec]) -> None:
    """Raise TableError where a scorer judges no candidates of the table's kind."""
    kind = table.manifest["kind"]
    if odd := [spec for spec in specs if kind != ("text" if judges_texts(spec) else "image")]:
        raise TableError(
            f"{table.path}: a table of {kind}s, which `{single('scorer', odd[0])[0]}` does not judge: scorers judge images, and `implicit` "
            "what its run was trained on"
        )


def check(specs: Sequence[Spec], path: Path, *, overwrite: bool) -> None:
    """Raise what `score_table` does for scorers that are none and a folder that is taken, before a dataset or a model is read."""
    if not specs:
        raise ConfigError(f"`scorers` is empty. Known: {', '.join(sorted(SCORERS))}")
    check_scorers(specs)
    settle(path)
    if path.exists() and not overwrite and not _progress(path).is_dir():
        raise _taken(path)


def _taken(path: Path) -> TableError:
    return TableError(f"{path} exists already; choose another folder, or overwrite it with --overwrite")


def _progress(path: Path) -> Path:
    """Return where finished scores lie until the table `path` is whole."""
    return path.with_name(f".{path.name}.scores")


def _scored_before(path: Path, table: Table, specs: Sequence[Spec]) -> Table:
    """Return the table that a killed call has finished, but for removing what it was made of. Raises TableError for any other."""
    if is_table(path):
        finished = read_table(path)
        same = all(finished.column(name) == table.column(name) for name in ("id", "prompt"))
        if same and [about["spec"] for about in (finished.manifest.get("scorers") or ())][-len(specs) :] == list(specs):
            shutil.rmtree(_progress(path))
            return finished
    raise _taken(path)


def _scored_by_all(
    table: Table, progress: Path, specs: Sequence[Spec], device: str, size: int
) -> tuple[list[dict[str, Any]], Scores, Evidence]:
    """Return what is known of each scorer, the scores by all of them, and what they stand on. Raises ConfigError for two of one name."""
    scorers, scores, notes = [], {}, {}
    for spec in specs:
        about, rows, evidence = _scored(table, progress, spec, device, size)
        if about["name"] in scores:
            raise ConfigError(f"`scorers`: two of them give a score named `{about['name']}`; leave one out")
        scorers.append(about | {"unjudged": sum(value is None for row in rows for value in row)})
        scores[about["name"]] = rows
        if evidence:
            notes[about["name"]] = evidence
    return scorers, scores, notes


def _scored(
    table: Table, progress: Path, spec: Spec, device: str, size: int
) -> tuple[dict, list[list[float | None]], list[list[str | None]]]:
    """Return what is known of a scorer, the scores of all records, computed where `progress` lacks them, and what they stand on."""
    key = spec_key(spec, table=table.fingerprint, size=size)
    firsts = range(0, len(table), size)
    shards = [Shard(progress / f"{first:09d}.{key}.json", functools.partial(_records, table, first, size)) for first in firsts]
    state = process_state()
    score_shards(shards[state.process_index :: state.num_processes], spec, device)
    state.wait_for_everyone()
    files = [shard.file for shard in shards]
    return (*read_shards(files), read_evidence(files))


def _records(table: Table, first: int, size: int) -> list[Record]:
    return [table[row] for row in range(first, min(first + size, len(table)))]


def _with_scores(record: Record, index: int, scores: Scores) -> Record:
    """Return the record with its new scores; a picture that a scorer cannot judge has none of that name."""
    candidates = []
    for place, candidate in enumerate(record.candidates):
        new = {name: rows[index][place] for name, rows in scores.items()}
        old = {name: value for name, value in candidate.scores.items() if name not in new}
        kept = {name: value for name, value in new.items() if value is not None}
        candidates.append(dataclasses.replace(candidate, scores=old | kept))
    return dataclasses.replace(record, candidates=tuple(candidates))


def _with_evidence(record: Record, index: int, notes: Evidence) -> Record:
    """Return the record with what its scores stand on, in a column for each scorer that keeps it."""
    kept = {f"{EVIDENCE}{name}": f"[{', '.join(note or 'null' for note in rows[index])}]" for name, rows in notes.items()}
    return dataclasses.replace(record, meta={**record.meta, **kept}) if kept else record
