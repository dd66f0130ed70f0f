"""What is wrong with a table is told with the record and where it came from."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from diffalign.data.problems import validate
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.table import CHUNK, write_table
from tests.data.image_tables import image_pair, image_table, png
from tests.data.text_pairs import pair


def problems(folder: Path, *records: Record, resolution: int | None = None) -> list[str]:
    return validate(write_table(folder / "t", records), resolution)


def test_a_sound_table_has_no_problems(tmp_path):
    assert problems(tmp_path, *(pair(number, prob=float(number % 2)) for number in range(CHUNK + 1))) == []
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
    assert ["user bob's" in problem and "another person" in problem for problem in found] == [True, False]


def test_a_table_without_a_preference_is_named(tmp_path):
    found = problems(tmp_path, pair(0, prob=0.5), pair(1, prob=None))
    assert found == [f"{tmp_path / 't'}: no strict pair among 2 records; there is nothing to learn from"]
    ranked = tuple(Candidate(text=text, rank=rank) for text, rank in (("a", 1.0), ("b", 2.0)))
    assert problems(tmp_path / "ranked", pair(0, prob=None, candidates=ranked)) == []
    tied = tuple(Candidate(text=text, rank=1.0) for text in "ab")
    assert len(problems(tmp_path / "tied", pair(0, prob=None, candidates=tied))) == 1


def compressed(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int, side: int = 32) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def test_one_picture_in_two_files_is_found_within_a_pair_and_across_pairs(tmp_path):
    first, second = photo(0), photo(1)
    found = problems(
        tmp_path,
        image_pair(0, compressed(first, "PNG"), compressed(first, "BMP")),
        image_pair(1, compressed(first, "PNG"), compressed(first, "JPEG", quality=90)),
        image_pair(2, compressed(first, "PNG"), compressed(second, "PNG"), prompt="same"),
        image_pair(3, compressed(second, "WEBP", lossless=True), compressed(first, "TIFF"), prompt="same"),
    )
    assert found == [
        "0 (rows.csv row 0): candidates 0 and 1 are identical",
        "1 (rows.csv row 1): candidates 0 and 1 are one picture, compressed differently",
        "3 (rows.csv row 3): has the opposite preference of record 2, which is the same pair",
    ]


def test_pictures_that_differ_a_little_everywhere_are_not_one_picture(tmp_path):
    brighter = photo(0).point(lambda level: min(level + 12, 255))
    assert problems(tmp_path, image_pair(0, compressed(photo(0), "PNG"), compressed(brighter, "PNG"))) == []


def test_odd_characters_of_prompts_are_named(tmp_path):
    found = problems(tmp_path, pair(0, prompt="a\0cat"), pair(1, prompt="\ufeffcat"), pair(2, prompt="caf\ufffd"))
    assert [part in line for part, line in zip(("NUL", "U+FEFF", "U+FFFD"), found, strict=True)] == [True] * 3


def test_a_shortcut_of_the_whole_table_is_a_problem(tmp_path):
    pairs = [(compressed(photo(2 * i), "PNG"), compressed(photo(2 * i + 1), "JPEG", quality=95)) for i in range(24)]
    records = [image_pair(i, *(files if i % 2 else files[::-1]), prob=float(i % 2)) for i, files in enumerate(pairs)]
    (found,) = [problem for problem in problems(tmp_path, *records) if "file type" in problem]
    assert found.startswith(f"{tmp_path / 't'}: ")
    assert "100% of 24 pairs" in found
    assert "PNG wins, JPEG loses" in found
