"""Scores of pictures in shards that survive a kill: a file for each shard and scorer, whole or not at all, one scorer in memory at a time.

A shard is scored in the same batches whoever does it, so the same call after a kill ends in the same numbers to the last bit.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffalign.core.documents import read_mapping
from diffalign.core.errors import ConfigError, TableError
from diffalign.core.files import write
from diffalign.core.progress import progress
from diffalign.core.specs import Spec, single
from diffalign.data.cache import fingerprint
from diffalign.data.pictures import decode_image
from diffalign.data.records import Record
from diffalign.rewards.base import Scorer
from diffalign.rewards.scorers.function import CallableScorer
from diffalign.rewards.scorers.implicit import ImplicitTextScorer
from diffalign.rewards.scorers.people import PeopleScorer
from diffalign.rewards.scorers.trained import HeadScorer
from diffalign.rewards.table import load_scorer

BEGUN = ".begun"  # suffix of the file of a shard that was not scored to its end
BATCH = 32  # images decoded and scored at once
QUESTIONS = {"answered": "answered", "kept": "known from before", "refused": "refused", "unread": "unreadable", "failed": "failed"}
PAIRS = {"flips": "flips with the order", "ties": "ties", "open": "without a verdict"}
Audit = Counter[str]
MANNERS = ("cache", "concurrency", "on_failure", "timeout")  # constants of how a judge is asked, which change no answer
ABOUT = ("name", "unit", "scale", "licence", "max_tokens", "revision")  # what is kept of a scorer


@dataclass(frozen=True, slots=True)
class Shard:
    """Records whose pictures are scored together, and the file of their scores."""

    file: Path
    records: Callable[[], Sequence[Record]]
    others: Callable[[], Sequence[Record]] | None = None
    """Records of the same prompts, which a judge compares with those of `records`: written is the chance that one of these is better."""


def spec_key(spec: Spec, **facts: Any) -> str:
    """Return a name for the scores by `spec`: another one for other constants, other files that they name, and other `facts`."""
    name, constants = single("scorer", spec)
    decisive = _decisive(constants)
    return fingerprint({"name": name, "constants": decisive, "files": stamps(decisive), **facts})[:16]


def _decisive(value: Any) -> Any:
    """Return a spec's constants without those of how a judge is asked, at any depth."""
    if isinstance(value, Mapping):
        return {name: _decisive(inner) for name, inner in value.items() if name not in MANNERS}
    return [_decisive(inner) for inner in value] if isinstance(value, list | tuple) else value


def score_shards(shards: Sequence[Shard], spec: Spec, device: str) -> None:
    """Score those shards whose file is not there yet; the scorer has left the memory afterwards."""
    missing = [shard for shard in shards if not shard.file.is_file()]
    if not missing:
        return
    gc.collect()  # so that what was in memory before has left it
    scorer = load_scorer(spec, device=device)
    about = {name: getattr(scorer, name) for name in ABOUT} | {"spec": spec}
    for shard in progress(missing, desc=f"score {scorer.name}", unit="shards"):
        records, begun = shard.records(), shard.file.with_suffix(BEGUN)
        scores, audit, notes = (*_compared(scorer, records, shard.others()), []) if shard.others else _scored(scorer, records, begun)
        facts = {"scorer": about | ({"audit": audit} if audit else {}), "scores": _by_record(scores, records)}
        write({shard.file: json.dumps(facts | ({"evidence": _by_record(notes, records)} if notes else {}))})
        begun.unlink(missing_ok=True)
    del scorer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _scored(scorer: Scorer, records: Sequence[Record], begun: Path) -> tuple[list[float | None], Audit, list[str | None]]:
    """Return the score of every candidate of all records, None for what the scorer cannot judge, what became of its questions, and what
    the scores stand on, where the scorer keeps that.

    Where scoring fails, the batches that are done are written to `begun`, and a later call goes on from there. A judge that compares has
    the pictures of one record at a time.
    """
    pictures = [(record, index) for record in records for index in range(len(record.candidates))]
    done: dict[str, Any] = read_mapping(begun, TableError) if begun.is_file() else {"scores": [], "audit": {}}
    scores, audit, sizes = list(done["scores"]), Counter(done["audit"]), iter(_sizes(scorer, records))
    notes: list[str | None] = list(done.get("evidence", ()))
    before = audit_of(scorer)
    try:
        start = 0
        while start < len(pictures):
            end = start + next(sizes)
            if end > len(scores):
                scores += _answers(scorer, pictures[start:end])
                notes += evidence_of(scorer)
            start = end
    finally:
        audit += audit_of(scorer) - before
        if len(scores) < len(pictures):
            write({begun: json.dumps({"scores": scores, "audit": audit, "evidence": notes})})
    return scores, audit, notes


def _by_record(values: Sequence[Any], records: Sequence[Record]) -> list[list[Any]]:
    rest = iter(values)
    return [[next(rest) for _ in record.candidates] for record in records]


def _sizes(scorer: Scorer, records: Sequence[Record]) -> list[int]:
    """Return how many pictures are judged at once, batch by batch."""
    if isinstance(scorer, PeopleScorer) or (isinstance(scorer, CallableScorer | HeadScorer) and scorer.together):
        return [len(record.candidates) for record in records]
    count = sum(len(record.candidates) for record in records)
    return [min(BATCH, count - start) for start in range(0, count, BATCH)]


def _answers(scorer: Scorer, pictures: Sequence[tuple[Record, int]]) -> list[float | None]:
    if isinstance(scorer, ImplicitTextScorer):
        alone = [replace(record, candidates=(record.candidates[index],)) for record, index in pictures]
        return [None if math.isnan(value) else float(value) for value in scorer.of_records(alone)]
    texts = isinstance(scorer, HeadScorer) and scorer.reads_texts
    images: Any = [(record.candidates[index].text or "") if texts else _image(record, index) for record, index in pictures]
    candidates = [(record, record.candidates[index]) for record, index in pictures]
    prompts = [record.prompt if candidate.prompt is None else candidate.prompt for record, candidate in candidates]
    return [None if math.isnan(value) else float(value) for value in scorer(images, prompts)]


def _compared(scorer: Scorer, records: Sequence[Record], others: Sequence[Record]) -> tuple[list[float | None], Audit]:
    """Return the chance that every candidate of `others` is better than the one in its place of `records`, None without a verdict."""
    if not isinstance(scorer, CallableScorer) or scorer.compare is None:
        raise ConfigError(f"`{scorer.name}` gives scores and no verdicts on two pictures")
    before = audit_of(scorer)
    places = [(one, other, index) for one, other in zip(records, others, strict=True) for index in range(len(one.candidates))]
    first, second = [_image(one, index) for one, _, index in places], [_image(other, index) for _, other, index in places]
    chances = scorer.compare(second, first, [one.prompt for one, _, _ in places])
    return [None if math.isnan(value) else float(value) for value in chances], audit_of(scorer) - before


def _image(record: Record, index: int) -> Image.Image:
    return decode_image(record.candidates[index].image or b"", f"{record.source}, candidate {index}")


def audit_of(scorer: Scorer) -> Audit:
    """Return what has become of the questions that a judge asks; nothing for a scorer that asks none."""
    return +scorer.audit if isinstance(scorer, CallableScorer) else Counter()


def evidence_of(scorer: Scorer) -> list[str | None]:
    """Return what the scores of the last call stand on, JSON an image; nothing for a scorer that keeps none."""
    return list(scorer.evidence) if isinstance(scorer, CallableScorer) and scorer.evidence is not None else []


def read_evidence(files: Sequence[Path]) -> list[list[str | None]]:
    """Return what the scores of every record stand on, from shards that are all there; empty for a scorer that keeps nothing."""
    shards = [read_mapping(file, TableError) for file in files]
    return [row for shard in shards for row in shard.get("evidence", ())]


def audited(audit: Mapping[str, int]) -> str:
    """Return an audit in words.

    >>> audited({"answered": 12, "refused": 1, "pairs": 6, "flips": 2, "first_won": 7, "second_won": 3})
    '12 answered, 1 refused; of 6 pairs 2 flips with the order; the first picture won 7 of 10 orders'
    """
    counts = [f"{audit[name]} {word}" for name, word in QUESTIONS.items() if audit.get(name)]
    parts = [", ".join(counts)] if counts else []
    if audit.get("pairs"):
        fates = [f"{audit[name]} {word}" for name, word in PAIRS.items() if audit.get(name)]
        parts.append(f"of {audit['pairs']} pairs {', '.join(fates) or 'none flips'}")
        if decided := audit.get("first_won", 0) + audit.get("second_won", 0):
            parts.append(f"the first picture won {audit.get('first_won', 0)} of {decided} orders")
    return "; ".join(parts)


def read_shards(files: Sequence[Path]) -> tuple[dict[str, Any], list[list[float | None]]]:
    """Return what is known of the scorer, and the scores of every record, of shards that are all there."""
    shards = [read_mapping(file, TableError) for file in files]
    about, audits = dict(shards[0]["scorer"]), [Counter(shard["scorer"].get("audit") or {}) for shard in shards]
    if any(audits):
        about["audit"] = dict(sum(audits, Counter()))
    return about, [row for shard in shards for row in shard["scores"]]


def stamps(constants: Any) -> list[tuple[str, int, int]]:
    """Return size and time of the files that a spec's constants name, so that scores by other weights are not taken for theirs."""
    stamped = []
    for value in constants.values() if isinstance(constants, Mapping) else constants:
        if isinstance(value, Mapping | list):
            stamped += stamps(value)
            continue
        path = Path(value.rpartition(".py:")[0] + ".py" if ".py:" in value else value) if isinstance(value, str) and value else None
        if path is not None and path.exists():
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
            stamped += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return stamped
