"""Sums up what a table holds: labels, users, sizes, scores, and what would spoil training on it."""

from __future__ import annotations

import contextlib
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from diffalign.core.errors import RecordError
from diffalign.core.progress import progress
from diffalign.data.duplicates import repeat_warning
from diffalign.data.pictures import Header, Size, read_header
from diffalign.data.shortcuts import LEAST_PAIRS, Shortcut, kept_shares, shortcuts
from diffalign.data.table import CHUNK, CONDITIONING, Table

LISTED = 8  # sizes, and reasons for rejection, that `render_summary` prints
# What a record is counted as; soft ones also as first or second preferred.
LABELS = ("first_preferred", "second_preferred", "ties", "soft", "ranked", "unpaired", "unlabelled")


def summary(table: Table, buckets: Sequence[Size] = ()) -> dict[str, Any]:
    """Return counts, ranges and quantiles of what `table` holds, as plain JSON values. Image sizes are read from the file headers.

    The crop is that to a square, or with `buckets` (height, width) to the nearest of these.
    """
    prompts, users = table.scattered("prompt"), _counts(table.scattered("user"))
    per_record, sizes, labels, conditioning = Counter[int](), Counter[str](), Counter[str](), Counter[str]()
    lengths, kept = array("q"), array("d")
    for batch in progress(table.batches(), desc="inspect", total=-(-len(table) // CHUNK), unit="chunks"):
        column = batch.column("candidates")
        counts, content = column.value_lengths().to_pylist(), column.flatten()
        per_record.update(counts)
        labels.update(_batch_labels(batch))
        conditioning.update(_conditioning(batch))
        if table.manifest["kind"] == "image":
            headers = [_header(image.as_buffer()) for image in content.field("image")]
            sizes.update(size_name(header) for header in headers)
            shapes = ([(header.height, header.width) for header in row if header is not None] for row in _split(headers, counts))
            kept.extend(share for row in shapes if row for share in kept_shares(row, buckets))
        else:
            lengths.extend(map(len, content.field("text").to_pylist()))
    return {
        "path": table.name,
        "kind": table.manifest["kind"],
        "rows": len(table),
        "prompts": len(prompts.unique()),
        "labels": {name: labels[name] for name in LABELS},
        "users": {"count": len(users), "rows_without": len(table) - users.total(), "rows_per_user": _quantiles(users.values())},
        "candidates_per_record": {str(count): rows for count, rows in sorted(per_record.items())},
        "conditioning_images": dict(conditioning),
        "resolutions": dict(sizes.most_common()),
        "kept_by_crop": _quantiles(kept),
        "prompt_length": _quantiles(len(prompt) for piece in prompts.chunks for prompt in piece.to_pylist()),
        "text_length": _quantiles(lengths),
        "scores": table.manifest["scores"],
        "scored_by": table[0].meta.get("scored_by"),
        "shortcuts": [asdict(shortcut) for shortcut in shortcuts(table, buckets)],
        "repeats": table.manifest.get("repeats", {}),
        "rejected": _rejected(table.manifest),
    }


def _conditioning(batch: pa.RecordBatch) -> dict[str, int]:
    """Return how many records have one conditioning image for all candidates, and how many candidates one of their own; none is read."""
    if CONDITIONING not in batch.schema.names:  # a table of the former schema
        return {}
    columns = {"records": batch.column(CONDITIONING), "candidates": batch.column("candidates").flatten().field(CONDITIONING)}
    return {name: count for name, column in columns.items() if (count := len(column) - column.null_count)}


def label_counts(table: Table) -> dict[str, int]:
    """Return how many records are counted as each of `LABELS`."""
    labels = Counter[str]()
    for batch in table.batches():
        labels.update(_batch_labels(batch))
    return {name: labels[name] for name in LABELS}


def _batch_labels(batch: pa.RecordBatch) -> Iterator[str]:
    """Yield which of `LABELS` the records of a batch are counted as."""
    column = batch.column("candidates")
    ranks = _split(column.flatten().field("rank").to_pylist(), column.value_lengths().to_pylist())
    return itertools.chain.from_iterable(map(_labels, batch.column("prob").to_pylist(), ranks))


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    """Return how often each value of a column of texts stands there."""
    return Counter({count["values"]: count["counts"] for count in column.drop_null().value_counts().to_pylist()})


def _split(values: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Yield the values of each record's candidates, of which it has as many as `counts` says."""
    start = 0
    for count in counts:
        yield values[start : start + count]
        start += count


def _header(image: bytes | pa.Buffer) -> Header | None:
    """Return the header of an image, None if there is none that can be read."""
    # Arrow's reader touches the header's pages alone, but refuses to seek past the end, as some of Pillow's formats do.
    sources = (lambda: image,) if isinstance(image, bytes) else (lambda: pa.BufferReader(image), image.to_pybytes)
    for source in sources:
        with contextlib.suppress(RecordError):
            return read_header(source(), "")
    return None


def size_name(image: bytes | Header | None) -> str:
    """Return width and height of the upright image as `512x768`, or `unreadable`."""
    header = _header(image) if isinstance(image, bytes) else image
    return "unreadable" if header is None else f"{header.width}x{header.height}"


def _labels(prob: float | None, ranks: Sequence[float | None]) -> Iterator[str]:
    """Yield which of `LABELS` a record is counted as."""
    if prob is None:
        yield "ranked" if len({rank for rank in ranks if rank is not None}) > 1 else "unlabelled"
    elif len(ranks) == 1:
        yield "unpaired"
    else:
        yield "ties" if prob == 0.5 else "first_preferred" if prob > 0.5 else "second_preferred"
        if prob not in (0.0, 0.5, 1.0):
            yield "soft"


def _quantiles(values: Iterable[float]) -> dict[str, float]:
    numbers = np.fromiter(values, dtype=np.float64)
    if not len(numbers):
        return {}
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: float(np.quantile(numbers, share)) for name, share in shares.items()}


def _rejected(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the rejected rows in groups of one reason, the largest first; reasons that differ by a size or a share are one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for row in manifest["rejected"]:
        reason = re.sub(r"^[,: ]*(candidate \d+: )?|( \(line \d+\))?$", "", row["reason"].removeprefix(row["where"]))
        kind = re.sub(r" at \d+ %|\d+ x \d+ pixels(, \d+ million)?", "", reason)
        groups.setdefault(kind, []).append((reason, row["where"]))
    reasons = [{"reason": rows[0][0], "rows": len(rows), "first": rows[0][1]} for rows in groups.values()]
    return {"rows": manifest["rejected_rows"], "reasons": sorted(reasons, key=lambda group: -group["rows"])}


def render_summary(facts: dict[str, Any]) -> str:
    """Return a `summary` as aligned lines of plain text."""
    rows, labels, users = facts["rows"], facts["labels"], facts["users"]
    strict = labels["first_preferred"] + labels["second_preferred"]
    others = [f"{labels[name]} {name}" for name in ("ranked", "unpaired") if labels[name]]
    lines = [
        ("table", facts["path"]),
        ("rows", f"{rows} of {facts['kind']}s, {facts['prompts']} distinct prompts"),
        (
            "labels",
            ", ".join(
                [f"{strict} strict ({labels['soft']} soft)", f"{labels['ties']} ties", *others, f"{labels['unlabelled']} unlabelled"]
            ),
        ),
        ("trains", trained_rows(labels, rows)),
        ("balance", f"first preferred {_share(labels['first_preferred'], strict)}, second {_share(labels['second_preferred'], strict)}"),
        ("candidates", ", ".join(f"{count} in {_share(n, rows)} of rows" for count, n in facts["candidates_per_record"].items())),
        ("conditioning", ", ".join(f"images for {count} {name}" for name, count in facts["conditioning_images"].items())),
        ("users", f"{users['count']}, {users['rows_without']} rows without one"),
        ("rows per user", _spread(users["rows_per_user"])),
        ("prompt length", _spread(facts["prompt_length"])),
        ("text length", _spread(facts["text_length"])),
    ]
    lines += _listed("resolution", [(name, count) for name, count in facts["resolutions"].items()], sum(facts["resolutions"].values()))
    by = f", of {facts['scored_by']}" if facts["scored_by"] else ""
    if facts["kept_by_crop"]:
        lines.append(("kept by crop", ", ".join(f"{name} {value:.0%}" for name, value in facts["kept_by_crop"].items())))
    lines += [(f"score {name}", f"{span['min']:g} to {span['max']:g}{by}") for name, span in facts["scores"].items()]
    lines += _warnings(facts)
    lines.append(("rejected", f"{facts['rejected']['rows']} rows"))
    reasons = [(f"{group['reason']} (first: {group['first']})", group["rows"]) for group in facts["rejected"]["reasons"]]
    lines += _listed("", reasons, facts["rejected"]["rows"])
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines if text)


def trained_rows(labels: Mapping[str, int], rows: int) -> str:
    """Return what each family of methods would train on."""
    strict = labels["first_preferred"] + labels["second_preferred"]
    families = {
        "pairwise methods": strict + labels["ranked"],
        "soft labels": strict + labels["ties"],
        "lists": labels["ranked"],
        "unpaired methods": labels["unpaired"],
        "methods of prompts alone": rows,
    }
    return f"of {rows:,} rows: " + ", ".join(f"{name} {count:,}" for name, count in families.items() if count)


def _warnings(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what cheap columns tell of the preferred candidates, with a warning of those that tell too much, and of repeated pairs."""
    columns = [Shortcut(**shortcut) for shortcut in facts["shortcuts"]]
    shares = ", ".join(f"{shortcut.column} {shortcut.auc:.0%}" for shortcut in columns)
    pairs = max((shortcut.pairs for shortcut in columns), default=0)
    lines = [("told by", f"{shares} of {pairs} pairs (50% is chance)")] if pairs >= LEAST_PAIRS else []
    lines += [("warning", str(shortcut)) for shortcut in columns if shortcut.alarms]
    repeats = repeat_warning(facts["repeats"])
    return [*lines, ("warning", repeats)] if repeats else lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _spread(quantiles: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in quantiles.items())


def _listed(label: str, counts: Sequence[tuple[str, int]], total: int) -> list[tuple[str, str]]:
    lines = [("", f"{count:>7} {_share(count, total):>6}  {name}") for name, count in counts[:LISTED]]
    if more := counts[LISTED:]:
        lines.append(("", f"{sum(count for _, count in more):>7} {'':>6}  in {len(more)} more"))
    return [(label, lines[0][1]), *lines[1:]] if lines else []
