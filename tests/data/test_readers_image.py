"""The image readers: each layout read exactly, and each kind of bad row named by file and number, and passed over when asked.

`fixtures/image_layouts.json` holds three records a layout; the file `i.jpg` is image i of `image_files`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
from diffalign.data.table import write_table
from tests.data.image_files import JPEGS, put

if TYPE_CHECKING:
    from diffalign.data.records import Record

FIXTURES = Path(__file__).parent / "fixtures"
LAYOUTS: dict[str, dict[str, Any]] = json.loads((FIXTURES / "image_layouts.json").read_text())
TABLES = [name for name, layout in LAYOUTS.items() if "rows" in layout]
REQUIRED = [(name, column) for name in TABLES for column in LAYOUTS[name]["required"]]


@dataclass(frozen=True)
class Source:
    """A layout on disk: what to read, the image to damage (of the second record), and how messages call that record."""

    path: Path
    image: Path
    where: str


def lay(name: str, folder: Path, *, column: str = "", value: Any = None) -> Source:
    """Write layout `name`; with `column`, the second record has `value` there, or lacks it where `value` is None."""
    layout = LAYOUTS[name]
    if "files" in layout:
        put(folder, layout["files"])
        return Source(folder, folder / layout["bad"], str(folder / layout["bad"]))
    number = layout.get("row", 1)
    rows = [dict(row) for row in layout["rows"]]
    if column:
        rows[number] = {key: content for key, content in rows[number].items() if key != column}
        rows[number] |= {} if value is None else {column: value}
    put(folder, {"votes.json": json.dumps(rows), **{f"{index}.jpg": index for index in range(6)}})
    return Source(folder / "votes.json", folder / "2.jpg", f"{folder / 'votes.json'} row {number}")


def facts(record: Record) -> list[Any]:
    return [record.prompt, record.prob, [candidate.rank for candidate in record.candidates], record.user]


def everything(name: str, source: Path | str, *, split: str | None = None) -> list[Record]:
    return list(read(READERS[name], str(source), split=split))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_reader_gives_exactly_the_prompts_labels_ranks_users_and_images_of_its_fixture(name: str, tmp_path: Path) -> None:
    records = everything(LAYOUTS[name]["reader"], lay(name, tmp_path).path)
    assert [facts(record) for record in records] == LAYOUTS[name]["expected"]
    assert [candidate.image for record in records for candidate in record.candidates] == JPEGS
    assert len({record.id for record in records}) == 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_by_its_first_row(name: str, tmp_path: Path) -> None:
    assert detect(str(lay(name, tmp_path).path)) == LAYOUTS[name]["reader"]


def test_every_image_reader_has_a_layout() -> None:
    assert {layout["reader"] for layout in LAYOUTS.values()} == {
        "columns",
        "folders",
        "hpdv2",
        "imagereward",
        "open_image_preferences",
        "pickapic",
    }


def assert_passed_over(name: str, source: Source, *words: str) -> None:
    """The second record of three is refused with a message that has all `words`, and with `rejected` it alone is left out."""
    reader = READERS[LAYOUTS[name]["reader"]]
    with pytest.raises(RecordError) as error:
        list(read(reader, str(source.path)))
    for word in (source.where, *words):
        assert word in str(error.value)
    rejected: list[dict[str, str]] = []
    kept = [facts(record) for record in read(reader, str(source.path), rejected=rejected)]
    assert kept == LAYOUTS[name]["expected"][::2]
    assert len(rejected) == 1
    assert all(word in rejected[0]["reason"] for word in (source.where, *words))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("data", [b"no image at all", JPEGS[2][:300], b""], ids=["another file", "truncated", "empty"])
def test_an_image_that_does_not_decode_is_named_and_passed_over(name: str, data: bytes, tmp_path: Path) -> None:
    source = lay(name, tmp_path)
    source.image.write_bytes(data)
    assert_passed_over(name, source, "does not decode")


@pytest.mark.parametrize("name", TABLES)
def test_an_image_that_is_not_there_is_named_and_passed_over(name: str, tmp_path: Path) -> None:
    source = lay(name, tmp_path)
    source.image.unlink()
    assert_passed_over(name, source, f"there is no image {source.image}")


@pytest.mark.parametrize(("name", "column"), REQUIRED)
def test_a_missing_column_is_named_and_passed_over(name: str, column: str, tmp_path: Path) -> None:
    assert_passed_over(name, lay(name, tmp_path, column=column), "column" if "table" in name else "no column")


@pytest.mark.parametrize(("name", "column"), REQUIRED)
def test_a_column_of_another_type_is_named_and_passed_over(name: str, column: str, tmp_path: Path) -> None:
    assert_passed_over(name, lay(name, tmp_path, column=column, value={"a": 1}), "expected")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_table_that_fails_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    source = lay(name, tmp_path / "data")
    source.image.write_bytes(b"")
    with pytest.raises(RecordError):
        write_table(tmp_path / "tables" / "t", read(READERS[LAYOUTS[name]["reader"]], str(source.path)))
    assert list((tmp_path / "tables").iterdir()) == []


def test_a_table_that_fails_after_its_first_batches_leaves_nothing_behind(tmp_path: Path) -> None:
    lines = [{"prompt": str(i), "image_0": "0.jpg", "image_1": "1.jpg", "label_0": 1} for i in range(200)] + [{"prompt": "x"}]
    put(tmp_path / "data", {"0.jpg": 0, "1.jpg": 1, "votes.jsonl": "\n".join(map(json.dumps, lines))})
    with pytest.raises(RecordError, match=r"votes\.jsonl row 200: no column `image_0`"):
        write_table(tmp_path / "tables" / "t", read(READERS["columns"], str(tmp_path / "data/votes.jsonl")))
    assert list((tmp_path / "tables").iterdir()) == []


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "arrow"])
def test_an_empty_file_is_refused_by_name(name: str, suffix: str, tmp_path: Path) -> None:
    put(tmp_path, {f"votes.{suffix}": ""})
    with pytest.raises(RecordError, match=rf"votes\.{suffix}|{tmp_path}.*expected"):
        everything(name, tmp_path / f"votes.{suffix}")
    with pytest.raises(RecordError, match=rf"votes\.{suffix}: the file is empty"):
        detect(str(tmp_path / f"votes.{suffix}"))


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_source_that_is_not_there_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=f"{tmp_path}/nothing.*expected"):
        everything(name, tmp_path / "nothing")


def test_records_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    source = lay("columns", tmp_path)
    records = read(READERS["columns"], str(source.path))
    assert next(records).prompt == "a red ball"
    source.image.write_bytes(b"")
    with pytest.raises(RecordError, match="row 1"):
        next(records)


def rows_of(name: str, **changes: Any) -> list[dict[str, Any]]:
    """Return the rows of a layout with image bytes in the place of names, and `changes` in the first."""
    rows = [{k: JPEGS[int(v[0])] if str(v).endswith(".jpg") else v for k, v in row.items()} for row in LAYOUTS[name]["rows"]]
    return [{**rows[0], **changes}, *rows[1:]]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_pickapic_is_read_from_parquet_with_its_junk_columns(version: str, tmp_path: Path) -> None:
    junk = {"__index_level_0__": 3, "are_different": True, "has_label": True, "num_example_per_prompt": 4, "image_0_uid": "u0"}
    scores = {"ps_score_0": 21.5, "ps_score_1": 20.0} if version == "v2" else {}
    pq.write_table(pa.Table.from_pylist([row | junk | scores for row in rows_of("pickapic")]), tmp_path / "train-00000-of-00001.parquet")
    records = everything("pickapic", tmp_path, split="train")
    assert [facts(record) for record in records] == LAYOUTS["pickapic"]["expected"]
    assert [candidate.image for record in records for candidate in record.candidates] == JPEGS
    assert records[0].candidates[0].uid == "u0"
    assert records[0].meta == {"num_example_per_prompt": "4"}
    assert records[0].candidates[0].scores == ({"pickscore": 21.5} if version == "v2" else {})
    assert detect(str(tmp_path)) == "pickapic"


def test_pickapic_is_read_from_a_save_to_disk_folder_by_split_with_image_structs(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"caption": row["caption"], "label_0": float(row["label_0"])} for row in rows_of("pickapic")]
    for number, row in enumerate(rows):
        row |= {f"jpg_{side}": {"bytes": JPEGS[2 * number + side], "path": None} for side in (0, 1)}
    image = datasets.Image(decode=False)
    features = datasets.Features(
        {"caption": datasets.Value("string"), "label_0": datasets.Value("float64"), "jpg_0": image, "jpg_1": image}
    )
    splits = {"train": rows[:2], "validation": rows[2:]}
    parts = {split: datasets.Dataset.from_list(part, features=features) for split, part in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert [record.prob for record in everything("pickapic", tmp_path / "saved", split="train")] == [1.0, 0.5]
    (record,) = everything("pickapic", tmp_path / "saved", split="validation")
    assert [candidate.image for candidate in record.candidates] == JPEGS[4:]
    assert len(everything("pickapic", tmp_path / "saved")) == 3
    with pytest.raises(RecordError, match="no dataset file of split `test`"):
        everything("pickapic", tmp_path / "saved", split="test")


def test_a_tie_in_pickapic_keeps_its_half_label(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows_of("pickapic", label_0=0.5, label_1=0.5)), tmp_path / "v.parquet")
    assert everything("pickapic", tmp_path / "v.parquet")[0].prob == 0.5


def test_a_pair_of_pickapic_without_a_label_has_none(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows_of("pickapic", label_0=0.0, label_1=0.0, has_label=False)), tmp_path / "v.parquet")
    assert everything("pickapic", tmp_path / "v.parquet")[0].prob is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pickapic", {"label_0": 0.3}, "`label_0` is 0.3; expected 0, 0.5 or 1"),
        ("pickapic", {"label_0": 0.0, "label_1": 0.0}, "expected a sum of 1"),
        ("hpdv2_pairs", {"human_preference": [1, 1]}, r"`human_preference` is \[1, 1\]; expected \[1, 0\] or \[0, 1\]"),
        ("hpdv2_pairs", {"human_preference": [1]}, "has 1 entries; expected 2"),
        ("hpdv2_rankings", {"rank": [1, 2, 3]}, "`rank` has 3 entries; expected 2"),
        ("imagereward", {"ranking": [1, None]}, "`ranking` holds NoneType None; expected a number"),
        ("imagereward_table", {"prompt": "another"}, "two prompts under one prompt_id; expected the same `prompt`"),
        ("columns", {"label_0": 1.5}, r"`label_0` is 1.5; expected a number in \[0, 1\] or `tie`"),
        ("columns", {"label_0": 0.5, "label_1": 0.6}, "expected a sum of 1"),
        ("columns", {"weight": "much"}, "`weight` holds str 'much'; expected a number"),
        ("columns", {"image_0": "so long a text " * 50}, "cannot be read"),
    ],
)
def test_a_value_out_of_place_is_refused_with_what_was_expected(name: str, changes: Any, message: str, tmp_path: Path) -> None:
    source = lay(name, tmp_path)
    rows = json.loads(source.path.read_text())
    source.path.write_text(json.dumps([{**rows[0], **changes}]) if "table" not in name else json.dumps([{**rows[0], **changes}, rows[1]]))
    with pytest.raises(RecordError, match=rf"votes\.json row 0.*{message}"):
        everything(LAYOUTS[name]["reader"], source.path)
