"""Scores all images of a preference table, one model in memory at a time; what is done survives a kill."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from diffalign.core.errors import ConfigError, TableError
from diffalign.core.files import atomic_file, settle, write
from diffalign.core.specs import Spec, single
from diffalign.data.cache import fingerprint
from diffalign.data.records import Record, decode_image
from diffalign.data.table import Table, is_table, read_table, write_table
from diffalign.rewards.table import SCORERS, check_scorers, load_scorer

BATCH = 32  # images decoded at once
PART = 256  # images between two files of finished scores, or fewer if they take longer than
SECONDS = 20.0
KEPT = ("reader", "dataset_name", "split")  # of the manifest of the table that is scored

Key = tuple[str, int]  # record id and candidate


def score_table(
    table: Table, path: str | Path, specs: Sequence[Spec], *, device: str = "cpu", overwrite: bool = False, part: int = PART
) -> Table:
    """Write `table` to the folder `path` with a score of every image by every scorer, and return it, opened.

    Scores that the table has of the same name are replaced; where a scorer cannot judge an image, it has none of that name. The manifest
    lists the scorers under `scorers`. Finished scores lie in `.NAME.scores` beside `path` until the table is whole, as Parquet (id,
    candidate, score): the same call after a kill goes on from there, also with other scorers. Raises ConfigError for scorers that are
    none, or two of one name; TableError for a table of texts, or where `path` exists and `overwrite` is not set.
    """
    path = Path(path)
    check(specs, path, overwrite=overwrite)
    if table.manifest["kind"] != "image":
        raise TableError(f"{table.path}: a table of {table.manifest['kind']}s; scorers judge images")
    progress = _progress(path)
    if path.exists() and not overwrite:
        return _scored_before(path, table, specs)
    progress.mkdir(parents=True, exist_ok=True)
    facts, scores = [], {}
    for spec in specs:
        about, found = _scored(table, progress, spec, device, part)
        if about["name"] in scores:
            raise ConfigError(f"`scorers`: two of them give a score named `{about['name']}`; leave one out")
        facts.append(about | {"unjudged": sum(math.isnan(value) for value in found.values())})
        scores[about["name"]] = found
    known = [about for about in table.manifest.get("scorers", []) if about["name"] not in scores]
    manifest = {key: table.manifest[key] for key in KEPT if key in table.manifest} | {"scorers": known + facts}
    records = (_with_scores(record, scores) for record in table)
    made = write_table(path, records, rejected=table.manifest["rejected"], overwrite=overwrite, **manifest)
    shutil.rmtree(progress)
    return made


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
        found = read_table(path)
        same = all(found.column(name) == table.column(name) for name in ("id", "prompt"))
        if same and [about["spec"] for about in found.manifest.get("scorers", ())][-len(specs) :] == list(specs):
            shutil.rmtree(_progress(path))
            return found
    raise _taken(path)


def _scored(table: Table, progress: Path, spec: Spec, device: str, part: int) -> tuple[dict[str, Any], dict[Key, float]]:
    """Return what is known of a scorer and the scores of all images, computed where `progress` lacks them."""
    constants = single("scorer", spec)[1]
    mark = fingerprint({"table": table.fingerprint, "spec": single("scorer", spec), "files": stamps(constants)})[:24]
    done, about = _read(progress, mark)
    todo = [key for key in _keys(table) if key not in done]
    if about is None or todo:
        about = _compute(table, progress / mark, spec, device, part, todo, done)
        gc.collect()  # so that one model has left the memory before the next is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return about, done


def _compute(table: Table, stem: Path, spec: Spec, device: str, part: int, todo: Sequence[Key], done: dict[Key, float]) -> dict[str, Any]:
    """Add the scores of `todo` to `done` and, part by part, to files that begin with `stem`; return what is known of the scorer."""
    scorer = load_scorer(spec, device=device)
    about = {name: getattr(scorer, name) for name in ("name", "scale", "licence", "max_tokens", "revision")} | {"spec": spec}
    write({stem.with_suffix(".json"): json.dumps(about)})
    images, size = _images(table, set(todo)), min(BATCH, part)
    found: dict[Key, float] = {}
    with tqdm(total=len(todo) + len(done), initial=len(done), desc=f"score {scorer.name}", unit=" images", disable=None) as bar:
        written = time.monotonic()
        while batch := list(itertools.islice(images, size)):  # the same batches after a kill, and so the same scores to the last bit
            values = scorer([image for _, image, _ in batch], [prompt for *_, prompt in batch])
            found |= dict(zip([key for key, *_ in batch], map(float, values), strict=True))
            bar.update(len(batch))
            if len(found) >= part or time.monotonic() - written > SECONDS:
                _write(stem, found, done)
                found, written = {}, time.monotonic()
    _write(stem, found, done)
    return about


def _keys(table: Table) -> Iterator[Key]:
    for name, count in zip(table.column("id"), _counts(table), strict=True):
        yield from ((name, index) for index in range(count))


def _counts(table: Table) -> Iterator[int]:
    for batch in table.batches():
        yield from np.diff(batch.column("candidates").offsets.to_numpy()).tolist()


def _images(table: Table, wanted: set[Key]) -> Iterator[tuple[Key, Any, str]]:
    """Yield key, image and prompt of the wanted images, in the table's order."""
    for record in table:
        for index, candidate in enumerate(record.candidates):
            if (record.id, index) in wanted:
                image = decode_image(candidate.image or b"", f"{record.source}, candidate {index}")
                yield (record.id, index), image, record.prompt if candidate.prompt is None else candidate.prompt


def _with_scores(record: Record, scores: dict[str, dict[Key, float]]) -> Record:
    """Return the record with the new scores; one that is NaN is left out."""
    candidates = []
    for index, candidate in enumerate(record.candidates):
        new = {name: found[record.id, index] for name, found in scores.items()}
        old = {name: value for name, value in candidate.scores.items() if name not in new}
        candidates.append(dataclasses.replace(candidate, scores=old | {n: v for n, v in new.items() if not math.isnan(v)}))
    return dataclasses.replace(record, candidates=tuple(candidates))


def stamps(constants: Any) -> list[tuple[str, int, int]]:
    """Return size and time of the files that a spec's constants name, so that scores by other weights are not taken for theirs."""
    found = []
    for value in constants.values():
        path = Path(value.rpartition(".py:")[0] + ".py" if ".py:" in value else value) if isinstance(value, str) and value else None
        if path is not None and path.exists():
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            found += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return found


def _read(progress: Path, mark: str) -> tuple[dict[Key, float], dict[str, Any] | None]:
    about = progress / f"{mark}.json"
    done: dict[Key, float] = {}
    for file in sorted(progress.glob(f"{mark}-*.parquet")):
        columns = pq.read_table(file).to_pydict()
        done |= dict(zip(zip(columns["id"], columns["candidate"], strict=True), columns["score"], strict=True))
    return done, json.loads(about.read_text(encoding="utf-8")) if about.is_file() else None


def _write(stem: Path, found: dict[Key, float], done: dict[Key, float]) -> None:
    """Add `found` to `done`, and to the files that begin with `stem`."""
    columns = {"id": [key[0] for key in found], "candidate": [key[1] for key in found], "score": list(found.values())}
    if found:
        file = stem.with_name(f"{stem.name}-{len(done):09d}.parquet")
        with atomic_file(file) as temporary:
            pq.write_table(pa.table(columns), temporary)
    done |= found
