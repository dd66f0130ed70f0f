"""What a table holds and what is wrong with it, told with the record and where it came from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image, features

from diffalign.core.errors import TableError
from diffalign.data.inspect import contact_sheet, preview, render_summary, summary, validate
from diffalign.data.pictures import decode_image, encode_image
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.table import CHUNK, write_table
from tests.data.text_pairs import names, pair, pairs


def png(width: int, height: int, color: str = "red") -> bytes:
    return encode_image(Image.new("RGB", (width, height), color))


def image_pair(number: int, first: bytes, second: bytes, **fields) -> Record:
    shown = (Candidate(image=first), Candidate(image=second))
    return pair(number, **{"candidates": shown, **fields})


def image_table(folder: Path, **facts):
    """Return a table of four image pairs: strict for the first, strict for the second, a tie and a soft one."""
    small, large, wide = png(32, 32), png(64, 64, "blue"), png(64, 32, "green")
    records = [
        image_pair(0, small, large, prob=1.0, user="ann"),
        image_pair(1, wide, large, prob=0.0, user="ann", prompt="prompt 0"),
        image_pair(2, large, wide, prob=0.5, user="bob"),
        image_pair(3, large, small, prob=0.75),
    ]
    return write_table(folder / "t", records, **facts)


def test_a_summary_of_images_by_hand(tmp_path):
    rejected = [{"where": f"a.csv row {row}", "reason": f"a.csv row {row}: no column `prompt`."} for row in (4, 9)]
    rejected.append({"where": "a.csv row 5", "reason": "a.csv row 5, candidate 1: the image does not decode"})
    facts = summary(image_table(tmp_path, rejected=rejected))
    assert facts == {
        "path": str(tmp_path / "t"),
        "kind": "image",
        "rows": 4,
        "prompts": 3,
        "labels": {"first_preferred": 2, "second_preferred": 1, "ties": 1, "soft": 1, "unlabelled": 0},
        # ann has two rows, bob one: 10 % between 1 and 2 is 1.1
        "users": {
            "count": 2,
            "rows_without": 1,
            "rows_per_user": {"min": 1.0, "p10": pytest.approx(1.1), "median": 1.5, "p90": pytest.approx(1.9), "max": 2.0},
        },
        "candidates_per_record": {"2": 4},
        "resolutions": {"64x64": 4, "32x32": 2, "64x32": 2},
        "prompt_length": {"min": 8.0, "p10": 8.0, "median": 8.0, "p90": 8.0, "max": 8.0},
        "text_length": {},
        "scores": {},
        "rejected": {
            "rows": 3,
            "reasons": [
                {"reason": "no column `prompt`.", "rows": 2, "first": "a.csv row 4"},
                {"reason": "candidate 1: the image does not decode", "rows": 1, "first": "a.csv row 5"},
            ],
        },
    }
    assert json.loads(json.dumps(facts)) == facts


def test_a_summary_of_texts_counts_over_all_chunks(tmp_path):
    shown = tuple(Candidate(text="x" * length, scores={"help": float(length)}) for length in (1, 3, 5))
    records = [pair(number, candidates=shown, prob=None) for number in range(CHUNK)] + [pair(CHUNK), pair(CHUNK + 1)]
    facts = summary(write_table(tmp_path / "t", records))
    assert (facts["rows"], facts["labels"]["unlabelled"], facts["labels"]["first_preferred"]) == (CHUNK + 2, CHUNK, 2)
    assert facts["candidates_per_record"] == {"2": 2, "3": CHUNK}
    assert (facts["text_length"]["min"], facts["text_length"]["median"], facts["text_length"]["max"]) == (1.0, 3.0, 5.0)
    assert facts["resolutions"] == {}
    assert facts["scores"] == {"help": {"min": 1.0, "max": 5.0}}


def test_every_format_that_trains_is_counted_with_its_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files, upright = [], Image.new("RGB", (64, 32))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", *(["AVIF"] if features.check("avif") else [])):
        buffer = io.BytesIO()
        upright.save(buffer, kind)
        files.append(buffer.getvalue())
    sideways = io.BytesIO()
    Image.new("RGB", (32, 64)).save(sideways, "JPEG", exif=exif)
    records = [image_pair(number, sideways.getvalue(), file) for number, file in enumerate(files)]
    assert summary(write_table(tmp_path / "t", records))["resolutions"] == {"64x32": 2 * len(files)}


def test_images_that_cannot_be_read_are_counted_as_such(tmp_path):
    assert summary(write_table(tmp_path / "t", [image_pair(0, b"broken", png(8, 8))]))["resolutions"] == {"unreadable": 1, "8x8": 1}


def test_a_summary_prints_as_aligned_lines(tmp_path):
    rejected = [{"where": "a.csv row 4", "reason": "a.csv row 4: no label"}]
    lines = render_summary(summary(image_table(tmp_path, rejected=rejected))).splitlines()
    assert lines[1:5] == [
        "rows           4 of images, 3 distinct prompts",
        "labels         3 strict (1 soft), 1 ties, 0 unlabelled",
        "balance        first preferred 66.7%, second 33.3%",
        "candidates     2 in 100.0% of rows",
    ]
    assert "resolution           4  50.0%  64x64" in lines
    assert lines[-2:] == ["rejected       1 rows", "                     1 100.0%  no label (first: a.csv row 4)"]
    assert not [line for line in lines if line.startswith("text length")]


def test_a_long_histogram_is_cut_and_says_so(tmp_path):
    records = [image_pair(number, png(8 + number, 8), png(8 + number, 9)) for number in range(6)]
    text = render_summary(summary(write_table(tmp_path / "t", records)))
    assert text.count("8.3%") == 8  # one in twelve
    assert "4         in 4 more" in text


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


def problems(folder: Path, *records: Record, resolution: int | None = None) -> list[str]:
    return validate(write_table(folder / "t", records), resolution)


def test_a_sound_table_has_no_problems(tmp_path):
    assert problems(tmp_path, *pairs(CHUNK + 1)) == []
    assert validate(image_table(tmp_path / "images"), resolution=32) == []


def test_broken_small_and_identical_images_are_named(tmp_path):
    whole = png(64, 64)
    found = problems(
        tmp_path,
        image_pair(0, whole, whole[:50]),
        image_pair(1, png(48, 200), png(64, 64)),
        image_pair(2, whole, whole),
        resolution=64,
    )
    assert found[0].startswith("0 (rows.csv row 0): candidate 1: the image does not decode")
    assert found[1:] == [
        "1 (rows.csv row 1): candidate 0 is 48x200; training at 64 would upscale it",
        "2 (rows.csv row 2): candidates 0 and 1 are identical",
    ]


def test_empty_prompts_are_named_unless_the_candidates_have_their_own(tmp_path):
    own = (Candidate(text="a", prompt="mine"), Candidate(text="b", prompt="yours"))
    assert problems(tmp_path, pair(0, prompt=" \n"), pair(1, prompt="", candidates=own)) == ["0 (rows.csv row 0): the prompt is empty"]


def swapped(number: int, **fields) -> Record:
    return pair(number, **{"candidates": pair(0).candidates[::-1], "prompt": "same", **fields})


def same(number: int, **fields) -> Record:
    return pair(number, **{"prompt": "same", **fields})


def test_pairs_that_come_again_are_named_also_when_they_are_turned_round(tmp_path):
    assert problems(tmp_path, same(0), same(1), swapped(2, prob=0.0), same(3, prob=0.5)) == [
        f"{number} (rows.csv row {number}): is the same pair as record 0" for number in (1, 2, 3)
    ]


def test_another_prompt_another_conversation_or_another_user_is_not_the_same_pair(tmp_path):
    turns = (Message("system", "be kind"), Message("user", "same"))
    assert problems(tmp_path, same(0), same(1, prompt="other"), same(2, messages=turns), same(3, user="ann"), same(4, user="bob")) == []


def test_opposite_labels_of_a_pair_are_named_whoever_gave_them(tmp_path):
    found = problems(tmp_path, same(0, prob=0.5), same(1, user="ann"), swapped(2, user="bob"), same(3, user="eve", prob=0.1))
    assert [problem.partition(": ")[0] for problem in found] == ["2 (rows.csv row 2)", "3 (rows.csv row 3)"]
    assert all("opposite preference of record 1" in problem for problem in found)


def test_a_table_without_a_preference_is_named(tmp_path):
    found = problems(tmp_path, pair(0, prob=0.5), pair(1, prob=None))
    assert found == [f"{tmp_path / 't'}: no strict pair among 2 records; there is nothing to learn from"]
    ranked = tuple(Candidate(text=text, rank=rank) for text, rank in (("a", 1.0), ("b", 2.0)))
    assert problems(tmp_path / "ranked", pair(0, prob=None, candidates=ranked)) == []
    tied = tuple(Candidate(text=text, rank=1.0) for text in "ab")
    assert len(problems(tmp_path / "tied", pair(0, prob=None, candidates=tied))) == 1
