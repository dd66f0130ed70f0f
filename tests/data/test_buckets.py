"""A record's images share the bucket nearest to them all, and an epoch is ordered so that batches hold one bucket, losing no record."""

from __future__ import annotations

import io

import numpy as np
import pytest
from diffusers.training_utils import find_nearest_bucket
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.data.buckets import block_order, grouped, image_size, nearest
from diffalign.data.pictures import decode_image
from diffalign.data.sampler import Sampler

sides = st.integers(1, 3000)
sizes = st.integers(1, 5)
buckets = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(np.array)


def test_the_bucket_is_nearest_to_the_geometric_mean_of_the_aspect_ratios():
    # 200 x 50 and 100 x 100 are 4 and 1 times as high as wide: their geometric mean is 2, the arithmetic one 2.5
    assert nearest([(200, 50), (100, 100)], [(40, 16), (32, 16), (16, 16)]) == 1
    # and a picture with its mirror about the diagonal is a square
    assert nearest([(64, 16), (16, 64)], [(64, 16), (32, 32), (16, 64)]) == 1


def test_aspect_ratios_are_compared_as_ratios():
    # 1.5 is 1.5 times 1 but only 4/3 times smaller than 2, though both are 0.5 away
    assert nearest([(96, 64)], [(32, 32), (64, 32)]) == 1


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=4), st.randoms())
def test_the_bucket_does_not_depend_on_the_order_of_the_candidates(images, random):
    options = [(48, 16), (32, 32), (16, 48)]
    shuffled = random.sample(images, len(images))
    ratio = np.exp(np.mean([np.log(height / width) for height, width in images]))
    assume(min(abs(ratio / edge - 1) for edge in (3**0.5, 3**-0.5)) > 1e-9)
    assert nearest(images, options) == nearest(shuffled, options)


@given(sides, sides)
def test_for_one_image_and_buckets_of_one_area_the_choice_is_that_of_diffusers(height, width):
    options = [(128, 8), (64, 16), (32, 32), (16, 64), (8, 128)]
    # half way between two buckets rounding decides
    assume(all(abs(height / width / edge - 1) > 1e-9 for edge in (8, 2, 0.5, 0.125)))
    assert nearest([(height, width)], options) == find_nearest_bucket(height, width, options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_a_header_tells_the_size_of_the_upright_picture(kind, orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(buffer, kind, exif=exif)
    upright = decode_image(buffer.getvalue(), "")
    assert image_size(buffer.getvalue(), "") == (upright.height, upright.width)


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_an_image_without_a_header_is_named(data):
    with pytest.raises(RecordError, match="row 7, candidate 1:"):
        image_size(data, "row 7, candidate 1")


def test_items_are_parted_in_the_order_in_which_their_kinds_appear():
    assert grouped(range(5), [2, 0, 2, 1, 0]) == [[0, 2], [1, 4], [3]]


def order(kinds, block, first=0, seed=0):
    return block_order(np.array(kinds), block, first, np.random.default_rng(seed))


def test_what_does_not_fill_a_block_of_its_own_is_put_together():
    # five of one bucket and three of another, in blocks of four: one whole block, and the fifth with the three
    found = order([0] * 5 + [1] * 3, 4)
    blocks = sorted([sorted((found[i : i + 4] >= 5).tolist()) for i in (0, 4)])
    assert blocks == [[False] * 4, [False, True, True, True]]


def test_an_epoch_that_begins_within_a_block_fills_that_first():
    # samples 6 to 14 in blocks of 4: two to fill up, then 8 to 12, then 12 to 14. Six zeros and two ones have one whole block.
    found = order([0] * 6 + [1] * 2, 4, first=6)
    assert (found[2:6] < 6).all()


def pure(found, kinds, block, first):
    """Return how many whole blocks of an epoch hold one bucket."""
    head = -first % block
    whole = kinds[found[head : head + max(len(found) - head, 0) // block * block]].reshape(-1, block)
    return int((whole == whole[:, :1]).all(axis=1).sum())


@given(buckets, sizes, st.integers(0, 200), st.integers(0, 5))
@settings(deadline=None)
def test_as_many_blocks_hold_one_bucket_as_can(kinds, block, first, seed):
    found = order(kinds, block, first, seed)
    assert sorted(found.tolist()) == list(range(len(kinds)))
    room = max(len(kinds) - -first % block, 0) // block
    assert pure(found, kinds, block, first) == min(sum(int(count) // block for count in np.bincount(kinds)), room)


@given(buckets, sizes, sizes, sizes, st.integers(0, 3))
@settings(deadline=None)
def test_every_epoch_is_a_permutation_of_the_records(kinds, batch_size, accumulation, processes, epoch):
    sampler = Sampler(len(kinds), batch_size, accumulation, processes, 0, 0, kinds)
    found = sampler.indices(range(epoch * len(kinds), (epoch + 1) * len(kinds)))
    assert sorted(position for position, _ in found) == list(range(len(kinds)))
    assert {own for _, own in found} == {epoch}


@given(buckets, sizes, sizes, sizes, st.integers(0, 9))
@settings(deadline=None)
def test_passes_hold_one_bucket_each_and_divide_the_samples_of_a_step(kinds, batch_size, accumulation, processes, step):
    effective, seen = batch_size * accumulation * processes, []
    for rank in range(processes):
        sampler = Sampler(len(kinds), batch_size, accumulation, processes, rank, 0, kinds)
        for samples in sampler.passes(step):
            assert len({int(kinds[position]) for position, _ in sampler.indices(samples)}) == 1
            assert len(samples) <= batch_size
            seen += samples
    assert sorted(seen) == list(range(step * effective, (step + 1) * effective))


@given(buckets, sizes, sizes, sizes)
@settings(deadline=None)
def test_accumulation_and_processes_do_not_change_which_record_a_sample_is(kinds, batch_size, accumulation, processes):
    plain, divided = (Sampler(len(kinds), batch_size, *parts, 0, 3, kinds) for parts in ((1, 1), (accumulation, processes)))
    assert plain.indices(range(100)) == divided.indices(range(100))


@given(buckets, sizes, sizes, st.integers(0, 6), st.integers(0, 6))
@settings(deadline=None)
def test_a_resumed_run_sees_what_the_whole_run_sees(kinds, batch_size, accumulation, first, more):
    whole, rest = (Sampler(len(kinds), batch_size, accumulation, 2, 1, 0, kinds) for _ in range(2))
    assert list(whole.batches(0, first + more)) == [*whole.batches(0, first), *rest.batches(first, first + more)]


def test_buckets_take_turns_and_epochs_differ():
    kinds = np.array([0] * 40 + [1] * 40)
    sampler = Sampler(80, 4, 1, 1, 0, 0, kinds)
    turns = [
        tuple(int(kinds[sampler.indices(samples)[0][0]]) for step in range(20) for samples in sampler.passes(20 * epoch + step))
        for epoch in (0, 1)
    ]
    assert all(sum(turn) == 10 for turn in turns)
    assert turns[0] != turns[1]
    assert turns[0] not in ((0,) * 10 + (1,) * 10, (1,) * 10 + (0,) * 10)
