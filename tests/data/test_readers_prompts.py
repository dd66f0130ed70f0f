"""Prompts alone: a text file by itself, any table with a prompt column if the reader is named."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.cli.commands import data_inspect
from diffalign.core.errors import RecordError, TableError
from diffalign.data.importing import import_dataset
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a star\n\n  ein grünes Dreieck \na ring\n", encoding="utf-8")
    return path


def test_a_text_file_is_recognised_and_keeps_its_lines(lines, tmp_path):
    table = import_dataset(str(lines), tmp_path / "table")
    assert table.manifest["reader"] == "prompts"
    assert (table.manifest["kind"], table.manifest["rows"]) == ("prompt", 3)
    assert [record.prompt for record in table] == ["a star", "ein grünes Dreieck", "a ring"]
    assert [record.source for record in table][1] == "prompts.txt line 3"


def test_other_files_need_the_reader_named(tmp_path):
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"caption": ["a star", "a ring"]}), path)
    with pytest.raises(RecordError, match="no known layout"):
        import_dataset(str(path), tmp_path / "table")
    table = import_dataset(str(path), tmp_path / "table", reader="prompts")
    assert [record.prompt for record in table] == ["a star", "a ring"]


def test_a_list_of_prompts_can_be_inspected(lines, tmp_path, capsys):
    import_dataset(str(lines), tmp_path / "table")
    assert data_inspect.run(data_inspect.CONFIG(dataset_name=str(tmp_path / "table"))) == 0
    assert "a ring" in capsys.readouterr().out


def test_methods_that_compare_pictures_refuse_prompts(lines, tmp_path):
    config = TrainConfig(dataset_name=str(lines), output_dir=str(tmp_path / "run"))
    with pytest.raises((RecordError, TableError), match=r"prompts.txt"):
        open_dataset(config, recipe_of(config))


def test_a_missing_text_file_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"none.txt: there is no such file"):
        import_dataset(str(tmp_path / "none.txt"), tmp_path / "table", reader="prompts")
