"""Samples do not depend on how a batch is divided; live and cached pairs are the same; nothing is encoded twice."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffalign.core.errors import CheckpointError, LatentError, TableError
from diffalign.data.batch import CachedPairs, Encoders, LivePairs
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing
from diffalign.data.records import Candidate, Record
from diffalign.data.sampler import Sampler, loader, sample_generator, stacked, unstacked
from diffalign.data.table import write_table
from diffalign.data.transforms import drop_ties, orient, pairs
from diffalign.data.view import View

SHAPE = (2, 3, 3)
FRAMING = Framing(6, random_crop=True, random_flip=True)
EQUAL = {"rtol": 1e-6, "atol": 1e-6}


class Fake:
    """Linear encoders that count what they are given, and stop, if told to, after so many calls for images."""

    def __init__(self, fingerprint="fake", calls=None):
        self.images, self.prompts, self.calls, self.fingerprint = 0, [], calls, fingerprint

    def image(self, pixels, noise):
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls = None if self.calls is None else self.calls - 1
        self.images += len(pixels)
        means = torch.nn.functional.adaptive_avg_pool2d(pixels, SHAPE[1:])[:, :2]
        return means + 0.01 * noise

    def prompt(self, prompts):
        self.prompts += prompts
        numbers = torch.tensor([[sum(map(ord, prompt)), len(prompt)] for prompt in prompts], dtype=torch.float32)
        return {"embeds": numbers[:, :, None] * torch.ones(3), "pooled": numbers}

    @property
    def encoders(self):
        return Encoders(self.image, self.prompt, lambda height, width: SHAPE, self.fingerprint)


def picture(number):
    gradient = Image.linear_gradient("L").resize((9 + number % 3, 7))
    return encode_image(gradient.point(lambda level: (level + 17 * number) % 256).convert("RGB"))


def records():
    """Return pairs of either order, a tie, a ranking of three and one of four, under three prompts."""
    probs = [1.0, 0.1, 0.5, 0.8]
    shown = [(2, probs[i]) for i in range(4)] + [(3, None), (4, None)]
    start = 0
    for number, (count, prob) in enumerate(shown):
        ranked = tuple(Candidate(image=picture(start + i), rank=float(count - i)) for i in range(count))
        yield Record(f"r{number}", ["a star", "a ring", "a cube"][number % 3], ranked, prob, source=f"row {number}")
        start += count


IMAGES = 2 * 3 + 3 + 4  # of the records that stay when the tie is dropped


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return View(write_table(tmp_path_factory.mktemp("pairs") / "table", records()), [pairs, drop_ties, orient])


def cached(view, fake, root, variants=1, framing=FRAMING, batch_size=2):
    return CachedPairs(view, fake.encoders, framing, variants, root, batch_size)


def same(first, second):
    assert first.ids == second.ids
    assert torch.equal(first.prob, second.prob)
    torch.testing.assert_close(first.x0, second.x0, **EQUAL)
    for one, other in ((first.condition, second.condition), (first.empty, second.empty)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variants", [1, 3])
def test_live_and_cached_pairs_give_the_same_batch_for_the_same_draw(view, tmp_path, variants):
    live, stored = LivePairs(view, Fake().encoders, FRAMING, variants), cached(view, Fake(), tmp_path, variants)
    indices = [(position, epoch) for epoch in range(5) for position in range(len(view))]
    same(*(source.to_batch([source[index] for index in indices]) for source in (live, stored)))


def test_a_batch_is_what_the_view_says(view, tmp_path):
    stored = cached(view, Fake(), tmp_path)
    batch = stored.to_batch([stored[position, 0] for position in range(len(view))])
    # three pairs that are no ties, 3 pairs out of three, 6 out of four
    assert len(stored) == len(view) == 3 + 3 + 6
    assert batch.ids == tuple(record.id for record in view)
    assert batch.prob.tolist() == pytest.approx([record.prob for record in view])
    assert batch.x0.shape == (12, 2, *SHAPE)
    assert batch.condition["pooled"][:, 0].tolist() == [sum(map(ord, record.prompt)) for record in view]
    assert {name: value.shape for name, value in batch.empty.items()} == {"embeds": (1, 2, 3), "pooled": (1, 2)}


def test_the_preferred_candidate_comes_first(view):
    # r1 has prob 0.1: its candidates change places against the plain order, with the crop and noise that each had there
    plain, turned = (LivePairs(v, Fake().encoders, FRAMING, 1) for v in (View(view.table, [pairs]), view))
    assert torch.equal(turned[1, 0]["pixels"], plain[1, 0]["pixels"].flip(0))
    assert torch.equal(turned[1, 0]["noise"], plain[1, 0]["noise"].flip(0))
    assert turned[1, 0]["entry"].prob == pytest.approx(0.9)


def test_an_epoch_takes_the_next_variant(view):
    live = LivePairs(view, Fake().encoders, FRAMING, 3)
    epochs = [live[0, epoch]["noise"] for epoch in range(6)]
    assert all(torch.equal(epochs[i], epochs[i + 3]) for i in range(3))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_every_image_and_prompt_is_encoded_once(view, tmp_path):
    fake = Fake()
    cached(view, fake, tmp_path, variants=3)
    assert fake.images == 3 * IMAGES
    assert sorted(set(fake.prompts)) == ["", "a cube", "a ring", "a star"]
    assert all(fake.prompts.count(prompt) == 1 for prompt in ("a cube", "a ring", "a star"))


def test_a_second_construction_encodes_nothing_again(view, tmp_path):
    first, again = cached(view, Fake(), tmp_path), Fake()
    second = cached(view, again, tmp_path)
    assert again.images == 0
    assert again.prompts == [""]  # only to learn the shapes
    same(*(source.to_batch([source[i, 0] for i in range(len(view))]) for source in (first, second)))


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_cache_of_an_interrupted_fill_goes_on(view, tmp_path, calls):
    killed, again = Fake(calls=calls), Fake()
    with pytest.raises(KeyboardInterrupt):
        cached(view, killed, tmp_path)
    resumed = cached(view, again, tmp_path)
    assert killed.images + again.images == IMAGES
    whole = cached(view, Fake(), tmp_path / "uninterrupted")
    same(*(source.to_batch([source[i, 0] for i in range(len(view))]) for source in (resumed, whole)))


def test_two_runs_at_once_do_nothing_twice(view, tmp_path):
    fakes = Fake(), Fake()
    with ThreadPoolExecutor(2) as runs:
        stored = list(runs.map(lambda fake: cached(view, fake, tmp_path), fakes))
    assert sum(fake.images for fake in fakes) == IMAGES
    assert sorted(prompt for fake in fakes for prompt in fake.prompts if prompt) == ["a cube", "a ring", "a star"]
    same(*(source.to_batch([source[i, 0] for i in range(len(view))]) for source in stored))


def test_a_damaged_latent_is_named_and_the_next_run_encodes_its_record_alone(view, tmp_path):
    stored, again = cached(view, Fake(), tmp_path), Fake()
    (file,) = tmp_path.glob("latents-*/latents.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + bytes(4))  # of the last candidate of the last record
    with pytest.raises(TableError, match=f"{file}: damaged: 1 of 15 rows"):
        [stored[i, 0] for i in range(len(view))]
    cached(view, again, tmp_path)
    assert again.images == 4  # candidates of that record
    assert file.read_bytes() == whole


def test_other_transforms_of_the_table_find_their_rows_there(view, tmp_path):
    cached(View(view.table, [pairs, drop_ties, orient], limit=2), Fake(), tmp_path)
    fake = Fake()
    cached(view, fake, tmp_path)
    assert fake.images == IMAGES - 2 * 2


@pytest.mark.parametrize(
    ("change", "images", "prompts"),
    [({"framing": Framing(6)}, True, False), ({"variants": 2}, True, False), ({"model": "another"}, True, True)],
)
def test_what_was_made_otherwise_is_made_again(view, tmp_path, change, images, prompts):
    cached(view, Fake(), tmp_path)
    fake = Fake(change.get("model", "fake"))
    cached(view, fake, tmp_path, **{name: value for name, value in change.items() if name != "model"})
    assert (fake.images > 0, "a star" in fake.prompts) == (images, prompts)


def test_a_model_of_another_latent_shape_under_the_same_name_is_refused(view, tmp_path):
    cached(view, Fake(), tmp_path)
    fake = Fake()
    with pytest.raises(TableError, match=r"\(15, 2, 3, 3\).*\(15, 4, 3, 3\)"):
        CachedPairs(view, Encoders(fake.image, fake.prompt, lambda height, width: (4, 3, 3), fake.fingerprint), FRAMING, 1, tmp_path)


def overflowing(pixels, noise):
    raise LatentError("fake: latents that are not finite", [1])


@pytest.mark.parametrize("cache", [True, False])
def test_an_image_whose_latents_are_not_finite_is_named(view, tmp_path, cache):
    encoders = Encoders(overflowing, Fake().prompt, lambda height, width: SHAPE, "fake")

    def read():
        data = CachedPairs(view, encoders, FRAMING, 1, tmp_path) if cache else LivePairs(view, encoders, FRAMING, 1)
        data.to_batch([data[0, 0]])

    with pytest.raises(CheckpointError, match=r"fake: .*, candidate 1$"):
        read()


def test_cached_pairs_travel_to_a_worker_without_their_numbers(view, tmp_path):
    stored = cached(view, Fake(), tmp_path)
    copy = pickle.loads(pickle.dumps(stored))
    same(*(source.to_batch([source[i, 0] for i in range(len(view))]) for source in (stored, copy)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, in newer Pythons
@pytest.mark.parametrize("kind", ["live", "cached"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_passes_in_order(view, tmp_path, kind, workers):
    source = cached(view, Fake(), tmp_path, 2) if kind == "cached" else LivePairs(view, Fake().encoders, FRAMING, 2)
    sampler = Sampler(len(view), 3, 2, 1, 0, seed=0)
    expected = [source.to_batch([source[index] for index in indices]) for indices in sampler.batches(1, 4)]
    found = list(loader(source, sampler, 1, 4, workers))
    assert len(found) == 3 * 2
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_a_loader_makes_no_list_of_the_batches_of_a_long_run(view):
    source = LivePairs(view, Fake().encoders, FRAMING, 2)
    assert len(next(loader(source, Sampler(len(view), 2, 1, 1, 0, seed=0), 0, 10**12)).ids) == 2


sizes = st.integers(1, 4)


def step_samples(records, batch_size, accumulation, processes, seed, step):
    """Return the sample numbers of one optimiser step in the order in which its batch is made up."""
    ranks = [Sampler(records, batch_size, accumulation, processes, rank, seed) for rank in range(processes)]
    return [g for micro in range(accumulation) for own in ranks for g in own.samples(step, micro)]


@given(sizes, sizes, sizes, st.integers(0, 50))
def test_batch_accumulation_and_processes_only_divide_the_same_batch(batch_size, accumulation, processes, step):
    effective = batch_size * accumulation * processes
    assert Sampler(9, batch_size, accumulation, processes, 0, 0).effective == effective
    assert step_samples(9, batch_size, accumulation, processes, 0, step) == list(range(step * effective, (step + 1) * effective))


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None)
def test_every_epoch_is_a_permutation_of_the_records(records, seed, epoch):
    found = Sampler(records, 4, 1, 1, 0, seed).indices(range(epoch * records, (epoch + 1) * records))
    assert sorted(position for position, _ in found) == list(range(records))
    assert {own for _, own in found} == {epoch}


def test_epochs_and_seeds_are_ordered_apart():
    orders = [tuple(Sampler(50, 4, 1, 1, 0, seed).indices(range(50 * epoch, 50 * epoch + 50))) for seed in range(3) for epoch in range(3)]
    assert len({tuple(position for position, _ in order) for order in orders}) == 9


@given(st.integers(1, 7), sizes, sizes, st.integers(0, 6), st.integers(0, 6))
@settings(deadline=None)
def test_a_resumed_run_sees_what_the_whole_run_sees(records, batch_size, accumulation, first, more):
    sampler = Sampler(records, batch_size, accumulation, 2, 1, 0)
    assert list(sampler.batches(0, first + more)) == [*sampler.batches(0, first), *sampler.batches(first, first + more)]


def test_a_sample_has_its_own_generator_whoever_asks():
    sampler = Sampler(5, 4, 1, 1, 0, seed=7)
    drawn = [torch.rand(2, generator=g).tolist() for g in sampler.generators(range(3, 7))]
    assert drawn == [torch.rand(2, generator=sample_generator(7, g)).tolist() for g in range(3, 7)]
    others = [torch.rand(2, generator=sample_generator(*key)).tolist() for key in ((7, 7), (8, 3), (0, 73), (73, 0))]
    assert len({tuple(numbers) for numbers in drawn + others}) == 8


def test_rows_that_a_worker_hands_over_together_are_the_rows():
    rows = [{"x": torch.full((2,), i), "lists": torch.ones(i, 2), "condition": {"e": torch.tensor(i)}, "entry": f"r{i}"} for i in (1, 2, 3)]
    whole = stacked(rows)
    assert whole["x"].shape == (3, 2)  # one tensor, where rows fit together
    again = unstacked(whole, 3)
    assert [row["entry"] for row in again] == ["r1", "r2", "r3"]
    for row, other in zip(rows, again, strict=True):
        assert torch.equal(row["x"], other["x"])
        assert torch.equal(row["lists"], other["lists"])
        assert torch.equal(row["condition"]["e"], other["condition"]["e"])
