"""Looks into a table: a summary, a preview of a few records as text or as a contact sheet of images, and a list of problems."""

from __future__ import annotations

import contextlib
import hashlib
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont, ImageOps

from diffalign.core.errors import RecordError, TableError
from diffalign.core.files import atomic_file
from diffalign.core.progress import progress
from diffalign.data.pictures import decode_image, encode_image, read_header
from diffalign.data.records import Candidate, Record
from diffalign.data.table import CHUNK, Table
from diffalign.data.transforms import orient

CELL, GAP, LINE, LEAST_WIDTH = 192, 8, 18, 616  # pixels of a contact sheet
PREFERRED, DISPREFERRED, INK, PAPER = "#1a7f37", "#c8c8c8", "#202020", "#ffffff"
LISTED = 8  # sizes, and reasons for rejection, that `render_summary` prints


def summary(table: Table) -> dict[str, Any]:
    """Return counts, ranges and quantiles of what `table` holds, as plain JSON values. Image sizes are read from the file headers."""
    prompts, users = table.column("prompt"), Counter(user for user in table.column("user") if user is not None)
    per_record: Counter[int] = Counter()
    sizes: Counter[str] = Counter()
    lengths: list[int] = []
    for batch in progress(table.batches(), desc="inspect", total=-(-len(table) // CHUNK), unit="chunks"):
        column = batch.column("candidates")
        per_record.update(column.value_lengths().to_pylist())
        content = column.flatten()
        if table.manifest["kind"] == "image":
            sizes.update(_size_name(image.as_buffer()) for image in content.field("image"))
        else:
            lengths += [len(text) for text in content.field("text").to_pylist()]
    return {
        "path": str(table.path),
        "kind": table.manifest["kind"],
        "rows": len(table),
        "prompts": len(set(prompts)),
        "labels": _labels(table.column("prob")),
        "users": {"count": len(users), "rows_without": len(table) - users.total(), "rows_per_user": _quantiles(users.values())},
        "candidates_per_record": {str(count): rows for count, rows in sorted(per_record.items())},
        "resolutions": dict(sizes.most_common()),
        "prompt_length": _quantiles(map(len, prompts)),
        "text_length": _quantiles(lengths),
        "scores": table.manifest["scores"],
        "rejected": _rejected(table.manifest),
    }


def _size_name(image: bytes | pa.Buffer) -> str:
    """Return width and height of the upright image, read from its header: `512x768`, or `unreadable`."""
    # Arrow's reader touches the header's pages alone, but refuses to seek past the end, as some of Pillow's formats do.
    sources = (lambda: image,) if isinstance(image, bytes) else (lambda: pa.BufferReader(image), image.to_pybytes)
    for source in sources:
        with contextlib.suppress(RecordError):
            header = read_header(source(), "")
            return f"{header.width}x{header.height}"
    return "unreadable"


def _labels(probs: Sequence[float | None]) -> dict[str, int]:
    labels = [prob for prob in probs if prob is not None]
    return {
        "first_preferred": sum(prob > 0.5 for prob in labels),
        "second_preferred": sum(prob < 0.5 for prob in labels),
        "ties": sum(prob == 0.5 for prob in labels),
        "soft": sum(prob not in (0.0, 0.5, 1.0) for prob in labels),  # these are also counted as first or second preferred
        "unlabelled": len(probs) - len(labels),
    }


def _quantiles(values: Iterable[int]) -> dict[str, float]:
    numbers = np.fromiter(values, dtype=np.float64)
    if not len(numbers):
        return {}
    shares = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    return {name: float(np.quantile(numbers, share)) for name, share in shares.items()}


def _rejected(manifest: dict[str, Any]) -> dict[str, Any]:
    groups: dict[str, list[str]] = {}
    for row in manifest["rejected"]:
        reason = row["reason"].removeprefix(row["where"]).lstrip(",: ")
        groups.setdefault(reason, []).append(row["where"])
    reasons = [{"reason": reason, "rows": len(places), "first": places[0]} for reason, places in groups.items()]
    return {"rows": manifest["rejected_rows"], "reasons": sorted(reasons, key=lambda group: -group["rows"])}


def render_summary(facts: dict[str, Any]) -> str:
    """Return a `summary` as aligned lines of plain text."""
    rows, labels, users = facts["rows"], facts["labels"], facts["users"]
    strict = labels["first_preferred"] + labels["second_preferred"]
    lines = [
        ("table", facts["path"]),
        ("rows", f"{rows} of {facts['kind']}s, {facts['prompts']} distinct prompts"),
        ("labels", f"{strict} strict ({labels['soft']} soft), {labels['ties']} ties, {labels['unlabelled']} unlabelled"),
        ("balance", f"first preferred {_share(labels['first_preferred'], strict)}, second {_share(labels['second_preferred'], strict)}"),
        ("candidates", ", ".join(f"{count} in {_share(n, rows)} of rows" for count, n in facts["candidates_per_record"].items())),
        ("users", f"{users['count']}, {users['rows_without']} rows without one"),
        ("rows per user", _spread(users["rows_per_user"])),
        ("prompt length", _spread(facts["prompt_length"])),
        ("text length", _spread(facts["text_length"])),
    ]
    lines += _listed("resolution", [(name, count) for name, count in facts["resolutions"].items()], sum(facts["resolutions"].values()))
    lines += [(f"score {name}", f"{span['min']:g} to {span['max']:g}") for name, span in facts["scores"].items()]
    lines.append(("rejected", f"{facts['rejected']['rows']} rows"))
    reasons = [(f"{group['reason']} (first: {group['first']})", group["rows"]) for group in facts["rejected"]["reasons"]]
    lines += _listed("", reasons, facts["rejected"]["rows"])
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines if text)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _spread(quantiles: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in quantiles.items())


def _listed(label: str, counts: Sequence[tuple[str, int]], total: int) -> list[tuple[str, str]]:
    lines = [("", f"{count:>7} {_share(count, total):>6}  {name}") for name, count in counts[:LISTED]]
    if more := counts[LISTED:]:
        lines.append(("", f"{sum(count for _, count in more):>7} {'':>6}  in {len(more)} more"))
    return [(label, lines[0][1]), *lines[1:]] if lines else []


def _sample(table: Table, rows: int, seed: int) -> list[Record]:
    chosen = np.random.default_rng(seed).choice(len(table), size=min(rows, len(table)), replace=False)
    return [table[int(index)] for index in sorted(chosen)]


def _marked(record: Record) -> list[tuple[Candidate, str, bool]]:
    """Return (candidate, its rank or label in words, whether it is a preferred one), the better ones first."""
    if len(record.candidates) == 2 and record.prob is not None:
        (pair,) = orient(record)
        prob = pair.prob or 0.0
        words = ("tie", "tie") if prob == 0.5 else (f"preferred, prob {prob:.2f}", f"dispreferred, prob {1 - prob:.2f}")
        return [(pair.candidates[0], words[0], prob > 0.5), (pair.candidates[1], words[1], False)]
    ranks = [candidate.rank for candidate in record.candidates if candidate.rank is not None]
    if not ranks:
        return [(candidate, f"candidate {index}", False) for index, candidate in enumerate(record.candidates)]
    ordered = sorted(record.candidates, key=lambda candidate: float("inf") if candidate.rank is None else candidate.rank)
    return [(c, "no rank" if c.rank is None else f"rank {c.rank:g}", c.rank == min(ranks)) for c in ordered]


def preview(table: Table, rows: int = 8, seed: int = 0) -> list[str]:
    """Return printable lines that show `rows` random records: the prompt, then the candidates, the preferred one marked `*`."""
    lines = []
    for record in _sample(table, rows, seed):
        lines.append(f"[{record.id}] {textwrap.shorten(record.prompt, 120, placeholder=' ...')}")
        for candidate, word, preferred in _marked(record):
            shown = candidate.text if candidate.image is None else f"image {_size_name(candidate.image)}"
            lines.append(f"  {'*' if preferred else ' '} {word}: {textwrap.shorten(shown or '', 200, placeholder=' ...')}")
    return lines


def contact_sheet(table: Table, path: str | Path, rows: int = 8, seed: int = 0) -> Path:
    """Write a PNG that shows `rows` random records, one per row: the prompt, and the candidates, the preferred one first.

    The preferred candidate has a green frame. Returns the path. Raises TableError for a table of texts; `preview` shows those.
    """
    if table.manifest["kind"] != "image":
        raise TableError(f"{table.path} holds texts; a contact sheet needs images, `preview` shows texts")
    strips = [_strip(record) for record in _sample(table, rows, seed)]
    sheet = Image.new("RGB", (max(strip.width for strip in strips), sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    path = Path(path)
    with atomic_file(path) as temporary:
        temporary.write_bytes(encode_image(sheet))
    return path


def _strip(record: Record) -> Image.Image:
    marked = _marked(record)
    width = max(LEAST_WIDTH, GAP + len(marked) * (CELL + GAP))
    strip = Image.new("RGB", (width, 3 * LINE + CELL + 4 * GAP), PAPER)
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(13)
    prompt = textwrap.wrap(record.prompt, width // 7, max_lines=2, placeholder=" ...")
    for number, line in enumerate(prompt or ["(no prompt)"]):
        pen.text((GAP, GAP + number * LINE), line, INK, font)
    top = 2 * GAP + 2 * LINE
    for number, (candidate, word, preferred) in enumerate(marked):
        left = GAP + number * (CELL + GAP)
        color = PREFERRED if preferred else DISPREFERRED
        pen.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), outline=color, width=3)
        try:
            image = ImageOps.contain(decode_image(candidate.image or b"", record.source), (CELL, CELL))
            strip.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        except RecordError:
            pen.text((left + GAP, top + GAP), "does not decode", INK, font)
        pen.text((left, top + CELL + GAP // 2), word, INK, font)
    return strip


def validate(table: Table, resolution: int | None = None) -> list[str]:
    """Return the problems that should be known before training, one sentence each, with the record's id and source.

    Every image is decoded. With `resolution`, images whose shorter side is below it are named: training would upscale them.
    """
    problems: list[str] = []
    earlier_pairs = _EarlierPairs()
    has_preference = False
    for record in progress(table, desc="validate", unit="rows"):
        where = f"{record.id} ({record.source})"
        problems += [f"{where}: {problem}" for problem in (*_problems(record, resolution), *earlier_pairs.compare(record))]
        ranks = {candidate.rank for candidate in record.candidates} - {None}
        has_preference = has_preference or record.prob not in (None, 0.5) or len(ranks) > 1
    if not has_preference:
        problems.append(f"{table.path}: no strict pair among {len(table)} records; there is nothing to learn from")
    return problems


def _problems(record: Record, resolution: int | None) -> Iterator[str]:
    if not record.prompt.strip() and not any((candidate.prompt or "").strip() for candidate in record.candidates):
        yield "the prompt is empty"
    first_with: dict[bytes, int] = {}  # digest -> index of the first candidate that has it
    for index, candidate in enumerate(record.candidates):
        first = first_with.setdefault(_digest(candidate), index)
        if first != index:
            yield f"candidates {first} and {index} are identical"
        if candidate.image is None:
            continue
        try:
            image = decode_image(candidate.image, f"candidate {index}")
        except RecordError as error:
            yield str(error)
            continue
        if resolution is not None and min(image.size) < resolution:
            yield f"candidate {index} is {image.width}x{image.height}; training at {resolution} would upscale it"


def _digest(candidate: Candidate) -> bytes:
    content = (candidate.text or "").encode() if candidate.image is None else candidate.image
    return hashlib.sha256(content + (candidate.prompt or "").encode()).digest()


class _EarlierPairs:
    """Remembers the pairs of a table, to find repeated pairs and pairs that are repeated with the opposite label."""

    def __init__(self) -> None:
        self.ids: dict[tuple[bytes, str | None], str] = {}  # (pair, user) -> id of its first record
        self.preferred: dict[bytes, tuple[str, bytes]] = {}  # pair -> (id, digest of the preferred candidate)

    def compare(self, record: Record) -> Iterator[str]:
        """Yield a problem if an earlier record has the same pair and the opposite preference, or the same pair and the same user."""
        digests = [_digest(candidate) for candidate in record.candidates]
        turns = repr([(message.role, message.content) for message in record.messages])
        key = hashlib.sha256(repr((record.prompt, turns)).encode() + b"".join(sorted(digests))).digest()
        if len(set(digests)) == 2 == len(digests) and record.prob is not None and record.prob != 0.5:
            preferred = digests[0] if record.prob > 0.5 else digests[1]
            earlier_id, earlier_preferred = self.preferred.setdefault(key, (record.id, preferred))
            if earlier_preferred != preferred:
                yield f"has the opposite preference of record {earlier_id}, which is the same pair"
                return
        earlier_id = self.ids.setdefault((key, record.user), record.id)
        if earlier_id != record.id:
            yield f"is the same pair as record {earlier_id}"
