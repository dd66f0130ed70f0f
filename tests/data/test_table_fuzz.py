"""Damaged and hostile tables: whatever the bytes, only DiffalignError leaves, nothing is written outside, nothing is fetched."""

from __future__ import annotations

import contextlib
import gzip
import json
import random

from diffalign.core.errors import DiffalignError
from diffalign.data.importing import import_dataset
from diffalign.data.prompts import prompts_of
from tests.data.image_files import JPEGS, put
from tests.data.test_people_exports import packed

FILES = 480
ROW = {"prompt": "a star", "image_0": "0.jpg", "image_1": "https://example.com/1.jpg", "label_0": "0,5", "weight": 1, "user_id": 7}
CSV = "prompt;image_0;image_1;winner\r\n" + '"a; st""ar";0.jpg;1.jpg;B\r\n' * 4
TEXTS = {"q": "p", "prompt": "p", "completion": "c", "label": True}
TOKENS = [
    b'"',
    b"\n",
    b"\r",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[",
    b"{",
    b";",
    b",",
    b"\t",
    b"../",
    b"NaN",
    b"1e999",
    b"\xe2\x80\xa8",
    b"'",
]
ARCHIVE = {"votes.csv": CSV.replace(";", ",").encode(), "0.jpg": JPEGS[0], "1.jpg": JPEGS[1], "../out.csv": b"prompt\nx\n"}
SHARD = {"0.jpg_0": JPEGS[0], "0.jpg_1": JPEGS[1], "0.json": b'{"caption": "p", "label_0": 1}'}
SEEDS = {
    "v.csv": CSV.encode(),
    "v.tsv": CSV.replace(";", "\t").encode("utf-16"),
    "v.jsonl": (json.dumps(ROW) + "\n").encode() * 4,
    "w.jsonl": (json.dumps(TEXTS) + "\n").encode() * 4,
    "v.json": json.dumps([ROW, {"data": {"image1": "0.jpg", "image2": "1.jpg"}, "annotations": [{"result": []}]}]).encode(),
    "v.txt": "a star\u2019\na ring\n".encode("cp1252"),
    "v.csv.gz": gzip.compress(CSV.encode()),
    "v.zip": packed("zip", ARCHIVE),
    "a.zip": packed("zip", {name: data for name, data in ARCHIVE.items() if ".." not in name}),
    "v.tar": packed("tar", ARCHIVE),
    "s.tar": packed("tar", SHARD),
    "s.tgz": packed("tgz", SHARD),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four pieces cut out, doubled, replaced, or put in."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 2, 8, 64, 512)))
        piece = rng.choice((b"", data[start:end] * 2, rng.randbytes(end - start), rng.choice(TOKENS), rng.choice(TOKENS) * 300))
        data = data[:start] + piece + data[end:]
    return data


def test_damaged_tables_raise_nothing_but_our_errors_and_write_nothing_outside(tmp_path, monkeypatch):
    rng = random.Random(0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("diffalign.data.readers.archives.LEAST", 2**22)
    monkeypatch.setattr("diffalign.data.readers.text_lines.LEAST", 2**22)
    (tmp_path / "temporary").mkdir()
    put(tmp_path / "in", {"0.jpg": 0, "1.jpg": 1})
    before, kept = None, 0
    for number in range(FILES):
        name = list(SEEDS)[number % len(SEEDS)]
        file = tmp_path / "in" / name
        file.write_bytes(damaged(SEEDS[name], rng) if number >= len(SEEDS) else SEEDS[name])
        messages = [""]
        try:
            kept += len(import_dataset(str(file), tmp_path / "table", skip_bad=number % 2 == 0, overwrite=True))
        except DiffalignError as error:
            messages.append(str(error))
        assert len(messages[-1]) < 20_000, (name, number)
        with contextlib.suppress(DiffalignError):
            prompts_of([str(file)])
        file.unlink()
        there = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if tmp_path / "table" not in (path, *path.parents))
        before = before or there
        assert there == before, (name, number)
    assert kept > FILES / 4
