"""People's own columns: which of two candidates they prefer in whatever words, and what they put into a column of pictures."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS, Row, read
from diffalign.data.readers.columns import sides_of
from diffalign.data.readers.detect import detect
from diffalign.data.readers.rows import Columns
from tests.data.image_files import JPEGS, put

PAIR = {"prompt": "a star", "image_0": JPEGS[0], "image_1": JPEGS[1]}
FROM_ONE = {"prompt": "a star", "image_1": JPEGS[0], "image_2": JPEGS[1]}
LETTERS = {"prompt": "a star", "image_a": JPEGS[0], "image_b": JPEGS[1]}
NAMED = {"prompt": "a star", "chosen": JPEGS[0], "rejected": JPEGS[1]}
UIDS = {"image_0_uid": "x", "image_1_uid": "y"}


def records(folder, *rows: dict[str, Any]):
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "v.parquet")
    return list(read(READERS[detect(str(folder / "v.parquet"))], str(folder / "v.parquet")))


STATED: list[tuple[dict[str, Any], float]] = [
    *(
        (PAIR | {"label_0": value}, 1.0)
        for value in (1, 1.0, True, "1", "1.0", "True", "yes", "A", "left", " Left ", Decimal("1.0"), "100%")
    ),
    *((PAIR | {"label_0": value}, 0.0) for value in (0, False, "false", "B", "right", Decimal(0))),
    *((PAIR | {"label_0": value}, 0.5) for value in ("0,5", "0.5", "tie", "Draw", "50 %", Decimal("0.5"))),
    (PAIR | {"label_1": 1}, 0.0),
    (PAIR | {"label_1": True}, 0.0),
    (PAIR | {"label_1": 0.25}, 0.75),
    (PAIR | {"label_0": "0,25", "label_1": "0,75"}, 0.25),
    *((PAIR | {"winner": value}, 1.0) for value in ("image_0", 0, "0", "A", "left", "Image A", "model_a", "leftvote", "first")),
    *((PAIR | {"winner": value}, 0.0) for value in ("image_1", 1, "1", "B", "right", "Image B is better", "model_b", "2nd")),
    *((PAIR | {"winner": value}, 0.5) for value in ("tie", "tie (bothbad)", "draw", "Both are equal", "no preference", "bothbad_vote")),
    (PAIR | {"preference": 0}, 1.0),
    (PAIR | {"preference": "B"}, 0.0),
    (PAIR | {"label": "A"}, 1.0),
    (PAIR | {"vote": "right"}, 0.0),
    (LETTERS | {"preferred_image": "image_b"}, 0.0),
    (PAIR | {"chosen": "image_1"}, 0.0),
    (PAIR | {"chosen": JPEGS[1]}, 0.0),
    (PAIR | {"label_0": 0.7, "winner": "A"}, 0.7),
    (PAIR | {"model_0": "sd15", "model_1": "sdxl", "winner": "sdxl"}, 0.0),
    (PAIR | {"human_preference": [0, 1]}, 0.0),
    (PAIR | UIDS | {"best_image_uid": "y"}, 0.0),
    (PAIR | UIDS | {"best_image_uid": "tie"}, 0.5),
    (FROM_ONE | {"winner": 1}, 1.0),
    (FROM_ONE | {"winner": "2"}, 0.0),
    (LETTERS | {"winner": "a"}, 1.0),
    (LETTERS | {"comparison": '[{"selected": "right"}]'}, 0.0),
    (LETTERS | {"choice": '{"choices": ["left"]}'}, 1.0),
    ({"Prompt": "a star", "Left": JPEGS[0], "Right": JPEGS[1], "Vote": "left"}, 1.0),
    (NAMED, 1.0),
    (NAMED | {"label": 1}, 1.0),
    (NAMED | {"label": "chosen"}, 1.0),
    (NAMED | {"label": 0.8}, 0.8),
    (NAMED | {"label": "tie"}, 0.5),
    (NAMED | {"score": 3, "best": 7, "label": "landscapes"}, 1.0),
    ({"prompt": "a star", "image_w": JPEGS[0], "image_l": JPEGS[1]}, 1.0),
    ({"prompt": "a star", "preferred": JPEGS[0], "dispreferred": JPEGS[1]}, 1.0),
]


def test_a_preference_is_read_in_the_words_that_people_use(tmp_path):
    for row, prob in STATED:
        (record,) = records(tmp_path, row)
        assert record.prob == pytest.approx(prob), row
        assert [candidate.image for candidate in record.candidates] == JPEGS[:2], row


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (PAIR, ("`image_0` and `image_1`", "df['label_0'] =")),
    (PAIR | {"label": 0}, ("`label` is int 0", "df['label_0'] = (df['label'] == 0)", "df['label_0'] = df['label']")),
    (PAIR | {"label": True}, ("`label`", "df['label_0']")),
    (PAIR | {"winner": 2}, ("`winner` is int 2", "df['label_0']")),
    (PAIR | {"winner": "the blue one"}, ("`winner` is str 'the blue one'", "df['label_0'] = df['winner'].map(")),
    (PAIR | {"winner": "A is worse"}, ("`winner`",)),
    (LETTERS | {"winner": 0}, ("`winner` is int 0", "df['label_0']")),
    (PAIR | {"label_0": 1.5}, ("`label_0` is 1.5", "[0, 1]")),
    (PAIR | {"label_0": float("nan")}, ("`label_0` is nan",)),
    (PAIR | {"label_0": 1, "label_1": 1}, ("`label_0` is 1", "`label_1` 1", "sum of 1")),
    (PAIR | {"label_0": 1, "winner": "B"}, ("`label_0` is int 1", "`winner` str 'B'", "disagree")),
    (PAIR | {"label_0": 1, "chosen": JPEGS[1]}, ("`label_0`", "`chosen`", "disagree")),
    (PAIR | UIDS | {"best_image_uid": "z"}, ("`best_image_uid` is str 'z'", "neither x nor y")),
    (NAMED | {"label": 0}, ("`label` is int 0", "`rejected` is the better one")),
    (NAMED | {"label": False}, ("`label` is bool False",)),
    (PAIR | {"label_0": 1, "weight": -3.0}, ("`weight` is -3", "zero or more")),
    (PAIR | {"label_0": 1, "weight": float("inf")}, ("`weight` is inf", "finite")),
    ({"image_0": JPEGS[0], "image_1": JPEGS[1], "label_0": 1}, ("no column `prompt`", "columns")),
    ({"prompt": "a star", "image_1": JPEGS[0], "label_0": 1}, ("no column `image_0`",)),
]


def test_what_can_be_meant_in_two_ways_is_refused_with_the_line_that_decides(tmp_path):
    for row, facts in REFUSED:
        with pytest.raises(RecordError) as error:
            records(tmp_path, row)
        assert all(fact in str(error.value) for fact in ("v.parquet row 0", *facts)), str(error.value)


def test_a_pair_of_texts_is_read_with_its_vote(tmp_path):
    (record,) = records(tmp_path, {"prompt": "Name a prime.", "response_a": "9", "response_b": "7", "winner": "B"})
    assert ([candidate.text for candidate in record.candidates], record.prob) == (["9", "7"], 0.0)


def test_the_columns_of_candidates_are_found_in_the_usual_spellings():
    for first, second in (("image_0", "image_1"), ("Image 1", "Image 2"), ("img_a", "img_b"), ("picture_left", "picture_right")):
        sides = sides_of(Row(Columns({first: 1, second: 2}), "row 0", "0"))
        assert sides is not None, first


def test_users_keep_their_names_whatever_the_type_of_the_column(tmp_path):
    rows = [PAIR | {"label_0": 1.0, "user_id": user} for user in (7.0, None, 12.0)]
    assert [record.user for record in records(tmp_path, *rows)] == ["7", None, "12"]
    put(
        tmp_path,
        {
            "0.jpg": 0,
            "1.jpg": 1,
            "v.csv": "prompt,image_0,image_1,label_0,user\na,0.jpg,1.jpg,1,7.0\nb,0.jpg,1.jpg,1,\nc,0.jpg,1.jpg,1,ann 1.0\n",
        },
    )
    assert [record.user for record in read(READERS["columns"], str(tmp_path / "v.csv"))] == ["7", None, "ann 1.0"]


def test_a_picture_is_found_in_whatever_a_column_holds(tmp_path, monkeypatch):
    put(tmp_path, {"sub folder/0.jpg": 0, "home/0.jpg": 0, "upload/1/0.jpg": 0, "x.JFIF": 0, "nosuffix": 0})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = base64.b64encode(JPEGS[0]).decode()
    cells = [
        "sub folder/0.jpg",
        " sub folder/0.jpg ",
        "sub folder\\0.jpg",
        "./sub folder/0.jpg",
        str(tmp_path / "sub folder/0.jpg"),
        f"file://{tmp_path}/sub%20folder/0.jpg",
        f"file://localhost{tmp_path}/sub folder/0.jpg",
        "~/0.jpg",
        "x.JFIF",
        "nosuffix",
        "/data/upload/1/0.jpg",
        "/data/local-files/?d=sub%20folder/0.jpg",
        text,
        f"data:image/jpeg;base64,{text}",
        list(JPEGS[0]),
        {"bytes": None, "path": "sub folder/0.jpg"},
        {"path": "0001.jpg", "bytes": list(JPEGS[0])},
    ]
    for cell in cells:
        for first, second in (("image_0", "image_1"), ("chosen", "rejected")):
            row = {"prompt": "a star", first: cell, second: cell, "label_0": 1}
            (tmp_path / "v.json").write_text(json.dumps([row]))
            if first == "chosen" and cell == "nosuffix":
                continue  # a text like any other
            (record,) = read(READERS[detect(str(tmp_path / "v.json"))], str(tmp_path / "v.json"))
            assert [candidate.image for candidate in record.candidates] == JPEGS[:1] * 2, (first, str(cell)[:60])


def test_a_picture_that_is_nowhere_is_named_and_an_address_is_never_fetched(tmp_path):
    cells = {
        "images/a.bmp": "there is no image",
        "a.avif": "there is no image",
        "C:\\me\\a.png": "there is no image",
        "~nobody-here/a.png": "a.png",
        "https://example.com/a.png": "download",
        "https://example.com/a": "download",
        "s3://bucket/a.webp?v=1": "download",
        "data:image/png;base64,@@@": "base64",
        "": "expected image bytes or a path",
        "x\0y.png": "expected image bytes or a path",
        "a" * 5000 + ".png": "",
    }
    for cell, fact in cells.items():
        for first, second in (("image_0", "image_1"), ("chosen", "rejected")):
            (tmp_path / "v.json").write_text(json.dumps([{"prompt": "a star", first: cell, second: cell, "label_0": 1}]))
            with pytest.raises(RecordError) as error:
                list(read(READERS["columns"], str(tmp_path / "v.json")))
            assert "v.json row 0" in str(error.value)
            assert fact in str(error.value), (cell[:50], str(error.value))


def test_most_of_the_first_rows_decide_what_a_table_holds(tmp_path):
    put(tmp_path, {"0.jpg": 0, "1.jpg": 1})
    images = [{"prompt": "p", "chosen": "0.jpg", "rejected": "1.jpg"}] * 3
    texts = [{"prompt": "p", "chosen": "a text", "rejected": "logo.png"}] * 3
    for rows, expected in (
        ([{"prompt": "p", "chosen": "", "rejected": ""}, *images], "columns"),
        ([{"prompt": "p", "chosen": "logo.png", "rejected": "b.png"}, *texts], "trl"),
    ):
        (tmp_path / "v.json").write_text(json.dumps(rows))
        assert detect(str(tmp_path / "v.json")) == expected
