"""The labels of a pair that comes again become one, and the count of repeats stands in the manifest."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from diffalign.core.errors import TableError
from diffalign.data.duplicates import repeat_warning
from diffalign.data.importing import import_dataset
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from tests.data.text_pairs import names, pair

A, B = (encode_image(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))


def bmp(png: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).save(buffer, "BMP")
    return buffer.getvalue()


def vote(number: int, first: bytes, second: bytes, prob: float | None, **fields) -> Record:
    return pair(number, candidates=(Candidate(image=first), Candidate(image=second)), prob=prob, **{"prompt": "a cat", **fields})


VOTES = [
    vote(0, A, B, 1.0, user="ann"),
    vote(1, B, A, 0.0, user="ann"),
    vote(2, A, B, 1.0, user="ann"),
    vote(3, bmp(A), B, 0.0, user="bob"),
    vote(4, A, B, 0.5),
    vote(5, A, A, 1.0),
    vote(6, A, B, 1.0, prompt="a dog", user="eve"),
    vote(7, A, B, None),
]


def test_the_labels_of_a_pair_become_the_share_that_prefers_its_first_candidate(tmp_path):
    write_table(tmp_path / "votes", VOTES)
    table = import_dataset(str(tmp_path / "votes"), tmp_path / "merged", merge=True)
    # a cat: 1, 1 (turned round), 1, 0 (the same pixels in another file), one half: 3.5 of 5
    assert [(r.id, r.prob, r.user) for r in table] == [("0", pytest.approx(0.7), None), ("6", 1.0, "eve"), ("7", None, None)]
    assert [row["where"] for row in table.manifest["rejected"]] == ["rows.csv row 5"]
    assert table.manifest["merged_from"] == 8
    assert names(tmp_path) == ["merged", "votes"]


def test_merging_texts_and_rankings_leaves_rankings_as_they_are(tmp_path):
    ranked = pair(2, prob=None, candidates=tuple(Candidate(text=t, rank=r) for t, r in (("a", 1.0), ("b", 2.0), ("c", 3.0))))
    write_table(tmp_path / "votes", [pair(0, prompt="p"), pair(1, prompt="p", prob=0.0), ranked])
    table = import_dataset(str(tmp_path / "votes"), tmp_path / "merged", merge=True)
    assert [(record.id, record.prob) for record in table] == [("0", 0.5), ("2", None)]


def test_a_table_that_is_there_is_refused_before_anything_is_read(tmp_path):
    write_table(tmp_path / "votes", VOTES)
    with pytest.raises(TableError, match="exists already"):
        import_dataset("no such thing", tmp_path / "votes", merge=True)


def test_repeats_are_counted_in_the_manifest(tmp_path):
    table = write_table(tmp_path / "t", VOTES)
    # 1 and 2 say what 0 says; the BMP file is another one here, where bytes are compared; 4 has no user and comes once; 7 is 4 again
    assert table.manifest["repeats"] == {"same": 3, "opposite": 0, "disputed": 0, "equal": 1}


def test_another_persons_opposite_label_is_no_contradiction(tmp_path):
    votes = [vote(0, A, B, 1.0, user="ann"), vote(1, A, B, 0.0, user="bob"), vote(2, B, A, 1.0, user="bob"), vote(3, A, B, 1.0, user="bob")]
    table = write_table(tmp_path / "t", [*votes, vote(4, A, B, 0.0, user="ann")])
    # bob says the opposite of ann in 1, and as much again in 2; 3 is the opposite of his 1, and 4 of her 0
    assert table.manifest["repeats"] == {"same": 0, "opposite": 2, "disputed": 2, "equal": 0}
    warning = repeat_warning(table.manifest["repeats"])
    assert warning is not None
    assert "2 are of another person with the opposite label" in warning
    assert "whose users are lost" in warning
