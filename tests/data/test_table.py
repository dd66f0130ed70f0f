"""Tables give back what was written and count it; records that do not fit are refused."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core.errors import RecordError, TableError
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.table import CHUNK, MANIFEST, SCHEMA, read_table, to_row, write_table
from tests.data.text_pairs import names, pair, pairs

words = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe_words = st.none() | words


def candidates(content: str) -> st.SearchStrategy[Candidate]:
    shown = {"image": st.binary(max_size=20)} if content == "image" else {"text": words}
    return st.builds(
        Candidate,
        **shown,
        scores=st.dictionaries(words, numbers, max_size=3),
        rank=st.none() | numbers,
        model=maybe_words,
        uid=maybe_words,
        prompt=maybe_words,
    )


@st.composite
def record_lists(draw: st.DrawFn) -> list[Record]:
    """Return records of one kind with distinct ids."""
    content = draw(st.sampled_from(["image", "text"]))
    one = st.builds(
        Record,
        id=words,
        prompt=words,
        candidates=st.lists(candidates(content), min_size=1, max_size=4).map(tuple),
        prob=st.none() | st.floats(0.0, 1.0),
        user=maybe_words,
        source=words,
        messages=st.lists(st.builds(Message, words, words), max_size=2).map(tuple),
        meta=st.dictionaries(words, words, max_size=2),
    )
    return draw(st.lists(one, min_size=1, max_size=6, unique_by=lambda record: record.id))


@given(record_lists())
@settings(deadline=None, max_examples=60)
def test_any_record_comes_back_as_it_was_written(records):
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder) / "t", records)
        assert list(table) == records
        assert [table[index] for index in range(len(table))] == records
        assert list(read_table(table.path)) == records
        assert table.column("id") == [record.id for record in records]


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5])
def test_random_access_is_iteration_on_both_sides_of_a_chunk(tmp_path, count):
    records = pairs(count)
    table = write_table(tmp_path / "t", records)
    assert len(table) == count
    assert [table[index] for index in range(count)] == list(table) == records
    assert [table[index - count] for index in range(count)] == records
    assert sum(batch.num_rows for batch in table.batches()) == count


def test_slices_are_those_of_a_list(tmp_path):
    records = pairs(CHUNK + 9)
    table = write_table(tmp_path / "t", records)
    for part in (slice(None), slice(3, 7), slice(-5, None), slice(None, None, -1), slice(60, 70), slice(5, 5), slice(1, 200, 17)):
        assert table[part] == records[part]


@pytest.mark.parametrize("index", [3, -4, 10**9])
def test_a_row_beyond_the_end_is_an_index_error(tmp_path, index):
    table = write_table(tmp_path / "t", pairs(3))
    with pytest.raises(IndexError, match="of a table of 3 rows"):
        table[index]


def test_scores_of_any_mapping_are_stored(tmp_path):
    record = pair(0, candidates=(Candidate(text="a", scores=MappingProxyType({"clip": 1.0})),), meta=MappingProxyType({"k": "v"}))
    stored = write_table(tmp_path / "t", [record])[0]
    assert (stored.candidates[0].scores, stored.meta) == ({"clip": 1.0}, {"k": "v"})


def test_a_table_travels_to_another_process(tmp_path):
    table = write_table(tmp_path / "t", pairs(3))
    assert list(pickle.loads(pickle.dumps(table))) == list(table)


def test_the_manifest_counts_what_was_written(tmp_path):
    shown = (Candidate(text="a", scores={"clip": 0.5, "hps": -2.0}), Candidate(text="b", scores={"clip": -1.5}))
    records = [
        pair(0, candidates=shown, user="ann"),
        pair(1, prob=0.0, user="bob"),
        pair(2, prob=0.5, user="ann"),
        pair(3, prob=0.75),
        pair(4, prob=None),
    ]
    manifest = write_table(tmp_path / "t", records, licence="MIT").manifest
    assert {key: manifest[key] for key in ("version", "rows", "kind", "strict", "ties", "users", "licence")} == {
        "version": 1,
        "rows": 5,
        "kind": "text",
        "strict": 3,  # 1.0, 0.0 and 0.75
        "ties": 1,
        "users": 2,
        "licence": "MIT",
    }
    assert manifest["scores"] == {"clip": {"min": -1.5, "max": 0.5}, "hps": {"min": -2.0, "max": -2.0}}
    assert (manifest["rejected_rows"], manifest["rejected"]) == (0, [])
    assert json.loads((tmp_path / "t" / MANIFEST).read_text()) == manifest


def test_rows_rejected_while_reading_stand_in_the_manifest(tmp_path):
    rejected: list[dict[str, str]] = []

    def reading():
        yield pair(0)
        rejected.extend({"where": f"row {number}", "reason": f"row {number}: no label"} for number in range(1500))
        yield pair(1)

    manifest = write_table(tmp_path / "t", reading(), rejected=rejected).manifest
    assert manifest["rejected_rows"] == 1500
    assert manifest["rejected"] == rejected[:1000]


def test_a_keyword_cannot_replace_what_the_manifest_counts(tmp_path):
    with pytest.raises(TableError, match="the manifest's `scores` is counted"):
        write_table(tmp_path / "t", pairs(1), scores={"clip": [0, 1]})
    assert names(tmp_path) == []


def test_the_fingerprint_follows_everything_a_model_or_an_objective_sees(tmp_path):
    base = pair(0, messages=(Message("user", "hi"),), user="ann")
    first, second = base.candidates
    changed = [
        replace(base, id="1"),
        replace(base, prompt="other"),
        replace(base, prob=0.5),
        replace(base, user="bob"),
        replace(base, messages=(Message("system", "hi"),)),
        replace(base, candidates=(second, first)),
        replace(base, candidates=(replace(first, text="Yes"), second)),
        replace(base, candidates=(replace(first, scores={"clip": 1.0}), second)),
        replace(base, candidates=(replace(first, rank=1.0), second)),
        replace(base, candidates=(replace(first, prompt="own"), second)),
    ]
    prints = [write_table(tmp_path / str(index), [record]).fingerprint for index, record in enumerate([base, *changed])]
    assert len(set(prints)) == len(prints)
    moved = write_table(tmp_path / "moved", [replace(base, source="elsewhere.csv row 9", meta={"k": "v"})])
    assert moved.fingerprint == prints[0]


def test_an_id_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"rows\.csv row 0: .* id `0`; ids must be unique"):
        write_table(tmp_path / "t", [*pairs(CHUNK), pair(0)])
    assert names(tmp_path) == []


def test_images_and_texts_do_not_share_a_table(tmp_path):
    with pytest.raises(RecordError, match=r"row 1: .*; expected images, texts or prompts alone"):
        write_table(tmp_path / "t", [pair(0), pair(1, candidates=(Candidate(image=b"x"),))])
    assert names(tmp_path) == []


def test_an_invalid_record_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(RecordError, match="the preference is 2"):
        write_table(tmp_path / "t", [pair(0), pair(1, prob=2.0)])
    assert names(tmp_path) == []


def test_a_batch_of_images_may_pass_two_gigabytes():
    # 32-bit offsets would end at 2 GiB; 64 rows of nine 4 MB images are 2.3 GB
    content = SCHEMA.field("candidates").type.value_type
    assert (content.field("image").type, content.field("text").type) == (pa.large_binary(), pa.large_string())
    assert set(to_row(pair(0))) == set(SCHEMA.names)
