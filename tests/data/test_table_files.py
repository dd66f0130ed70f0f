"""Tables on disk: there whole or not at all, and refused when damaged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from diffalign.core.errors import TableError
from diffalign.data.table import CHUNK, MANIFEST, ROWS, Table, is_table, read_table, write_table
from tests.data.text_pairs import names, pairs


def failing(count: int):
    yield from pairs(count)
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize("count", [0, 3, CHUNK + 3])
def test_an_iterator_that_fails_leaves_nothing_behind(tmp_path, count):
    with pytest.raises(RuntimeError, match="the disk is gone"):
        write_table(tmp_path / "deep" / "t", failing(count))
    assert names(tmp_path / "deep") == []


def test_a_table_survives_a_failed_overwrite(tmp_path):
    table = write_table(tmp_path / "t", pairs(5))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        write_table(table.path, failing(CHUNK + 3), overwrite=True)
    assert list(read_table(table.path)) == pairs(5)
    assert names(tmp_path) == ["t"]


def test_a_table_survives_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    table = write_table(tmp_path / "t", pairs(5))
    move = Path.replace

    def refuse(self, target):
        if self.suffix == ".tmp":
            raise OSError("no space left")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        write_table(table.path, pairs(2), overwrite=True)
    assert list(read_table(table.path)) == pairs(5)
    assert names(tmp_path) == ["t"]


def test_a_table_may_be_overwritten_by_what_is_made_of_it(tmp_path):
    table = write_table(tmp_path / "t", pairs(2 * CHUNK))
    new = write_table(table.path, (replace(record, prob=0.0) for record in table), overwrite=True)
    assert [record.prob for record in new] == [0.0] * (2 * CHUNK)
    assert names(tmp_path) == ["t"]


def test_a_link_to_a_table_goes_on_pointing_to_it(tmp_path):
    write_table(tmp_path / "real", pairs(2))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_table(tmp_path / "link", pairs(3), overwrite=True)
    assert len(read_table(tmp_path / "real")) == 3
    assert (tmp_path / "link").is_symlink()


def test_a_table_is_not_overwritten_unasked(tmp_path):
    write_table(tmp_path / "t", pairs(2))
    with pytest.raises(TableError, match=r"exists already.*--overwrite"):
        write_table(tmp_path / "t", pairs(3))
    assert len(read_table(tmp_path / "t")) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_table_is_left_alone(tmp_path, overwrite):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.txt").write_text("keep me")
    (tmp_path / "note").write_text("keep me")
    for name in ("photos", "note"):
        with pytest.raises(TableError, match=r"is not a preference table"):
            write_table(tmp_path / name, pairs(1), overwrite=overwrite)
    assert (tmp_path / "photos" / "dear.txt").read_text() == (tmp_path / "note").read_text() == "keep me"


def test_an_empty_table_is_not_written(tmp_path):
    with pytest.raises(TableError, match=r"there is no record to write$"):
        write_table(tmp_path / "t", [])
    rejected = [{"where": "row 0", "reason": "row 0: no label"}]
    with pytest.raises(TableError, match="of 1 rejected: row 0: no label"):
        write_table(tmp_path / "t", [], rejected=rejected)
    assert names(tmp_path) == []


def test_a_missing_table_says_how_to_make_one(tmp_path):
    with pytest.raises(TableError, match=r"no records\.arrow.*`diffalign data import`"):
        read_table(tmp_path / "nowhere")
    assert not is_table(tmp_path / "nowhere")
    write_table(tmp_path / "t", pairs(1))
    (tmp_path / "t" / MANIFEST).unlink()
    with pytest.raises(TableError, match=r"has no manifest\.json"):
        read_table(tmp_path / "t")
    assert not is_table(tmp_path / "t")


def rewrite(folder: Path, **facts) -> None:
    """Replace entries of a table's manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | facts))


def test_a_table_of_another_version_is_refused(tmp_path):
    write_table(tmp_path / "t", pairs(1))
    rewrite(tmp_path / "t", version=99)
    with pytest.raises(TableError, match="has table version 99; expected 1"):
        read_table(tmp_path / "t")


@pytest.mark.parametrize("manifest", ["", "{", "[]", "null", "{}", '{"version": 1}', '{"version": 1, "rows": "many"}', "\ufeff{}"])
def test_a_damaged_manifest_is_refused(tmp_path, manifest):
    write_table(tmp_path / "t", pairs(1))
    (tmp_path / "t" / MANIFEST).write_text(manifest)
    with pytest.raises(TableError, match=re.escape(str(tmp_path / "t"))):
        read_table(tmp_path / "t")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_rows_are_refused(tmp_path, share):
    write_table(tmp_path / "t", pairs(3 * CHUNK))
    rows = tmp_path / "t" / ROWS
    whole = rows.read_bytes()
    rows.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TableError, match="is damaged"):
        read_table(tmp_path / "t")


@pytest.mark.parametrize("rows", [0, CHUNK, CHUNK + 2, 3 * CHUNK])
def test_a_manifest_that_counts_other_rows_is_refused(tmp_path, rows):
    write_table(tmp_path / "t", pairs(CHUNK + 1))
    rewrite(tmp_path / "t", rows=rows)
    with pytest.raises(TableError, match=rf"{CHUNK + 1} .*records\.arrow, {rows} .*manifest\.json"):
        read_table(tmp_path / "t")


def test_a_file_with_other_columns_is_refused(tmp_path):
    write_table(tmp_path / "t", pairs(1))
    other = pa.table({"id": ["0"]})
    with pa.OSFile(str(tmp_path / "t" / ROWS), "wb") as sink, pa.ipc.new_file(sink, other.schema) as writer:
        writer.write_table(other)
    with pytest.raises(TableError, match=r"columns of records\.arrow"):
        Table(tmp_path / "t")


def test_caches_stay_while_the_content_is_the_same_and_go_with_it(tmp_path):
    write_table(tmp_path / "t", pairs(3))
    made = tmp_path / "t" / "cache" / "latents-1" / "latents.npy"
    made.parent.mkdir(parents=True)
    made.write_bytes(b"numbers")
    moved = [replace(record, source="elsewhere") for record in pairs(3)]
    write_table(tmp_path / "t", moved, overwrite=True)
    assert made.read_bytes() == b"numbers"
    write_table(tmp_path / "t", [replace(pairs(1)[0], prob=0.0), *pairs(3)[1:]], overwrite=True)
    assert not made.exists()
