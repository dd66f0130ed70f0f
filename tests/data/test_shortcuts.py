"""Cheap columns that tell the preferred candidate are found, and columns that do not are left in peace."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffalign.data.records import Candidate
from diffalign.data.shortcuts import Shortcut, kept_shares, shortcuts
from diffalign.data.table import write_table
from tests.data.text_pairs import pair


def picture(seed: int, width: int = 48, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def candidate(image: Image.Image, kind: str = "PNG", model: str | None = None, **options) -> Candidate:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Candidate(image=buffer.getvalue(), model=model)


def alarms(folder, make, count: int = 24, buckets=()) -> dict[str, Shortcut]:
    """Return the alarms of a table whose pairs are what `make` gives for a seed, winner first, in alternating order."""
    records = []
    for number in range(count):
        winner, loser = make(number)
        shown = (winner, loser) if number % 2 else (loser, winner)
        records.append(pair(number, candidates=shown, prob=float(number % 2)))
    return {found.column: found for found in shortcuts(write_table(folder, records), buckets) if found.alarms}


def test_each_cheap_column_is_found_where_it_tells_the_winner(tmp_path):
    def soft(seed):
        return candidate(picture(seed).filter(ImageFilter.GaussianBlur(2)), "BMP")

    def jpeg(seed, quality):
        return candidate(picture(seed), "JPEG", quality=quality)

    makes = {
        "file type": (lambda i: (candidate(picture(i), "PNG"), jpeg(i + 99, 95)), "PNG wins, JPEG loses"),
        "bytes": (
            lambda i: (jpeg(i, 95), jpeg(i + 99, 20)),
            "the larger file wins",
        ),
        "model": (lambda i: (candidate(picture(i), "BMP", "sdxl"), candidate(picture(i + 99), "BMP", "sd15")), "sdxl wins, sd15 loses"),
        "pixels": (lambda i: (candidate(picture(i, 40, 40)), candidate(picture(i + 99))), "the smaller picture wins"),
        "aspect": (lambda i: (candidate(picture(i)), candidate(picture(i + 99, 96, 48))), "the taller picture wins"),
        "crop": (lambda i: (candidate(picture(i)), candidate(picture(i + 99, 96, 48))), "the picture that the crop leaves whole wins"),
        "sharpness": (lambda i: (candidate(picture(i), "BMP"), soft(i + 99)), "the sharper picture wins"),
    }
    for column, (make, rule) in makes.items():
        found = alarms(tmp_path / column, make)
        assert (column, found[column].rule, found[column].pairs) == (column, rule, 24)
    assert set(alarms(tmp_path / "only", makes["model"][0])) == {"model"}


def test_columns_that_do_not_tell_the_winner_and_few_pairs_are_left_in_peace(tmp_path):
    assert alarms(tmp_path / "alike", lambda i: (candidate(picture(i), "BMP"), candidate(picture(i + 99), "BMP"))) == {}
    makes = [lambda i: (candidate(picture(i)), candidate(picture(i + 99), "JPEG")), lambda i: (Candidate(text="yes"), Candidate(text="no"))]
    for number, make in enumerate(makes):
        assert alarms(tmp_path / f"few-{number}", make, count=19) == {}
        assert alarms(tmp_path / f"enough-{number}", make, count=20) != {}


def test_a_category_is_told_by_the_other_pairs_alone(tmp_path):
    # each model appears in one pair, so nothing tells which of two would win
    names = lambda i: (candidate(picture(i), "BMP", f"a{i}"), candidate(picture(i + 99), "BMP", f"b{i}"))  # noqa: E731  # used once
    assert alarms(tmp_path / "t", names) == {}


def test_ranks_are_pairs_too_and_texts_are_told_by_their_length(tmp_path):
    ranked = [pair(i, prob=None, candidates=tuple(Candidate(text="x" * (9 - r), rank=float(r)) for r in (2, 1, 2, 3))) for i in range(5)]
    (found,) = [shortcut for shortcut in shortcuts(write_table(tmp_path / "t", ranked)) if shortcut.alarms]
    assert (found.column, found.rule, found.pairs, found.auc) == ("length", "the longer text wins", 25, 1.0)  # 5 pairs of unequal rank each


def test_the_interval_is_wilsons():
    # 16 of 20: Wilson's centre (16 + 1.92) / 23.84 = 0.7517, half width 1.96 / 23.84 x sqrt(3.2 + 0.96) = 0.1677
    low, high = Shortcut("bytes", "", 0.8, 20).interval
    assert (low, high) == (pytest.approx(0.5840, abs=1e-3), pytest.approx(0.9193, abs=1e-3))


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    broken = Candidate(image=b"none")
    assert shortcuts(write_table(tmp_path / "t", [pair(0, candidates=(broken, broken))])) == []


def test_the_kept_share_is_that_of_the_crop_to_a_square_or_to_the_nearest_bucket():
    # 1024 x 576 at a square keeps 576 / 1024
    assert kept_shares([(576, 1024), (512, 512)]) == [pytest.approx(0.5625), 1.0]
    assert kept_shares([(576, 1024)], [(512, 512), (576, 1024)]) == [1.0]
