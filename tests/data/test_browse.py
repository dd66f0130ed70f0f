"""Records are found by what stands beside their pictures, and corrections never touch the table."""

from __future__ import annotations

import json

import pytest

from diffalign.cli.main import main
from diffalign.core.errors import RecordError
from diffalign.data.browse import Filter, TableRows, sheet
from diffalign.data.corrections import Corrections
from diffalign.data.records import Candidate, Record
from diffalign.data.table import CHUNK, read_table, write_table


def record(number: int, **facts) -> Record:
    texts = tuple(Candidate(text=f"{side} {number}", model=f"m{number % 2}", scores={"taste": number + side}) for side in (0, 0.5))
    facts = {"prob": 1.0, "user": f"u{number % 3}"} | facts
    return Record(f"r{number}", f"Prompt {number}", texts, source=f"row {number}", **facts)


@pytest.fixture
def rows(tmp_path):
    ranked = tuple(Candidate(text=str(rank), rank=rank) for rank in (2, 1, 3))
    lone = Record("lone", "one text", (Candidate(text="a"),), prob=None)
    records = [record(n) for n in range(CHUNK)] + [record(CHUNK, prob=0.5), record(CHUNK + 1, prob=0.2)]
    return TableRows(write_table(tmp_path / "t", [*records, Record("ranked", "of three", ranked), lone]))


def test_records_of_any_chunk_are_found_by_each_of_their_facts(rows):
    for wanted, expected in (
        (Filter(user="u1", prompt="PROMPT 4"), ["r4", "r40", "r43", "r46", "r49"]),
        (Filter(label="tie"), ["r64"]),
        (Filter(label="right"), ["r65"]),
        (Filter(label="ranking"), ["ranked"]),
        (Filter(label="unlabelled"), ["lone"]),
        (Filter(model="m1", score="taste", low=61), ["r61", "r63", "r65"]),
        (Filter(score="taste", high=0.0), ["r0"]),
        (Filter(score="taste", low=0.4, high=0.6), ["r0"]),
        (Filter(score="other"), []),
    ):
        entries, total = sheet(rows.entries(), wanted, 1, 100)
        assert ([entry.id for entry in entries], total) == (expected, len(expected)), wanted


def test_a_sheet_holds_its_part_and_a_record_is_read_by_its_place(rows):
    entries, total = sheet(rows.entries(), Filter(), 7, 10)
    assert ([entry.id for entry in entries], total) == (["r60", "r61", "r62", "r63", "r64", "r65", "ranked", "lone"], CHUNK + 4)
    assert [rows.record(entry).id for entry in entries] == [entry.id for entry in entries]
    assert sheet(rows.entries(), Filter(), 8, 10) == ([], CHUNK + 4)


def test_the_last_correction_counts_and_all_are_kept(tmp_path):
    corrections = Corrections(tmp_path / "deep" / "c.jsonl")
    assert corrections.labels() == {}
    for label in ("right", "tie", None):
        corrections.add("r1", "ada", label)
    corrections.add("r2", "ada", "right")
    assert corrections.labels() == {"r1": None, "r2": "right"}
    assert [json.loads(line)["label"] for line in corrections.file.read_text().splitlines()] == ["right", "tie", None, "right"]
    records = [record(n) for n in range(4)]
    assert [(one.id, one.prob) for one in corrections.apply(records)] == [("r0", 1.0), ("r2", 0.0), ("r3", 1.0)]
    with pytest.raises(RecordError, match="boss"):
        corrections.add("r1", "ada", "boss")


def test_a_line_that_is_no_correction_and_a_label_for_no_pair_are_named(tmp_path):
    file = tmp_path / "c.jsonl"
    for line in ("no json", "[]", '{"record": "r1"}', '{"record": "r1", "label": "up"}', '{"record": "r1", "label": ["left"]}'):
        file.write_text('{"record": "r0", "label": "tie"}\n' + line + "\n")
        with pytest.raises(RecordError, match=r"c\.jsonl line 2"):
            Corrections(file).labels()
    file.write_text('{"record": "lone", "label": "tie"}\n')
    with pytest.raises(RecordError, match="row 9"):
        list(Corrections(file).apply([Record("lone", "p", (Candidate(text="a"),), source="row 9")]))


def test_data_correct_writes_another_table_and_leaves_the_first(rows, tmp_path, capsys):
    file, path = tmp_path / "c.jsonl", tmp_path / "t"
    flags = ["data", "correct", "--dataset_name", str(path), "--corrections", str(file), "--output_dir", str(tmp_path / "new")]
    assert main(flags) == 2
    file.write_text('{"record": "r1", "label": "right"}\n{"record": "r2", "label": null}\n')
    before = read_table(path).fingerprint
    assert main(flags) == 0
    assert "1 labels corrected, 1 removed" in capsys.readouterr().out
    probs = {one.id: one.prob for one in read_table(tmp_path / "new")}
    assert (probs["r0"], probs["r1"], "r2" in probs, len(probs)) == (1.0, 0.0, False, CHUNK + 3)
    assert read_table(path).fingerprint == before
    file.write_text('{"record": "nobody", "label": "right"}\n')
    assert main([*flags, "--overwrite"]) == 2
    assert "nobody" in capsys.readouterr().err
