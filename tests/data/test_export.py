"""What is exported is imported as it was: prompts, pictures, labels and users."""

from __future__ import annotations

import pytest
from PIL import Image

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.export import export_pairs
from diffalign.data.importing import import_dataset
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record


def record(number: int, prob: float | None, count: int = 2) -> Record:
    images = [encode_image(Image.new("L", (8, 8), number * 10 + k)) for k in range(count)]
    candidates = tuple(Candidate(image=image, model=f"model {k}", uid=f"{number}-{k}") for k, image in enumerate(images))
    return Record(str(number), f"a «star», {number}\nin two lines", candidates, prob, user=f"user {number}", source=f"row {number}")


def facts(record: Record) -> tuple:
    return record.prompt, record.prob, record.user, [(candidate.image, candidate.model) for candidate in record.candidates]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_an_export_is_imported_as_it_was_and_counts_what_is_left_out(suffix, tmp_path, caplog):
    records = [record(0, 1.0), record(1, 0.0), record(2, 0.5), record(3, None), record(4, 1.0, count=3)]
    assert export_pairs(records, tmp_path / f"votes{suffix}") == 3
    assert caplog.messages[0].startswith("2 records")
    table = import_dataset(str(tmp_path / f"votes{suffix}"), tmp_path / "table")
    assert [facts(one) for one in table] == [facts(one) for one in records[:3]]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="votes"):
        export_pairs(records, tmp_path / f"votes{suffix}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_is_no_file_of_a_known_kind_or_holds_no_pair_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="xlsx"):
        export_pairs([record(0, 1.0)], tmp_path / "votes.xlsx")
    with pytest.raises(TableError):
        export_pairs([record(0, None)], tmp_path / "votes.csv")
    assert list(tmp_path.iterdir()) == []
