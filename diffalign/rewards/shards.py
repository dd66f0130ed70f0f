"""Scores of pictures in shards that survive a kill: a file for each shard and scorer, whole or not at all, one scorer in memory at a time.

A shard is scored in the same batches whoever does it, so the same call after a kill ends in the same numbers to the last bit.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffalign.core.documents import read_json, read_mapping
from diffalign.core.errors import TableError
from diffalign.core.files import write
from diffalign.core.progress import progress
from diffalign.core.specs import Spec, single
from diffalign.data.cache import fingerprint
from diffalign.data.pictures import decode_image
from diffalign.data.records import Record
from diffalign.rewards.table import load_scorer

BEGUN = ".begun"  # suffix of the file of a shard that was not scored to its end
BATCH = 32  # images decoded and scored at once
ABOUT = ("name", "unit", "scale", "licence", "max_tokens", "revision")  # what is kept of a scorer


@dataclass(frozen=True, slots=True)
class Shard:
    """Records whose pictures are scored together, and the file of their scores."""

    file: Path
    records: Callable[[], Sequence[Record]]


def spec_key(spec: Spec, **facts: Any) -> str:
    """Return a name for the scores by `spec`: another one for other constants, other files that they name, and other `facts`."""
    name, constants = single("scorer", spec)
    return fingerprint({"name": name, "constants": dict(constants), "files": stamps(constants), **facts})[:16]


def score_shards(shards: Sequence[Shard], spec: Spec, device: str) -> None:
    """Score those shards whose file is not there yet; the scorer has left the memory afterwards."""
    missing = [shard for shard in shards if not shard.file.is_file()]
    if not missing:
        return
    gc.collect()  # so that what was in memory before has left it
    scorer = load_scorer(spec, device=device)
    about = {name: getattr(scorer, name) for name in ABOUT} | {"spec": spec}
    for shard in progress(missing, desc=f"score {scorer.name}", unit="shards"):
        records = shard.records()
        rest = iter(_scored(scorer, records, shard.file.with_suffix(BEGUN)))
        scores = [[next(rest) for _ in record.candidates] for record in records]
        write({shard.file: json.dumps({"scorer": about, "scores": scores})})
        shard.file.with_suffix(BEGUN).unlink(missing_ok=True)
    del scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _scored(scorer: Any, records: Sequence[Record], begun: Path) -> list[float | None]:
    """Return the score of every candidate of all records, None for what the scorer cannot judge.

    Where scoring fails, the batches that are done are written to `begun`, and a later call goes on from there.
    """
    pictures = [(record, index) for record in records for index in range(len(record.candidates))]
    scores: list[float | None] = read_json(begun, TableError) if begun.is_file() else []
    try:
        for start in range(len(scores), len(pictures), BATCH):
            batch = [(record, index, record.candidates[index]) for record, index in pictures[start : start + BATCH]]
            images = [decode_image(candidate.image or b"", f"{record.source}, candidate {index}") for record, index, candidate in batch]
            prompts = [record.prompt if candidate.prompt is None else candidate.prompt for record, _, candidate in batch]
            scores += [None if math.isnan(value) else float(value) for value in scorer(images, prompts)]
    finally:
        if len(scores) < len(pictures):
            write({begun: json.dumps(scores)})
    return scores


def read_shards(files: Sequence[Path]) -> tuple[dict[str, Any], list[list[float | None]]]:
    """Return what is known of the scorer, and the scores of every record, of shards that are all there."""
    shards = [read_mapping(file, TableError) for file in files]
    return shards[0]["scorer"], [row for shard in shards for row in shard["scores"]]


def stamps(constants: Any) -> list[tuple[str, int, int]]:
    """Return size and time of the files that a spec's constants name, so that scores by other weights are not taken for theirs."""
    stamped = []
    for value in constants.values():
        path = Path(value.rpartition(".py:")[0] + ".py" if ".py:" in value else value) if isinstance(value, str) and value else None
        if path is not None and path.exists():
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            stamped += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return stamped
