"""Image pair folders: what is missing or doubled is named by file, and the pairs beside it are still read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS, read
from tests.data.image_files import JPEGS, put

PAIR: dict[str, Any] = {"w/a.png": 0, "l/a.png": 1, "w/a.txt": "a red ball"}


def records(folder: Path, *, split: str | None = None, rejected: list[dict[str, str]] | None = None) -> list[Any]:
    return list(read(READERS["folders"], str(folder), split=split, rejected=rejected))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"w/b.png": 2, "w/b.txt": "x"}, r"w/b\.png: found 0 dispreferred images for the pair `b`; expected one"),
        ({"l/b.png": 2, "l/b.txt": "x"}, r"l/b\.png: found 0 preferred images for the pair `b`; expected one"),
        ({"w/b.png": 2, "l/b.png": 3}, r"w/b\.png: found 0 captions; expected one, in b\.txt or in metadata\.jsonl"),
        ({"w/b.png": 2, "l/b.png": 3, "w/b.txt": " \n"}, r"w/b\.png: found 0 captions"),
        ({"w/b.png": 2, "l/b.png": 3, "w/b.txt": "x", "l/b.txt": "y"}, r"w/b\.png: found 2 captions"),
        ({"w/b.png": 2, "w/b.jpg": 2, "l/b.png": 3, "w/b.txt": "x"}, r"w/b\.jpg: found 2 preferred images"),
        ({"w/b.png": 2, "l/b.png": 3, "w/b.txt": b"\xff\xfe\x00"}, r"w/b\.png: .*b\.txt: cannot be read as utf-16"),
        ({"rest/chosen/b.png": 2, "rest/chosen/b.txt": "x"}, r"rest/chosen/b\.png: found 0 dispreferred"),
        ({"more/b.png": 2, "more/b.txt": "x", "more/c.png": 2, "more/b-rejected.png": 3}, r"more/c\.png: found 0 dispreferred"),
    ],
)
def test_a_pair_that_is_not_whole_is_named_and_passed_over(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    put(tmp_path, PAIR | files)
    with pytest.raises(RecordError, match=message):
        records(tmp_path)
    rejected: list[dict[str, str]] = []
    assert "a red ball" in [record.prompt for record in records(tmp_path, rejected=rejected)]
    assert len(rejected) == 1


def test_the_preferred_image_comes_first_and_is_certain(tmp_path: Path) -> None:
    (record,) = records(put(tmp_path, PAIR))
    assert ([candidate.image for candidate in record.candidates], record.prob, record.id) == (JPEGS[:2], 1.0, "w/a")


def test_images_of_two_formats_make_a_pair(tmp_path: Path) -> None:
    (record,) = records(put(tmp_path, {"w/a.PNG": 0, "l/a.webp": 1, "l/a.txt": "a red ball"}))
    assert record.prompt == "a red ball"


def test_a_dot_in_a_name_is_no_suffix(tmp_path: Path) -> None:
    files = {"w/a.1.png": 0, "l/a.1.png": 1, "w/a.1.txt": "one", "w/a.2.png": 2, "l/a.2.png": 3, "w/a.2.txt": "two"}
    assert [record.prompt for record in records(put(tmp_path, files))] == ["one", "two"]


def test_a_split_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, {f"{split}/{name}": content for split in ("train", "test") for name, content in PAIR.items()})
    assert [record.id for record in records(tmp_path, split="test")] == ["test/w/a"]
    assert [record.id for record in records(tmp_path)] == ["test/w/a", "train/w/a"]
    with pytest.raises(RecordError, match="no image pairs of split `dev`; expected folders w/ and l/"):
        records(tmp_path, split="dev")


def test_a_broken_line_of_metadata_is_named(tmp_path: Path) -> None:
    put(tmp_path, {"w/a.png": 0, "l/a.png": 1, "metadata.jsonl": '{"file_name": "w/a.png"}'})
    with pytest.raises(RecordError, match=r"metadata\.jsonl row 0: no column `text`"):
        records(tmp_path)


def test_a_name_that_ends_like_the_suffix_layout_is_one_pair_inside_a_side(tmp_path: Path) -> None:
    (record,) = records(put(tmp_path, {"w/a-rejected.png": 0, "l/a-rejected.png": 1, "w/a-rejected.txt": "a red ball"}))
    assert (record.id, record.candidates[0].image) == ("w/a-rejected", JPEGS[0])
