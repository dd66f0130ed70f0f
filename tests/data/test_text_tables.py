"""Text tables as people save them: whatever encoding, separator, case and compression, the same rows; a bad line is a bad row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging

import pyarrow as pa
import pytest

from diffalign.core.errors import RecordError
from diffalign.data.importing import import_dataset
from diffalign.data.readers import READERS, open_rows, read
from diffalign.data.readers.detect import detect
from diffalign.data.readers.prompts import PROMPTS
from diffalign.data.readers.text_lines import text_lines
from tests.data.image_files import JPEGS, put

HEADER = ["prompt", "image_0", "image_1", "label_0"]
ROWS = [["the fox\u2019s tail", "0.jpg", "1.jpg", "1"], ["a star, red", "1.jpg", "2.jpg", "0"], ["über", "2.jpg", "0.jpg", "0.5"]]
EXPECTED = [("the fox\u2019s tail", 1.0), ("a star, red", 0.0), ("über", 0.5)]


def table(separator: str = ",", header: list[str] = HEADER, rows: list[list[str]] = ROWS, end: str = "\r\n") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator, lineterminator=end).writerows([header, *rows])
    return buffer.getvalue()


LINES = "".join(json.dumps(dict(zip(HEADER, row, strict=True)), ensure_ascii=False) + "\n" for row in ROWS)
SPACED = "\n".join([", ".join(HEADER), *(f'"{prompt}", {", ".join(rest)}' for prompt, *rest in ROWS)])
FILES = {
    "plain.csv": table().encode(),
    "bom.csv": table().encode("utf-8-sig"),
    "western.csv": table().encode("cp1252"),
    "western-semicolons.csv": table(";").encode("cp1252"),
    "decimal-commas.csv": table(";", rows=[[*row[:3], row[3].replace(".", ",")] for row in ROWS]).encode("utf-8-sig"),
    "utf16.csv": table().encode("utf-16"),
    "utf16-tabs-as-excel.csv": table("\t").encode("utf-16"),
    "utf16-without-mark.csv": table(rows=[*ROWS]).encode("utf-16-le"),
    "utf32.csv": table().encode("utf-32"),
    "tabs.csv": table("\t").encode(),
    "bars.csv": table("|").encode(),
    "declared.csv": f"sep=;\r\n{table(';')}".encode(),
    "old-mac.csv": table(end="\r").encode(),
    "Caps.CSV": table(header=["Prompt", "Image 0", "IMAGE-1", " Label_0 "]).encode(),
    "spaced.csv": SPACED.encode(),
    "trailing-columns.csv": table(";", header=[*HEADER, "", ""], rows=[[*row, "", ""] for row in [*ROWS, [""] * 4]]).encode(),
    "tabs.TSV": table("\t").encode(),
    "packed.csv.gz": gzip.compress(table().encode("cp1252")),
    "lines.jsonl": LINES.encode(),
    "lines.NDJSON": LINES.encode("utf-8-sig"),
    "western.jsonl": LINES.encode("cp1252"),
    "packed.jsonl.gz": gzip.compress(LINES.encode()),
    "lines-under-another-name.json": LINES.encode(),
    "list-under-another-name.jsonl": json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1).encode(),
    "pandas.json": json.dumps(
        {name: dict(enumerate(column)) for name, column in zip(HEADER, zip(*ROWS, strict=True), strict=True)}
    ).encode(),
    "pandas-split.json": json.dumps({"columns": HEADER, "index": [0, 1, 2], "data": ROWS}).encode(),
    "viewer.json": json.dumps({"rows": [{"row_idx": 0, "row": dict(zip(HEADER, row, strict=True))} for row in ROWS]}).encode(),
}


def test_the_same_table_is_read_from_whatever_file_a_program_writes(tmp_path):
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1, "2.jpg": 2})
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        source = str(tmp_path / name)
        records = list(read(READERS[detect(source)], source))
        assert [(record.prompt, record.prob) for record in records] == EXPECTED, name
        assert [c.image for c in records[1].candidates] == JPEGS[1:3], name


def test_a_file_in_another_encoding_is_named_once_with_an_example(tmp_path, caplog):
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1, "2.jpg": 2, "votes.csv": table().encode("cp1252")})
    with caplog.at_level(logging.WARNING):
        import_dataset(str(tmp_path / "votes.csv"), tmp_path / "table")
    (message,) = [entry.message for entry in caplog.records]
    assert all(fact in message for fact in ("votes.csv", "Windows-1252", "line 2", "the fox\u2019s tail"))


BAD_LINES = {
    "utf8.csv": (table(rows=[ROWS[2], ROWS[0]]).encode() + b"the wolf\x92s tail,0.jpg,1.jpg,1\r\n", "line 4", "0x92"),
    "chinese.csv": (table(rows=[ROWS[1]]).encode() + "红色的星星,0.jpg,1.jpg,1\r\n".encode("gbk"), "line 3", "UTF-8"),
    "zeros.csv": (table(rows=[ROWS[1]]).encode() + b"a st\0ar,0.jpg,1.jpg,1\r\n", "line 3", "zero byte"),
    "quote.csv": (table(rows=[ROWS[1]]).encode() + b'"a star,0.jpg,1.jpg,1\r\na cube,0.jpg,1.jpg,1\r\n', "line 3", "quotes"),
    "two-quotes.csv": (
        b'prompt,image_0,image_1,label_0\n"a star,0.jpg,1.jpg,1\n"a ring,0.jpg,1.jpg,0\nsky,0.jpg,1.jpg,1\n',
        "line 2",
        "quotes",
    ),
    "fields.csv": (table(rows=[ROWS[1]]).encode() + b"a ball, red,0.jpg,1.jpg,1\r\n", "line 3", "1 fields more"),
    "half.jsonl": (LINES.encode() + b'{"prompt": "a st\n', "line 4", "not JSON"),
    "deep.jsonl": (LINES.encode() + b"[" * 100_000 + b"\n", "line 4", "nested"),
    "digits.jsonl": (LINES.encode() + b'{"prompt": ' + b"9" * 5000 + b"}\n", "line 4", "digits"),
}


def test_a_bad_line_is_named_by_file_and_line_and_costs_its_row_alone(tmp_path):
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1, "2.jpg": 2})
    for name, (data, line, fact) in BAD_LINES.items():
        (tmp_path / name).write_bytes(data)
        source = str(tmp_path / name)
        with pytest.raises(RecordError) as error:
            list(read(READERS["columns"], source))
        assert all(part in str(error.value) for part in (name, f"({line})", fact)), (name, str(error.value))
        rejected: list[dict[str, str]] = []
        kept = list(read(READERS["columns"], source, rejected=rejected))
        rows = len([text for text in data.replace(b"\r", b"").split(b"\n") if text]) - name.endswith(".csv")
        assert len(kept) + len(rejected) == rows, name
        assert kept, name


def test_only_newlines_end_a_line(tmp_path):
    text = "one\u2028two\x0cthree\x85four\x0bfive\nsix\r\nseven"
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    assert [record.prompt for record in read(PROMPTS, str(tmp_path / "prompts.txt"))] == [text.split("\n")[0], "six", "seven"]
    (tmp_path / "v.csv").write_bytes(f"prompt,n\n{text.split(chr(10))[0]},1\n".encode())
    assert [row.value["prompt"] for row in open_rows(str(tmp_path / "v.csv"))] == [text.split("\n")[0]]


def test_prompts_are_read_in_any_encoding_and_case_of_the_suffix(tmp_path):
    for name, data in {
        "P.TXT": "ein Fuchs\u2019\nüber".encode("cp1252"),
        "p.txt.gz": gzip.compress("ein Fuchs\u2019\nüber".encode()),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert detect(str(tmp_path / name)) == "prompts"
        assert [record.prompt for record in read(PROMPTS, str(tmp_path / name))] == ["ein Fuchs\u2019", "über"]


def test_a_gzip_bomb_is_refused_without_being_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("diffalign.data.readers.text_lines.LEAST", 10_000)
    (tmp_path / "v.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 200_000))
    with pytest.raises(RecordError, match=r"v\.jsonl\.gz: unpacks to more than"):
        list(open_rows(str(tmp_path / "v.jsonl.gz")))


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffalign.data.readers.text_lines.LINE_LIMIT", 1000)
    (tmp_path / "v.jsonl").write_text("x" * 5000)
    with pytest.raises(RecordError, match=r"v\.jsonl line 1: more than 1000 characters"):
        list(text_lines(tmp_path / "v.jsonl"))


def test_a_table_of_very_many_columns_is_refused_in_a_short_message(tmp_path):
    (tmp_path / "v.csv").write_text(",".join(f"column {i}" for i in range(40_000)) + "\n" + "1," * 39_999 + "1\n")
    with pytest.raises(RecordError) as error:
        detect(str(tmp_path / "v.csv"))
    assert len(str(error.value)) < 5000
    assert "v.csv" in str(error.value)


def test_a_column_that_python_cannot_hold_costs_no_rows(tmp_path):
    times = pa.array([2**62], pa.int64()).cast(pa.timestamp("s"))
    with pa.OSFile(str(tmp_path / "v.arrow"), "wb") as sink:
        rows = pa.table({"prompt": ["a star"], "created_at": times})
        with pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
    assert [row.value["prompt"] for row in open_rows(str(tmp_path / "v.arrow"))] == ["a star"]


def test_a_header_that_is_data_and_an_address_are_answered_with_what_to_do(tmp_path):
    put(tmp_path, {"v.csv": "a star,0.jpg,1.jpg,1\na cube,0.jpg,1.jpg,0\n"})
    with pytest.raises(RecordError, match=r"v\.csv: no known layout.*first line seems to be data"):
        detect(str(tmp_path / "v.csv"))
    with pytest.raises(RecordError, match=r"https://example.com/v.csv: .*download"):
        detect("https://example.com/v.csv")
