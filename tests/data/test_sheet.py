"""A few rows of a table are shown as lines, or as a sheet of images, the preferred one first."""

from __future__ import annotations

import pytest

from diffalign.core.errors import TableError
from diffalign.data import sheet as sheet_module
from diffalign.data.pictures import decode_image
from diffalign.data.records import Candidate
from diffalign.data.sheet import contact_sheet, preview
from diffalign.data.table import write_table
from tests.data.image_tables import image_pair, image_table, png
from tests.data.text_pairs import names, pair, pairs

SHOWN = (Candidate(image=png(8, 8)), Candidate(image=png(8, 8, "blue")))


def test_a_preview_shows_the_preferred_text_first(tmp_path):
    records = [
        pair(0, prob=0.25, prompt="which one?"),
        pair(1, prob=0.5),
        pair(2, prob=None, candidates=(Candidate(text="b", rank=2.0), Candidate(text="c"), Candidate(text="a", rank=1.0))),
        pair(3, prob=None),
    ]
    assert preview(write_table(tmp_path / "t", records)) == [
        "[0] which one?",
        "  * preferred, prob 0.75: no",
        "    dispreferred, prob 0.25: yes",
        "[1] prompt 1",
        "    tie: yes",
        "    tie: no",
        "[2] prompt 2",
        "  * rank 1: a",
        "    rank 2: b",
        "    no rank: c",
        "[3] prompt 3",
        "    candidate 0: yes",
        "    candidate 1: no",
    ]


def test_a_preview_draws_rows_by_its_seed_and_shortens_them(tmp_path):
    records = [pair(number, prompt="word " * 100) for number in range(50)]
    table = write_table(tmp_path / "t", records)
    assert preview(table, rows=3, seed=1) == preview(table, rows=3, seed=1) != preview(table, rows=3, seed=2)
    assert len(preview(table, rows=3)) == 9
    assert max(map(len, preview(table))) < 130
    assert preview(image_table(tmp_path / "images"))[1] == "  * preferred, prob 1.00: image 32x32"


def test_a_contact_sheet_frames_the_preferred_image_and_puts_it_first(tmp_path):
    table = write_table(tmp_path / "t", [image_pair(0, png(64, 64, "red"), png(64, 64, "blue"), prob=0.0)])
    sheet = decode_image(contact_sheet(table, tmp_path / "deep" / "sheet.png").read_bytes(), "sheet")
    top, left, right = 16 + 36, 8, 8 + 200
    assert sheet.size == (616, 3 * 18 + 192 + 32)
    for corner in (0, 191):  # a small image fills its cell
        assert sheet.getpixel((left + corner, top + corner)) == (0, 0, 255)
        assert sheet.getpixel((right + corner, top + corner)) == (255, 0, 0)
    assert (sheet.getpixel((left - 2, top + 50)), sheet.getpixel((right - 2, top + 50))) == ((0x1A, 0x7F, 0x37), (0xC8, 0xC8, 0xC8))
    assert names(tmp_path / "deep") == ["sheet.png"]


def test_a_contact_sheet_has_room_for_rankings_long_prompts_and_broken_images(tmp_path):
    ranked = tuple(Candidate(image=png(300 + rank, 200), rank=float(rank)) for rank in (3, 1, 2, 5))
    records = [
        pair(0, prob=None, candidates=ranked, prompt="a castle " * 200),
        image_pair(1, b"broken", png(20, 20), prompt=""),
    ]
    path = contact_sheet(write_table(tmp_path / "t", records), tmp_path / "sheet.png")
    sheet = decode_image(path.read_bytes(), "sheet")
    assert sheet.size == (8 + 4 * 200, 2 * (3 * 18 + 192 + 32))


def test_a_contact_sheet_of_texts_is_refused(tmp_path):
    with pytest.raises(TableError, match="holds texts; a contact sheet needs images"):
        contact_sheet(write_table(tmp_path / "t", pairs(1)), tmp_path / "sheet.png")
    assert names(tmp_path) == ["t"]


def test_characters_without_a_shape_in_the_font_are_shown_by_their_code(tmp_path):
    def sheet(prompt: str, name: str):
        return contact_sheet(
            write_table(tmp_path / name, [pair(0, prompt=prompt, candidates=SHOWN)]), tmp_path / f"{name}.png"
        ).read_bytes()

    assert sheet("a \U0001f600 cat", "emoji") == sheet("a <U+1F600> cat", "code")
    assert sheet("caf\u00e9", "composed") == sheet("cafe\u0301", "decomposed") != sheet("cafe", "plain")


def test_a_sheet_that_would_be_too_large_shows_fewer_rows_and_says_so(tmp_path, monkeypatch, caplog):
    table = write_table(tmp_path / "t", [image_pair(number, png(64, 64, "red"), png(64, 64, "blue")) for number in range(6)])
    whole = contact_sheet(table, tmp_path / "whole.png", rows=6).stat().st_size
    monkeypatch.setattr(sheet_module, "MOST", whole // 2)
    sheet = contact_sheet(table, tmp_path / "sheet.png", rows=6)
    assert sheet.stat().st_size <= whole // 2
    assert "of 6 rows" in caplog.text
