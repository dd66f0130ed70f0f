"""Importing goes on after a kill, gives one table whatever the number of processes, and reads datasets of `datasets`."""

from __future__ import annotations

import itertools
import json
import tarfile
from io import BytesIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.core.errors import ConfigError, RecordError, TableError
from diffalign.core.locks import locked
from diffalign.data.importing import import_dataset
from diffalign.data.readers import open_rows
from diffalign.data.readers.base import parse_rows
from diffalign.data.readers.parsing import parsed
from diffalign.data.readers.pieces import ROWS as PIECE
from diffalign.data.readers.pieces import pieces
from diffalign.data.table import CHUNK, MANIFEST, ROWS
from tests.data.image_files import JPEGS
from tests.killing import tree


def text_row(number):
    return {"prompt": f"word {number % 7}", "chosen": f"yes {number}", "rejected": None if number % 97 == 5 else f"no {number}"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a folder of a parquet file in row groups, whose row groups make two pieces, and of JSON lines, which make two as well."""
    folder = tmp_path_factory.mktemp("source")
    pq.write_table(pa.Table.from_pylist([text_row(i) for i in range(PIECE + 100)]), folder / "a.parquet", row_group_size=100)
    (folder / "b.jsonl").write_text("".join(json.dumps(text_row(i)) + "\n" for i in range(PIECE + 50)))
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return import_dataset(str(source), tmp_path_factory.mktemp("whole") / "table", skip_bad=True)


def test_pieces_hold_all_rows_in_order_and_can_be_begun_anywhere(source):
    rows = [(row.id, dict(row.value)) for row in open_rows(str(source))]
    found = list(pieces(open_rows, str(source)))
    assert [len(list(piece.rows())) for piece in found] == [300, 56, PIECE, 50]  # three row groups, and what is left of the file
    assert [(row.id, dict(row.value)) for piece in found for row in piece.rows()] == rows
    for first in range(5):
        assert [row.id for piece in pieces(open_rows, str(source), None, first) for row in piece.rows()] == [
            row.id for piece in found[first:] for row in piece.rows()
        ]


class Killed(BaseException):
    """Ends an import without a word."""


@pytest.mark.parametrize("after", [10, CHUNK + 1, 4 * CHUNK + 300])
def test_an_import_that_was_killed_goes_on_and_ends_in_the_same_table(source, whole, tmp_path, monkeypatch, after):
    taken = []

    def counting(reader, rows, rejected=None):
        for record in parse_rows(reader, rows, rejected):
            taken.append(record.id)
            if len(taken) == after:
                raise Killed
            yield record

    monkeypatch.setattr("diffalign.data.readers.parsing.parse_rows", counting)
    with pytest.raises(Killed):
        import_dataset(str(source), tmp_path / "table", skip_bad=True)
    assert not (tmp_path / "table").exists()
    assert (tmp_path / ".table.import").exists() == (after > CHUNK)
    begun = len(taken)
    table = import_dataset(str(source), tmp_path / "table", skip_bad=True)
    assert tree(table.path) == tree(whole.path)
    assert len(taken) - begun <= len(whole) - after + CHUNK + 300, "more is parsed again than the last batch and a piece"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_what_an_import_of_another_dataset_has_left_is_not_taken(source, whole, tmp_path):
    left = tmp_path / ".table.import"
    left.mkdir()
    for name in (ROWS, MANIFEST):
        (left / name).write_bytes((whole.path / name).read_bytes())
    (left / "import.json").write_text('{"version": 1, "dataset_name": "another"}')
    table = import_dataset(str(source), tmp_path / "table", skip_bad=True, limit=CHUNK)
    assert len(table) == CHUNK
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_two_imports_to_one_path_are_refused(source, tmp_path):
    with locked(tmp_path / ".table.import"), pytest.raises(ConfigError, match="being written by process"):
        import_dataset(str(source), tmp_path / "table")


def test_a_full_disk_is_one_sentence(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffalign.data.unfinished.write_rows", full)
    with pytest.raises(TableError, match="table: cannot be written"):
        import_dataset(str(source), tmp_path / "table", skip_bad=True)


def test_several_processes_parse_what_one_does(source):
    one, two = (list(parsed(pieces(open_rows, str(source)), "trl", skip_bad=True, processes=n)) for n in (1, 2))
    assert [list(part.records) for part in one] == [list(part.records) for part in two]
    assert [part.rejected for part in one] == [part.rejected for part in two]
    assert sum(len(part.rejected) for part in two) == 8


def test_the_first_bad_row_is_named_whoever_reads_it(source):
    first = next(parsed(pieces(open_rows, str(source)), "trl", skip_bad=False))
    with pytest.raises(RecordError, match=r"a\.parquet row 5"):
        list(first.records)
    with pytest.raises(ConfigError, match="`num_proc` is 0"):
        import_dataset(str(source), source.parent / "t", num_proc=0)


@pytest.mark.parametrize("streamed", [True, False])
def test_datasets_are_read_loaded_and_streamed(tmp_path, streamed):
    rows = [text_row(i) for i in range(3)]
    loaded = datasets.Dataset.from_list(rows)
    table = import_dataset(loaded.to_iterable_dataset() if streamed else loaded, tmp_path / "table")
    assert [(record.prompt, record.candidates[0].text) for record in table] == [(row["prompt"], row["chosen"]) for row in rows]
    assert table[2].source.endswith("row 2")
    assert (table.manifest["stamp"] is None) == streamed


def test_a_stream_is_begun_at_any_row():
    stream = datasets.Dataset.from_list([text_row(i) for i in range(PIECE + 3)]).to_iterable_dataset()
    (last,) = pieces(open_rows, stream, None, 1)
    assert [row.id.rpartition(":")[2] for row in last.rows()] == ["256", "257", "258"]


def test_pictures_of_a_dataset_stay_as_they_are_encoded(tmp_path):
    others = {"prompt": datasets.Value("string"), "label_0": datasets.Value("float32")}
    features = datasets.Features({"image_0": datasets.Image(), "image_1": datasets.Image()} | others)
    row = {"prompt": "a star", "image_0": {"bytes": JPEGS[0]}, "image_1": {"bytes": JPEGS[1]}, "label_0": 1.0}
    table = import_dataset(datasets.Dataset.from_list([row], features=features).to_iterable_dataset(), tmp_path / "table")
    assert table[0].candidates[0].image == JPEGS[0]


def test_shards_of_a_folder_are_one_dataset(tmp_path):
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "shards" / f"{shard:05d}.tar", "w") as archive:
            for number, name in itertools.product(range(2), ("0.jpg", "1.jpg", "json")):
                picture = JPEGS[2 * shard + number + (name == "1.jpg")]
                content = json.dumps({"prompt": "a star", "label_0": number}).encode() if name == "json" else picture
                member = tarfile.TarInfo(f"{number:04d}.{name}")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    ids = ["00000.tar:0", "00000.tar:1", "00001.tar:0", "00001.tar:1"]
    for number, name in enumerate(("shards", "shards/*.tar", "shards/{00000..00001}.tar", "shard?/0*{0000..0001}.tar")):
        table = import_dataset(str(tmp_path / name), tmp_path / f"table-{number}")
        assert [record.id for record in table] == ids, name
        assert table.manifest["stamp"] is not None
    with pytest.raises(RecordError, match=r"there is no .*00002\.tar"):
        import_dataset(str(tmp_path / "shards" / "{00000..00002}.tar"), tmp_path / "more")
