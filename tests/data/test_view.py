"""A view gives what the transforms give on whole records, and reads images only when a record is asked for."""

from __future__ import annotations

import functools
import pickle
import tempfile
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core.errors import RecordError
from diffalign.data.records import Candidate, Record
from diffalign.data.table import CHUNK, write_table
from diffalign.data.transforms import apply, by_user, drop_ties, flip_labels, invert, min_margin, orient, pairs, soft_label
from diffalign.data.view import Entry, View, without_content

STRICT = [pairs, drop_ties, orient]
CHAINS = [
    [],
    [pairs],
    STRICT,
    [pairs, orient, invert],
    [functools.partial(pairs, how="best_worst"), orient],
    [functools.partial(pairs, how="adjacent"), functools.partial(flip_labels, share=0.5), orient],
    [functools.partial(pairs, score="likes"), functools.partial(min_margin, margin=1.0, score="likes")],
    [functools.partial(by_user, only=["u"]), pairs, orient],
]


def candidates(kind):
    content = {"image": st.binary(max_size=8)} if kind == "image" else {"text": st.text(max_size=8)}
    scores = st.fixed_dictionaries({"likes": st.integers(0, 3).map(float)})
    return st.builds(Candidate, **content, scores=scores, rank=st.none() | st.sampled_from([1.0, 2.0, 3.0]), uid=st.text(max_size=3))


@st.composite
def record_lists(draw):
    """Return records of one kind: pairs with soft labels, rankings with ties and gaps, single candidates."""
    kind = draw(st.sampled_from(["image", "text"]))
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    records = []
    for number, count in enumerate(counts):
        shown = tuple(draw(candidates(kind)) for _ in range(count))
        prob = draw(st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0])) if count == 2 else None
        user = draw(st.sampled_from([None, "u", "v"]))
        records.append(Record(f"id {number}", f"prompt {number % 3}", shown, prob, user, source=f"row {number}"))
    return records


def labelled(record):
    return record if record.prob is not None else replace(record, prob=1.0)


@given(record_lists(), st.sampled_from(CHAINS), st.none() | st.integers(1, 12))
@settings(deadline=None, max_examples=100)
def test_a_view_gives_what_the_transforms_give_on_whole_records(records, chain, limit):
    with tempfile.TemporaryDirectory() as folder:
        written = write_table(f"{folder}/table", records)
        expected = list(apply(records[:limit], chain))
        if any(record.prob is None and len(record.candidates) > 1 for record in expected):
            with pytest.raises(RecordError, match="candidates and no label; put `pairs`"):
                View(written, chain, limit)
            return
        expected = [labelled(record) for record in expected]
        view = View(written, chain, limit)
        assert len(view) == len(expected)
        assert list(view) == expected
        assert [(e.id, e.prompt, e.prob) for e in view.entries] == [(r.id, r.prompt, r.prob) for r in expected]


def ranking(number, content=b"image", ranks=(1.0, 2.0, 2.0)):
    shown = tuple(Candidate(image=content + b" %d" % i, rank=rank) for i, rank in enumerate(ranks))
    return Record(f"r{number}", "a star", shown, source=f"row {number}")


@pytest.fixture
def table(tmp_path):
    """Return three images ranked 3, 1, 1 and a pair whose second image is preferred with 0.9."""
    pair = Record("p", "a ring", (Candidate(image=b"a"), Candidate(image=b"b")), 0.1, source="row 1")
    return write_table(tmp_path / "table", [ranking(0, ranks=(3.0, 1.0, 1.0)), pair])


def test_entries_by_hand(table):
    # ranked 1, 2, 0: pairs (1, 2) is a tie, (1, 0) and (2, 0) are strict; the pair is turned round
    assert View(table, [pairs, orient]).entries == [
        Entry(0, (1, 2), "r0/0-1", "a star", 0.5),
        Entry(0, (1, 0), "r0/0-2", "a star", 1.0),
        Entry(0, (2, 0), "r0/1-2", "a star", 1.0),
        Entry(1, (1, 0), "p", "a ring", 0.9),
    ]


def test_records_are_the_tables_own_with_new_order_id_and_label(table):
    view = View(table, STRICT)
    assert [[c.image for c in record.candidates] for record in view] == [[b"image 1", b"image 0"], [b"image 2", b"image 0"], [b"b", b"a"]]
    assert [record.source for record in view] == ["row 0", "row 0", "row 1"]


def test_a_view_is_a_sequence(table):
    view = View(table, STRICT)
    assert view[-1] == view[2]
    assert view[1:] == [view[1], view[2]]
    assert view[::-2] == [view[2], view[0]]
    with pytest.raises(IndexError):
        view[3]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 99])
def test_a_limit_counts_rows_of_the_table(table, limit):
    assert View(table, STRICT, limit).entries == [entry for entry in View(table, STRICT).entries if entry.row < limit]


def test_rows_are_counted_over_record_batches(tmp_path):
    records = [ranking(number, content=b"%d" % number) for number in range(CHUNK + 6)]
    view = View(write_table(tmp_path / "table", records), [functools.partial(pairs, how="best_worst")])
    assert [entry.row for entry in view.entries] == list(range(CHUNK + 6))
    assert view[CHUNK + 5].candidates[0].image == b"%d 0" % (CHUNK + 5)


def test_no_image_is_read_for_the_entries(tmp_path):
    size = 200_000
    table = write_table(tmp_path / "table", [ranking(number, content=bytes(size)) for number in range(20)])
    tracemalloc.start()
    try:
        view = View(table, STRICT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(view) == 40
    assert peak < size  # the table holds 60 images of this size
    assert len(view[0].candidates[0].image) > size


def test_light_records_keep_everything_but_the_content(table):
    for light, whole in zip(without_content(table), table, strict=True):
        assert [c.image for c in light.candidates] == [b"%d" % i for i in range(len(whole.candidates))]
        kept = tuple(replace(c, image=w.image) for c, w in zip(light.candidates, whole.candidates, strict=True))
        assert replace(light, candidates=kept) == whole


def test_a_view_travels_to_a_worker(table):
    view = View(table, STRICT)
    assert list(pickle.loads(pickle.dumps(view))) == list(view)


COLUMN_CHAINS = [
    STRICT,
    [pairs, orient, invert],
    [functools.partial(min_margin, margin=0.5), orient],
    [orient, functools.partial(min_margin, margin=1.0, score="likes")],
    [functools.partial(soft_label, score="likes", low=0.0, high=3.0, temperature=0.7), drop_ties, orient],
    [functools.partial(by_user, only=["u"]), pairs, by_user, orient],
]


@given(record_lists(), st.sampled_from(COLUMN_CHAINS), st.none() | st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=30)
def test_transforms_of_columns_do_what_they_do_record_by_record(records, chain, limit, all_pairs):
    if all_pairs:
        records = [replace(r, candidates=(r.candidates * 2)[:2], prob=i % 5 / 4) for i, r in enumerate(records)]
    with tempfile.TemporaryDirectory() as folder:
        written = write_table(f"{folder}/table", records)
        seen = []
        for columns in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not columns:
                    patch.setattr("diffalign.data.view.twins", lambda _: None)
                try:
                    view = View(written, chain, limit)
                    seen.append((list(view.entries), view.usage.facts()))
                except RecordError as error:
                    seen.append(str(error))
        assert seen[0] == seen[1]


def test_a_score_that_is_missing_somewhere_is_named_as_record_by_record(tmp_path):
    scored = [Candidate(image=b"a", scores={"likes": 1.0}), Candidate(image=b"b")]
    table = write_table(tmp_path / "t", [Record(str(i), "p", tuple(scored), 1.0, source=f"row {i}") for i in range(3)])
    with pytest.raises(RecordError, match="row 0: no score `likes`"):
        View(table, [functools.partial(min_margin, margin=1.0, score="likes")])


def test_a_weight_in_the_table_is_read_beside_records_without_one(tmp_path):
    shown = (Candidate(image=b"a"), Candidate(image=b"b"))
    records = [Record(str(i), "p", shown, 0.0, meta={"weight": "2.5"} if i == 1 else {}) for i in range(3)]
    view = View(write_table(tmp_path / "t", records), STRICT)
    assert [(entry.id, entry.weight, entry.order) for entry in view.entries] == [
        ("0", None, (1, 0)),
        ("1", 2.5, (1, 0)),
        ("2", None, (1, 0)),
    ]
    assert view.entries.weighted


def test_some_entries_are_taken_and_travel_to_another_process(tmp_path):
    records = [replace(ranking(number), user=("ann", None, "bob")[number % 3]) for number in range(5)]
    entries = View(write_table(tmp_path / "t", records), [functools.partial(pairs, how="best_worst")]).entries
    some = pickle.loads(pickle.dumps(entries[::-2]))
    assert [entry.id for entry in some] == ["r4/0-2", "r2/0-2", "r0/0-2"]
    assert some == [entries[4], entries[2], entries[0]]
    names, owner = some.users
    assert (names, owner.tolist()) == (["ann", "bob"], [-1, 1, 0])
    assert some.prompts == ("a star",)
    assert not some.conversational
