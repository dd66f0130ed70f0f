"""`diffalign data import | inspect | validate`: counts, warnings, merged labels, and files that lie where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffalign.cli.main import main
from diffalign.data.pictures import encode_image
from diffalign.data.table import read_table
from tests.data.text_pairs import names

A, B = (encode_image(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))


def votes_csv(folder: Path) -> str:
    (folder / "a.png").write_bytes(A)
    (folder / "b.png").write_bytes(B)
    lines = ["prompt,image_0,image_1,label_0", "a cat,a.png,b.png,1", "a cat,b.png,a.png,1", "a cat,a.png,b.png,1"]
    (folder / "votes.csv").write_text("\n".join(lines))
    return str(folder / "votes.csv")


def test_the_commands_count_and_merge(tmp_path, capsys):
    source = votes_csv(tmp_path)
    assert main(["data", "import", "--dataset_name", source, "--output_dir", str(tmp_path / "plain")]) == 0
    assert "1 come again, 1 come again with the opposite label" in capsys.readouterr().out
    assert main(["data", "import", "--dataset_name", source, "--output_dir", str(tmp_path / "merged"), "--merge"]) == 0
    assert [record.prob for record in read_table(tmp_path / "merged")] == [pytest.approx(2 / 3)]


def test_inspect_and_validate_name_the_file_itself_and_write_nothing_elsewhere(tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    source = votes_csv(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "here")
    assert main(["data", "inspect", "--dataset_name", source]) == 0
    assert main(["data", "validate", "--dataset_name", source]) == 1
    text = capsys.readouterr().out
    assert source in text
    assert "diffalign-" not in text  # a temporary folder
    assert names(tmp_path / "here") == []
    assert "votes.csv.contact_sheet.png" in names(tmp_path / "data")
