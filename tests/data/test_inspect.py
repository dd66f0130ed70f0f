"""What a table holds and what is wrong with it, told with the record and where it came from."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image, features

from diffalign.data.inspect import render_summary, summary
from diffalign.data.records import Candidate
from diffalign.data.table import CHUNK, write_table
from tests.data.image_tables import image_pair, image_table, png
from tests.data.text_pairs import pair


def test_a_summary_of_images_by_hand(tmp_path):
    rejected = [{"where": f"a.csv row {row}", "reason": f"a.csv row {row}: no column `prompt`."} for row in (4, 9)]
    rejected.append({"where": "a.csv row 5", "reason": "a.csv row 5, candidate 1: the image does not decode (line 7)"})
    facts = summary(image_table(tmp_path, rejected=rejected))
    assert {shortcut["column"] for shortcut in facts.pop("shortcuts")} >= {"bytes", "file type", "size", "sharpness"}
    assert facts == {
        "path": str(tmp_path / "t"),
        "kind": "image",
        "rows": 4,
        "prompts": 3,
        "labels": {"first_preferred": 2, "second_preferred": 1, "ties": 1, "soft": 1, "ranked": 0, "unpaired": 0, "unlabelled": 0},
        # ann has two rows, bob one: 10 % between 1 and 2 is 1.1
        "users": {
            "count": 2,
            "rows_without": 1,
            "rows_per_user": {"min": 1.0, "p10": pytest.approx(1.1), "median": 1.5, "p90": pytest.approx(1.9), "max": 2.0},
        },
        "candidates_per_record": {"2": 4},
        "conditioning_images": {},
        "resolutions": {"64x64": 4, "32x32": 2, "64x32": 2},
        # six square images, and two of which a square keeps half
        "kept_by_crop": {"min": 0.5, "p10": 0.5, "median": 1.0, "p90": 1.0, "max": 1.0},
        "prompt_length": {"min": 8.0, "p10": 8.0, "median": 8.0, "p90": 8.0, "max": 8.0},
        "text_length": {},
        "scores": {},
        "scored_by": None,
        "repeats": {"same": 0, "opposite": 0, "disputed": 0, "equal": 0},
        "rejected": {
            "rows": 3,
            "reasons": [
                {"reason": "no column `prompt`.", "rows": 2, "first": "a.csv row 4"},
                {"reason": "the image does not decode", "rows": 1, "first": "a.csv row 5"},
            ],
        },
    }
    assert json.loads(json.dumps(facts)) == facts


def test_what_each_family_of_methods_would_train_on_is_counted(tmp_path):
    ranked = tuple(Candidate(text=text, rank=rank) for text, rank in (("a", 1.0), ("b", 2.0), ("c", 2.0)))
    records = [
        pair(0),
        pair(1, prob=0.2),
        pair(2, prob=0.5),
        pair(3, prob=None),
        pair(4, prob=None, candidates=ranked),
        pair(5, prob=1.0, candidates=(Candidate(text="liked"),)),
        pair(6, prob=0.0, candidates=(Candidate(text="disliked"),)),
    ]
    table = write_table(tmp_path / "t", records)
    facts = summary(table)
    assert facts["labels"] == {
        "first_preferred": 1, "second_preferred": 1, "ties": 1, "soft": 1, "ranked": 1, "unpaired": 2, "unlabelled": 1,
    }  # fmt: skip
    assert (table.manifest["strict"], table.manifest["ties"]) == (2, 1)
    text = render_summary(facts)
    assert "1 ranked, 2 unpaired, 1 unlabelled" in text
    assert "of 7 rows: pairwise methods 3, soft labels 3, lists 1, unpaired methods 2, methods of prompts alone 7" in text


def test_the_crop_is_that_of_the_buckets_where_there_are_any(tmp_path):
    table = image_table(tmp_path)
    # 64x32 and 64x64 have the mean log ratio of 1.41 to 1: of (32, 64) and (64, 64) either is as near, and the first is taken
    assert summary(table, [(32, 64), (64, 64)])["kept_by_crop"]["min"] == 0.5
    assert summary(table, [(64, 64)])["kept_by_crop"]["min"] == 0.5
    assert summary(table, [(16, 64)])["kept_by_crop"]["max"] == 0.5


def test_a_table_with_a_shortcut_and_repeats_says_so_when_it_is_summed_up(tmp_path):
    records = [pair(number, prob=1.0, candidates=(Candidate(text="x" * (number + 2)), Candidate(text="x"))) for number in range(24)]
    records += [pair(100, prompt="prompt 0", candidates=records[0].candidates, prob=0.0), pair(101, candidates=(Candidate(text="x"),) * 2)]
    text = render_summary(summary(write_table(tmp_path / "t", records)))
    warnings = [line for line in text.splitlines() if line.startswith("warning")]
    found = [("length" in line, "1 come again with the opposite label, 1 hold" in line) for line in warnings]
    assert found == [(True, False), (False, True)]


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
    assert lines[1:6] == [
        "rows           4 of images, 3 distinct prompts",
        "labels         3 strict (1 soft), 1 ties, 0 unlabelled",
        "trains         of 4 rows: pairwise methods 3, soft labels 4, methods of prompts alone 4",
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


def test_scores_are_those_of_whom_the_table_names(tmp_path):
    scored = tuple(Candidate(text=text, scores={"pickscore": float(place)}) for place, text in enumerate("ab"))
    table = write_table(tmp_path / "t", [pair(0, candidates=scored, meta={"scored_by": "the taste high"})])
    (line,) = [line for line in render_summary(summary(table)).splitlines() if line.startswith("score pickscore")]
    assert line.endswith("0 to 1, of the taste high")


def test_reasons_that_differ_by_a_size_or_a_share_are_one_group(tmp_path):
    reasons = [
        "a JPEG file that is cut off at 40 %",
        "a JPEG file that is cut off",
        "a JPEG file that is cut off at 70 % (line 3)",
        "0 bytes",
    ]
    rejected = [{"where": f"a.csv row {i}", "reason": f"a.csv row {i}, candidate {i % 2}: {reason}"} for i, reason in enumerate(reasons)]
    table = write_table(tmp_path / "t", [pair(0)], rejected=rejected)
    assert summary(table)["rejected"]["reasons"] == [
        {"reason": "a JPEG file that is cut off at 40 %", "rows": 3, "first": "a.csv row 0"},
        {"reason": "0 bytes", "rows": 1, "first": "a.csv row 3"},
    ]
