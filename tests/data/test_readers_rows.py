"""How files become rows, which reader they are for, and the published image datasets as they lie on disk."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS, open_rows, read
from diffalign.data.readers import detect as module
from diffalign.data.readers.base import Reader
from diffalign.data.readers.detect import detect
from diffalign.data.table import write_table
from diffalign.data.transforms import apply, pairs
from tests.data.image_files import JPEGS, put

REAL = json.loads((Path(__file__).parent / "fixtures" / "imagereward_rankings.json").read_text())["rows"]


def records(name: str, source: Path, *, rejected: list[dict[str, str]] | None = None) -> list[Any]:
    return list(read(READERS[name], str(source), rejected=rejected))


@pytest.fixture(scope="module")
def imagereward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real test set of ImageReward: its ids and rankings, with other prompts and images."""
    rows = [
        {"id": key, "prompt": f"prompt {number}", "generations": [f"{key}/{i}.jpg" for i in range(len(ranking))], "ranking": ranking}
        for key, number, ranking in REAL
    ]
    images = {name: index % 6 for row in rows for index, name in enumerate(row["generations"])}
    return put(tmp_path_factory.mktemp("imagereward"), {"test.json": json.dumps(rows), **images})


def test_the_real_rankings_of_imagereward_have_the_published_counts(imagereward: Path) -> None:
    found = records("imagereward", imagereward / "test.json")
    labels = Counter(pair.prob for pair in apply(found, [pairs]))
    assert len(found) == 466
    assert sum(len(record.candidates) for record in found) == 2720
    assert labels == {1.0: 6399, 0.5: 831}
    assert len({record.prompt for record in found}) == 463
    assert [[int(candidate.rank) for candidate in record.candidates] for record in found] == [ranking for _, _, ranking in REAL]


def test_a_real_ranking_without_its_images_is_listed_and_not_lost(imagereward: Path, tmp_path: Path) -> None:
    rows = json.loads((imagereward / "test.json").read_text())[:3]
    put(tmp_path, {"test.json": json.dumps(rows), **dict.fromkeys(rows[1]["generations"], 0)})
    rejected: list[dict[str, str]] = []
    table = write_table(tmp_path / "table", read(READERS["imagereward"], str(tmp_path / "test.json"), rejected=rejected), rejected=rejected)
    assert [record.id for record in table] == [rows[1]["id"]]
    assert [row["where"] for row in table.manifest["rejected"]] == [f"{tmp_path}/test.json row {number}" for number in (0, 2)]


def test_the_table_of_imagereward_joins_its_rows_and_keeps_the_ratings(tmp_path: Path) -> None:
    ratings = {"overall_rating": 7, "image_text_alignment_rating": 6, "fidelity_rating": 5}
    row = {"prompt": "a red ball", "rank": 1, "image_amount_in_total": 2, **ratings}
    images = [{"bytes": data, "path": None} for data in JPEGS]
    rows = [row | {"image": image, "prompt_id": f"p{number // 3}"} for number, image in enumerate(images)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    found = records("imagereward", tmp_path / "v.parquet")
    assert [(record.id, len(record.candidates)) for record in found] == [("p0", 3), ("p1", 3)]
    assert [candidate.image for record in found for candidate in record.candidates] == JPEGS
    assert found[0].candidates[0].scores == ratings


def test_an_image_of_imagereward_is_found_from_the_root_of_the_dataset(tmp_path: Path) -> None:
    rows = [{"image_path": f"images/train/{i}.jpg", "prompt_id": "p", "prompt": "a red ball", "rank": i} for i in (1, 2)]
    put(tmp_path, {"metadata-train.json": json.dumps(rows), "images/train/1.jpg": 1, "images/train/2.jpg": 2})
    (record,) = records("imagereward", tmp_path / "metadata-train.json")
    assert [candidate.image for candidate in record.candidates] == JPEGS[1:3]


def test_the_images_of_hpdv2_are_found_in_its_subfolders(tmp_path: Path) -> None:
    pair = {"prompt": "a red ball", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]}
    ranking = {"prompt": "a blue cube", "image_path": ["2.jpg", "3.jpg", "4.jpg"], "rank": [3, 1, 2], "raw_annotations": []}
    files = {"train/0.jpg": 0, "train/1.jpg": 1, "test/2.jpg": 2, "test/3.jpg": 3, "4.jpg": 4}
    put(tmp_path, {"train.json": json.dumps([pair]), "test.json": json.dumps([ranking]), **files})
    ranked, labelled = records("hpdv2", tmp_path)
    assert [candidate.image for candidate in ranked.candidates + labelled.candidates] == [*JPEGS[2:5], *JPEGS[:2]]
    assert [pair.candidates[0].image for pair in pairs(ranked, how="adjacent")] == [JPEGS[3], JPEGS[4]]
    (tmp_path / "test/3.jpg").unlink()
    with pytest.raises(
        RecordError, match=r"test\.json row 0: column `file_path`: there is no image .*/3\.jpg or .*train/3\.jpg or .*test/3\.jpg"
    ):
        records("hpdv2", tmp_path)


def test_open_image_preferences_is_read_from_parquet_with_its_models(tmp_path: Path) -> None:
    structs = [{"bytes": data, "path": "x.jpg"} for data in JPEGS[:2]]
    row = {"prompt": "a red ball", "chosen": structs[0], "rejected": structs[1], "chosen_model": "flux", "rejected_model": "sd35"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train-00000-of-00001.parquet")
    (record,) = records(detect(str(tmp_path)), tmp_path)
    assert [(candidate.image, candidate.model) for candidate in record.candidates] == [(JPEGS[0], "flux"), (JPEGS[1], "sd35")]
    assert (detect(str(tmp_path)), record.prob) == ("open_image_preferences", 1.0)


def test_the_neutral_columns_are_read_from_a_spreadsheet(tmp_path: Path) -> None:
    head = "\ufeffprompt,image_0,image_1,label_0,user_id,weight,model_0\n"
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1, "v.csv": head + '"a ball, red",0.jpg,1.jpg,0.25,,2,sd15\na cube,1.jpg,0.jpg, Tie ,7,,\n'})
    first, second = records(detect(str(tmp_path / "v.csv")), tmp_path / "v.csv")
    assert (first.prompt, first.prob, first.user, first.meta, first.candidates[0].model) == (
        "a ball, red",
        0.25,
        None,
        {"weight": "2.0"},
        "sd15",
    )
    assert (second.prompt, second.prob, second.user, second.meta, second.candidates[0].model) == ("a cube", 0.5, "7", {}, None)


def test_a_line_with_more_fields_than_the_header_is_named_and_passed_over(tmp_path: Path) -> None:
    lines = "prompt,image_0,image_1,label_0\na ball, red,0.jpg,1.jpg,1\na cube,0.jpg,1.jpg,1\n"
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1, "v.csv": lines})
    with pytest.raises(RecordError, match=r"v\.csv row 0: 1 fields more than the header names; expected quotes"):
        records("columns", tmp_path / "v.csv")
    rejected: list[dict[str, str]] = []
    assert [record.prompt for record in records("columns", tmp_path / "v.csv", rejected=rejected)] == ["a cube"]
    assert len(rejected) == 1


@pytest.mark.parametrize("line", ['{"prompt": "a ba', "[1, 2]", '"text"'])
def test_a_line_that_is_no_object_is_named_and_passed_over(line: str, tmp_path: Path) -> None:
    good = json.dumps({"prompt": "a cube", "image_0": "0.jpg", "image_1": "1.jpg", "label_0": 1})
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1, "v.jsonl": f"{good}\n\n{line}\n{good}\n"})
    rejected: list[dict[str, str]] = []
    assert [record.id for record in records("columns", tmp_path / "v.jsonl", rejected=rejected)] == ["v.jsonl:0", "v.jsonl:2"]
    assert [row["where"] for row in rejected] == [f"{tmp_path}/v.jsonl row 1"]
    assert "expected an object with named columns" in rejected[0]["reason"]


@pytest.mark.parametrize("suffix", ["json", "parquet", "arrow"])
def test_half_a_file_is_refused_by_name(suffix: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"prompt": "x" * 1000}])
    pq.write_table(table, tmp_path / "v.parquet")
    with pa.OSFile(str(tmp_path / "v.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "v.json").write_text(json.dumps(table.to_pylist()))
    path = tmp_path / f"v.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RecordError, match=rf"v\.{suffix}: cannot be read as \.{suffix}"):
        list(open_rows(str(path)))


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])
def test_an_arrow_file_keeps_every_row_of_a_large_batch_in_order(new: Any, tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_pydict({"number": list(range(150))})
    with pa.OSFile(str(tmp_path / "v.arrow"), "wb") as sink, new(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    assert [row.value["number"] for row in open_rows(str(tmp_path / "v.arrow"))] == [*range(150), *range(150)]


def test_only_the_files_that_hold_no_rows_are_left_out_of_a_folder(tmp_path: Path) -> None:
    names = ["dataset_info.json", "state.json", "cache-1f.arrow", ".cache/x.json", "statements.jsonl", "state_votes.csv"]
    put(tmp_path, dict.fromkeys(names, "number\n1\n") | {"statements.jsonl": '{"number": 1}'})
    assert [row.id for row in open_rows(str(tmp_path))] == ["state_votes.csv:0", "statements.jsonl:0"]


def test_an_unknown_layout_is_refused_with_what_it_has_and_what_is_known(tmp_path: Path) -> None:
    put(tmp_path, {"v.csv": "picture,words\n1,2\n"})
    with pytest.raises(RecordError, match=r"v\.csv: no known layout\. Found columns picture, words\.") as error:
        detect(str(tmp_path / "v.csv"))
    assert all(f"\n  {name}: " in str(error.value) for name in READERS)


def test_a_folder_without_rows_or_pairs_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": 0})
    with pytest.raises(RecordError, match=r"(?s)no dataset file; .*no image pairs; .*\n  pickapic: Pick-a-Pic"):
        detect(str(tmp_path))


def test_a_source_that_does_not_open_is_refused_with_the_reason_alone(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nothing\.csv: there is no such file or folder; expected [^\n]*$"):
        detect(str(tmp_path / "nothing.csv"))


def test_a_first_row_that_cannot_be_read_is_the_reason_given(tmp_path: Path) -> None:
    put(tmp_path, {"v.jsonl": "{half"})
    with pytest.raises(RecordError, match=r"Found .*v\.jsonl row 0: found a bad line: not JSON"):
        detect(str(tmp_path / "v.jsonl"))


@pytest.mark.parametrize(("value", "expected"), [("0.jpg", "columns"), ({"bytes": None, "path": "0.jpg"}, "columns"), ("a text", None)])
def test_chosen_and_rejected_are_images_only_where_they_look_like_images(value: Any, expected: str | None, tmp_path: Path) -> None:
    put(tmp_path, {"v.json": json.dumps([{"prompt": "x", "chosen": value, "rejected": value}])})
    try:
        found = detect(str(tmp_path / "v.json"))
    except RecordError:
        found = None
    assert (found == "columns") is (expected == "columns")


def test_two_readers_that_fit_equally_well_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {name: Reader(open_rows, READERS["columns"].parse, ("words",)) for name in ("one", "two")}
    monkeypatch.setattr(module, "READERS", twins)
    put(tmp_path, {"v.csv": "words\nx\n"})
    with pytest.raises(RecordError, match=r"v\.csv: one and two fit equally well"):
        detect(str(tmp_path / "v.csv"))


def test_the_rows_of_a_file_are_numbered_from_zero(tmp_path: Path) -> None:
    put(tmp_path, {"v.csv": "number\n5\n6\n"})
    rows = list(itertools.islice(open_rows(str(tmp_path / "v.csv")), 2))
    assert [(row.id, row.where) for row in rows] == [(f"v.csv:{i}", f"{tmp_path}/v.csv row {i}") for i in (0, 1)]
