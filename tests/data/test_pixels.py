"""Images become squares, or fill a bucket; the candidates of a record share one crop and one flip, and say what their frame was."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing, candidate_pixels, record_generator
from diffalign.data.records import Candidate, Record

SIDE = 8
RANDOM = Framing(SIDE, random_crop=True, random_flip=True)
seeds = st.integers(0, 10_000)


def ruler(width, height, inverted=False):
    """Return an image whose red channel counts columns and whose green one counts rows; no two parts of it are alike."""
    red, green = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([red, green, np.full_like(red, 50)], axis=2).astype(np.uint8)
    return Image.fromarray(255 - pixels if inverted else pixels)


def record(*images):
    return Record("r", "a prompt", tuple(Candidate(image=encode_image(image)) for image in images), source="row 7")


def framed(images, framing, seed=0, size=None):
    return candidate_pixels(record(*images), framing, torch.Generator().manual_seed(seed), size)[0]


def frames(images, framing, seed=0, size=None):
    return candidate_pixels(record(*images), framing, torch.Generator().manual_seed(seed), size)[1].tolist()


def levels(pixels):
    """Return pixels in [-1, 1] as 0..255."""
    return ((pixels + 1.0) * 127.5).round().int()


def columns(pixels):
    """Return the column of the ruler that each column of (3, H, W) shows."""
    return levels(pixels)[0, 0].tolist()


def rows(pixels):
    return levels(pixels)[1, :, 0].tolist()


def test_black_is_minus_one_and_white_is_one():
    pixels = framed([Image.new("RGB", (9, 9), "black"), Image.new("RGB", (9, 9), "white")], Framing(SIDE))
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels[0], -torch.ones(3, SIDE, SIDE))
    assert torch.equal(pixels[1], torch.ones(3, SIDE, SIDE))


def test_an_image_of_the_right_size_is_left_as_it_is():
    expected = torch.from_numpy(np.array(ruler(SIDE, SIDE))).permute(2, 0, 1)
    assert torch.equal(levels(framed([ruler(SIDE, SIDE)], Framing(SIDE))[0]), expected.int())


@pytest.mark.parametrize(("width", "height", "left", "top"), [(20, 8, 6, 0), (8, 20, 0, 6), (8, 8, 0, 0), (12, 8, 2, 0)])
def test_the_middle_is_cropped_unless_asked_otherwise(width, height, left, top):
    # 20 - 8 = 12 columns too many, half of them on the left
    (pixels,) = framed([ruler(width, height)], Framing(SIDE))
    assert columns(pixels) == list(range(left, left + SIDE))
    assert rows(pixels) == list(range(top, top + SIDE))


@given(width=st.integers(1, 40), height=st.integers(1, 40), side=st.integers(1, 16), seed=seeds)
@settings(deadline=None, max_examples=100)
def test_any_size_becomes_the_square(width, height, side, seed):
    pixels = framed([ruler(width, height), ruler(height, width)], Framing(side, True, True), seed)
    assert pixels.shape == (2, 3, side, side)
    assert pixels.min() >= -1.0
    assert pixels.max() <= 1.0


@pytest.mark.parametrize("size", [(3, 3), (5, 2), (2, 5), (1, 1)])
def test_a_smaller_image_is_enlarged_and_covers_the_square(size):
    pixels = framed([Image.new("RGB", size, "white")], RANDOM)
    assert torch.equal(pixels, torch.ones(1, 3, SIDE, SIDE))


def test_the_shorter_side_is_resized_so_that_nothing_is_squeezed():
    # 40 x 16 becomes 20 x 8: every column of the result averages about two of the ruler's, and the middle stays the middle
    (pixels,) = framed([ruler(40, 16)], Framing(SIDE))
    assert columns(pixels)[3:5] == pytest.approx([18.5, 20.5], abs=0.6)
    assert np.diff(columns(pixels)) == pytest.approx(2.0, abs=1.0)


@given(seed=seeds)
@settings(deadline=None, max_examples=60)
def test_candidates_share_their_crop_and_their_flip(seed):
    for size in ((30, 8), (8, 30)):
        first, second = framed([ruler(*size), ruler(*size, inverted=True)], RANDOM, seed)
        assert torch.equal(levels(first), 255 - levels(second))


@given(seed=seeds)
@settings(deadline=None, max_examples=60)
def test_candidates_of_unlike_sizes_share_their_place_in_the_image(seed):
    # 12 and 24 columns of play: the wider image is cropped twice as far to the right
    first, second = (min(columns(p)) for p in framed([ruler(20, 8), ruler(32, 8)], Framing(SIDE, random_crop=True), seed))
    assert abs(second - 2 * first) <= 1


def test_a_flip_mirrors_and_nothing_else():
    seen = {tuple(columns(framed([ruler(20, 8)], Framing(SIDE, random_flip=True), seed)[0])) for seed in range(40)}
    assert seen == {tuple(range(6, 14)), tuple(range(13, 5, -1))}


def test_random_crops_reach_both_ends():
    seen = {columns(framed([ruler(12, 8)], Framing(SIDE, random_crop=True), seed)[0])[0] for seed in range(200)}
    assert seen == {0, 1, 2, 3, 4}


def test_without_chance_the_generator_does_not_matter():
    assert torch.equal(framed([ruler(20, 8)], Framing(SIDE), 1), framed([ruler(20, 8)], Framing(SIDE), 2))


@pytest.mark.parametrize("framing", [Framing(SIDE), Framing(16, random_crop=True), RANDOM])
def test_what_is_drawn_afterwards_does_not_depend_on_the_framing(framing):
    generator, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    candidate_pixels(record(ruler(20, 8)), framing, generator)
    candidate_pixels(record(ruler(9, 30), ruler(5, 5)), Framing(4), other)
    assert torch.equal(torch.randn(5, generator=generator), torch.randn(5, generator=other))


@pytest.mark.parametrize(
    ("width", "height", "size", "frame"),
    [
        # 32 / 60 makes 53 x 32 of it (53.3 rounded); 53 - 32 = 21 columns too many, the half of them, 10.5, rounded to the even 10
        (100, 60, (32, 32), [60, 100, 0, 10, 32, 32]),
        (60, 100, (32, 32), [100, 60, 10, 0, 32, 32]),
        # covering 48 rows and 32 columns takes 48 / 60: 80 x 48, and 80 - 32 = 48 columns too many
        (100, 60, (48, 32), [60, 100, 0, 24, 48, 32]),
        # 24 rows and 64 columns take 64 / 100: 64 x 38 (38.4 rounded), and 38 - 24 = 14 rows too many
        (100, 60, (24, 64), [60, 100, 7, 0, 24, 64]),
        # what is enlarged keeps the size of its file
        (10, 6, (12, 20), [6, 10, 0, 0, 12, 20]),
    ],
)
def test_a_frame_is_the_files_size_the_crop_in_the_resized_image_and_the_size_of_the_result(width, height, size, frame):
    images = [ruler(width, height)]
    assert frames(images, Framing(32), size=size) == [frame]
    assert framed(images, Framing(32), size=size).shape[2:] == size


def test_a_frame_is_float32_and_every_candidate_has_its_own():
    found = candidate_pixels(record(ruler(20, 8), ruler(8, 30)), Framing(SIDE), torch.Generator())[1]
    assert found.dtype == torch.float32
    assert found.tolist() == [[8, 20, 0, 6, 8, 8], [30, 8, 11, 0, 8, 8]]


def test_the_size_of_a_file_is_that_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    buffer = io.BytesIO()
    ruler(20, 8).save(buffer, "PNG", exif=exif)
    turned = Record("r", "", (Candidate(image=buffer.getvalue()),))
    assert candidate_pixels(turned, Framing(SIDE), torch.Generator())[1].tolist() == [[20, 8, 6, 0, 8, 8]]


@given(seed=seeds)
@settings(deadline=None, max_examples=60)
def test_a_crop_lies_where_its_frame_says_in_the_mirrored_image_after_a_flip(seed):
    # the ruler is not resized, so that its column c is column 21 - 1 - c of the mirrored one
    seen = columns(framed([ruler(21, 11)], RANDOM, seed, (11, 8))[0])
    left = seen[0] if seen[0] < seen[1] else 20 - seen[0]
    assert frames([ruler(21, 11)], RANDOM, seed, (11, 8)) == [[11, 21, 0, left, 11, 8]]


def test_the_middle_of_an_odd_image_is_not_in_its_mirrored_middle():
    # 13 columns too many, 6 on the left; after a flip 13 - 6 = 7 are
    assert {frames([ruler(21, 8)], Framing(SIDE, random_flip=True), seed)[0][3] for seed in range(20)} == {6, 7}


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.tuples(st.integers(1, 24), st.integers(1, 24)), seed=seeds)
@settings(deadline=None, max_examples=100)
def test_every_image_covers_every_size(width, height, size, seed):
    images = [Image.new("RGB", (width, height), "white"), Image.new("RGB", (height, width), "white")]
    assert torch.equal(framed(images, RANDOM, seed, size), torch.ones(2, 3, *size))


@given(seed=seeds)
@settings(deadline=None, max_examples=60)
def test_candidates_share_crop_and_flip_in_a_bucket(seed):
    first, second = framed([ruler(30, 12), ruler(30, 12, inverted=True)], RANDOM, seed, (12, 10))
    assert torch.equal(levels(first), 255 - levels(second))


def first_numbers(record_id, variant):
    return tuple(torch.rand(3, generator=record_generator(record_id, variant)).tolist())


def test_a_record_and_variant_always_draw_the_same():
    assert first_numbers("r", 1) == first_numbers("r", 1)


def test_records_and_variants_draw_apart():
    keys = [("r", 0), ("r", 1), ("r", 11), ("r1", 1), ("r\0001", 1), ("s", 0), ("", 0)]
    assert len({first_numbers(*key) for key in keys}) == len(keys)


def test_variants_of_a_record_are_cropped_and_flipped_apart():
    seen = {tuple(columns(candidate_pixels(record(ruler(30, 8)), RANDOM, record_generator("r", v))[0][0])) for v in range(12)}
    assert len(seen) > 4
    assert {line[0] < line[-1] for line in seen} == {True, False}


@pytest.mark.parametrize("bad", [Candidate(image=b"not an image"), Candidate(image=b""), Candidate(text="no image")])
def test_an_image_that_does_not_decode_is_named(bad):
    whole = Candidate(image=encode_image(ruler(8, 8)))
    with pytest.raises(RecordError, match="row 7, candidate 1:"):
        candidate_pixels(Record("r", "", (whole, bad), source="row 7"), Framing(SIDE), torch.Generator())


def test_a_strip_is_cropped_without_being_enlarged_as_a_whole(monkeypatch):
    monkeypatch.setattr("diffalign.data.pixels.MOST_PIXELS", 10_000)
    colours = np.zeros((200, 1, 3), dtype=np.uint8)
    colours[95:105] = 255  # the middle, of which a square shows one pixel
    (pixels,), (frame,) = candidate_pixels(record(Image.fromarray(colours)), Framing(64), torch.Generator())
    assert pixels.shape == (3, 64, 64)
    assert (pixels == 1.0).all()
    assert frame.tolist() == [200, 1, 6368, 0, 64, 64]  # the crop lies in the middle of 12,800 rows


def test_a_large_jpeg_that_is_decoded_at_a_fraction_has_the_frame_and_the_look_of_the_whole():
    colours = np.random.default_rng(0).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((904, 600), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    whole = encode_image(Image.open(io.BytesIO(buffer.getvalue())))  # which is decoded at its full size
    shown = Record("r", "", (Candidate(image=buffer.getvalue()), Candidate(image=whole)), source="row 7")
    pixels, frames = candidate_pixels(shown, Framing(64, random_crop=True), torch.Generator().manual_seed(0))
    assert torch.equal(frames[0], frames[1])
    assert frames[0, :2].tolist() == [600, 904]
    assert (pixels[0] - pixels[1]).abs().mean() < 2 / 127.5
