"""Pairs in buckets: both images of a pair in one, frames beside the latents, live and cached alike, nothing of another framing used."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.core.errors import RecordError, TableError
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.cache import Bank, open_folder
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing, candidate_pixels, record_generator
from diffalign.data.records import Candidate, Record
from diffalign.data.sampler import Sampler, loader, positions_by_bucket
from diffalign.data.table import write_table
from diffalign.data.transforms import drop_ties, invert, orient, pairs, prompt_only
from diffalign.data.view import View

LAND, SQUARE, TALL = (4, 12), (8, 8), (12, 4)  # 48, 64 and 48 pixels
FRAMING = Framing(8, random_crop=True, random_flip=True, buckets=(LAND, SQUARE, TALL))
# Width and height of the images of every record, and the bucket of their mean: 3, 1, 1/3, sqrt(3 / 3), sqrt(8 * 2), cube root of 1/64.
SHAPES = {
    "wide": ([(30, 10), (30, 10)], LAND),
    "square": ([(9, 9), (8, 8)], SQUARE),
    "tall": ([(10, 30), (20, 60)], TALL),
    "unlike": ([(30, 10), (10, 30)], SQUARE),
    "wide and wider": ([(32, 4), (20, 10)], LAND),
    "three": ([(8, 16), (8, 32), (8, 64)], TALL),
}


class Fake:
    """Encoders whose latents have half the sides of an image; they count images and the sizes that came together."""

    def __init__(self):
        self.images, self.sizes = 0, []

    def image(self, pixels, noise):
        self.images += len(pixels)
        self.sizes.append(tuple(pixels.shape[2:]))
        return torch.nn.functional.avg_pool2d(pixels[:, :2], 2) + 0.01 * noise

    def prompt(self, prompts):
        return {"embeds": torch.tensor([[float(len(prompt))] for prompt in prompts])}

    @property
    def encoders(self):
        return Encoders(self.image, self.prompt, lambda height, width: (2, height // 2, width // 2), "fake")


def picture(width, height, number):
    gradient = Image.linear_gradient("L").resize((width, height))
    return encode_image(gradient.point(lambda level: (level + 40 * number) % 256).convert("RGB"))


def records(probs=(1.0, 0.2)):
    for number, (name, (sizes, _)) in enumerate(SHAPES.items()):
        images = tuple(Candidate(image=picture(*size, number + i), rank=float(i)) for i, size in enumerate(sizes))
        yield Record(name, name, images, probs[number % 2] if len(images) == 2 else None, source=f"row {number}")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("pairs") / "table", records())


@pytest.fixture
def view(table):
    return View(table, [pairs, drop_ties, orient])


def cached(view, root, fake=None, framing=FRAMING, variants=1):
    return CachedPairs(view, (fake or Fake()).encoders, framing, variants, root, batch_size=4)


def live(view, framing=FRAMING, variants=1):
    return LivePairs(view, Fake().encoders, framing, variants)


def bucket_of(source, position):
    return FRAMING.buckets[source.buckets[position]]


def test_all_images_of_a_row_get_the_bucket_of_their_mean_in_every_order(table):
    for transforms in ([pairs, orient], [pairs, orient, invert]):
        view = View(table, transforms)
        source = live(view)
        found = {view.entries[position].id.split("/")[0]: bucket_of(source, position) for position in range(len(view))}
        assert found == {name: bucket for name, (_, bucket) in SHAPES.items()}


def test_both_candidates_of_a_pair_have_the_size_of_its_bucket(view):
    source = live(view)
    for position in range(len(view)):
        row, (height, width) = source[position, 0], bucket_of(source, position)
        assert row["pixels"].shape == (2, 3, height, width)
        assert row["noise"].shape == (2, 2, height // 2, width // 2)


def test_frames_stand_beside_their_candidates_after_a_swap(view):
    source = live(view)
    swapped = 0
    for position, entry in enumerate(view.entries):
        whole = view.table[entry.row]
        _, frames = candidate_pixels(whole, FRAMING, record_generator(whole.id, 0), bucket_of(source, position))
        assert torch.equal(source[position, 0]["frames"], frames[list(entry.order)])
        swapped += entry.order[0] > entry.order[1] and not torch.equal(frames[0], frames[1])
    assert swapped


@pytest.mark.parametrize("variants", [1, 3])
def test_live_and_cached_pairs_of_a_bucket_give_the_same_batch(view, tmp_path, variants):
    sources = live(view, variants=variants), cached(view, tmp_path, variants=variants)
    assert np.array_equal(sources[0].buckets, sources[1].buckets)
    for positions in positions_by_bucket(sources[1], 2):
        indices = [(position, epoch) for epoch in range(4) for position in positions]
        ours, stored = (source.to_batch([source[index] for index in indices]) for source in sources)
        torch.testing.assert_close(ours.x0, stored.x0, rtol=1e-6, atol=1e-6)
        assert torch.equal(ours.frames, stored.frames)
        assert ours.frames.shape == (len(indices), 2, 6)
        assert ours.ids == stored.ids


def test_images_of_one_size_are_encoded_together_and_each_once(view, tmp_path):
    fake = Fake()
    cached(view, tmp_path, fake)
    assert fake.images == sum(len(sizes) for sizes, _ in SHAPES.values())
    assert sorted(set(fake.sizes)) == sorted({LAND, SQUARE, TALL})
    assert len(fake.sizes) <= 4  # 6 rows in parts of 4


def test_a_second_construction_reads_no_header_and_encodes_nothing(view, tmp_path, monkeypatch):
    first = cached(view, tmp_path)
    monkeypatch.setattr("diffalign.data.buckets.image_size", lambda *_: pytest.fail("a header was read"))
    again = Fake()
    assert np.array_equal(cached(view, tmp_path, again).buckets, first.buckets)
    assert again.images == 0


def test_a_row_counts_only_if_latents_and_frames_are_there(view, tmp_path):
    cached(view, tmp_path)
    (folder,) = tmp_path.glob("latents-*")
    (folder / "frames.npy").unlink()
    fake = Fake()
    cached(view, tmp_path, fake)
    assert fake.images == sum(len(sizes) for sizes, _ in SHAPES.values())


@pytest.mark.parametrize(
    "framing", [Framing(8, True, True), Framing(8, True, True, (SQUARE,)), Framing(8, True, True, (LAND, TALL, SQUARE))]
)
def test_another_list_of_buckets_has_a_cache_of_its_own(view, tmp_path, framing):
    cached(view, tmp_path)
    fake = Fake()
    cached(view, tmp_path, fake, framing)
    assert fake.images > 0
    assert len(list(tmp_path.glob("latents-*"))) == 2


def test_a_cache_of_other_buckets_under_the_same_name_is_refused(view, tmp_path):
    cached(view, tmp_path)
    (folder,) = tmp_path.glob("latents-*")
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**facts, "fingerprint": "of something else"}))
    with pytest.raises(TableError, match="stale fingerprint"):
        cached(view, tmp_path)


def test_a_cache_from_before_there_were_frames_is_not_read(view, tmp_path):
    old = {"resolution": 8, "random_crop": False, "random_flip": False}
    folder = open_folder(tmp_path, "latents", {"table": view.table.fingerprint, "model": "fake", "framing": old, "variants": 1})
    images = sum(len(sizes) for sizes, _ in SHAPES.values())
    Bank(folder, "latents", images, (2, 4, 4), "float32").write(range(images), np.full((images, 2, 4, 4), np.nan, dtype=np.float32))
    fake = Fake()
    stored = cached(view, tmp_path, fake, Framing(8))
    assert fake.images == images
    assert all(stored[position, 0]["latents"].isfinite().all() for position in range(len(view)))


def test_cached_pairs_travel_to_a_worker(view, tmp_path):
    stored = cached(view, tmp_path)
    copy = pickle.loads(pickle.dumps(stored))
    assert all(torch.equal(copy[i, 0]["latents"], stored[i, 0]["latents"]) for i in range(len(view)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, in newer Pythons
@pytest.mark.parametrize("kind", ["live", "cached"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_a_batch_for_every_pass(view, tmp_path, kind, workers):
    source = live(view) if kind == "live" else cached(view, tmp_path)
    sampler = Sampler(len(view), 3, 2, 1, 0, 0, source.buckets)
    passes = [samples for step in range(4) for samples in sampler.passes(step)]
    assert len(passes) > 4 * 2  # some are split
    batches = list(loader(source, sampler, 0, 4, workers))
    assert [batch.ids for batch in batches] == [tuple(view.entries[p].id for p, _ in sampler.indices(samples)) for samples in passes]


def test_every_record_has_its_turn_in_parts_of_one_bucket(view):
    source = live(view)
    parts = positions_by_bucket(source, 2)
    assert sorted(position for part in parts for position in part) == list(range(len(view)))
    assert all(len(part) <= 2 and len({int(source.buckets[position]) for position in part}) == 1 for part in parts)
    assert positions_by_bucket(live(view, Framing(8)), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_prompts_alone_are_of_the_square_and_read_no_image(table, tmp_path, monkeypatch):
    monkeypatch.setattr("diffalign.data.buckets.image_size", lambda *_: pytest.fail("a header was read"))
    view = View(table, [prompt_only])
    for source in (live(view), cached(view, tmp_path)):
        batch = source.to_batch([source[position, 0] for position in range(3)])
        assert batch.x0.shape == (3, 0, 2, 4, 4)
        assert batch.frames.shape == (3, 0, 6)


def test_an_image_that_has_no_size_is_named(tmp_path):
    bad = Record("r", "", (Candidate(image=picture(8, 8, 0)), Candidate(image=b"no image")), 1.0, source="row 7")
    view = View(write_table(tmp_path / "table", [bad]), [])
    with pytest.raises(RecordError, match="row 7, candidate 1:"):
        live(view)
