"""A bank keeps rows across runs, knows which are there, and refuses what was made from something else."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.errors import TableError
from diffalign.data import cache
from diffalign.data.cache import Bank, check_room, filling, fingerprint, open_folder, packed, row_shape, unpacked

FACTS = {"table": "abc", "model": "def", "framing": {"resolution": 8}}


def bank(folder, rows=6, shape=(2, 3), dtype="float32"):
    return Bank(folder, "latents", rows, shape, dtype)


def values(*numbers):
    return np.stack([np.full((2, 3), number, dtype=np.float32) for number in numbers])


def test_a_new_bank_lacks_every_row(tmp_path):
    assert bank(tmp_path).missing(range(6)) == [0, 1, 2, 3, 4, 5]


def test_rows_come_back_in_the_order_asked_for(tmp_path):
    own = bank(tmp_path)
    own.write([4, 1], values(4, 1))
    assert np.array_equal(own.read([1, 4, 1]), values(1, 4, 1))
    assert own.read([1]).dtype == np.float32


def test_missing_rows_are_told_once_each_and_ascending(tmp_path):
    own = bank(tmp_path)
    own.write([2], values(2))
    assert own.missing([5, 2, 0, 5]) == [0, 5]
    assert own.missing([2]) == []
    assert own.missing([]) == []


def test_a_bank_goes_on_where_it_was(tmp_path):
    bank(tmp_path).write([0, 3], values(0.5, 3))
    again = bank(tmp_path)
    assert again.missing(range(6)) == [1, 2, 4, 5]
    assert np.array_equal(again.read([3, 0]), values(3, 0.5))


def test_a_row_that_is_not_there_is_refused(tmp_path):
    own = bank(tmp_path)
    own.write([0], values(0))
    with pytest.raises(TableError, match="`latents` lacks rows; remove the folder"):
        own.read([0, 1])


def test_what_is_read_is_a_copy(tmp_path):
    own = bank(tmp_path)
    own.write([0], values(1))
    own.read([0])[:] = 7
    assert np.array_equal(own.read([0]), values(1))


@pytest.mark.parametrize("other", [{"rows": 7}, {"shape": (3, 2)}, {"shape": (6,)}, {"dtype": "float16"}])
def test_a_bank_of_another_shape_or_type_is_refused(tmp_path, other):
    bank(tmp_path)
    with pytest.raises(TableError, match=r"latents.npy: .*\(6, 2, 3\)"):
        bank(tmp_path, **other)


def test_a_row_counts_only_once_its_numbers_are_on_disk(tmp_path, monkeypatch):
    def killed(file):
        raise KeyboardInterrupt

    own = bank(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            own.write([0], values(1))
    assert bank(tmp_path).missing([0]) == [0]


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_what_was_stored(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    own = bank(tmp_path)
    own.write([3], values(3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TableError, match=r"latents\.npy: .*No space left"):
            own.write([4, 5], values(1, 2))
    assert own.missing(range(6)) == [0, 1, 2, 4, 5]
    own.write([4, 5], values(1, 2))
    assert np.array_equal(own.read([5, 3, 4]), values(2, 3, 1))


def test_flags_do_not_outlive_the_numbers(tmp_path):
    bank(tmp_path).write([0], values(1))
    (tmp_path / "latents.npy").unlink()
    assert bank(tmp_path).missing([0]) == [0]


def test_numbers_without_flags_are_made_again(tmp_path):
    bank(tmp_path).write([0], values(1))
    (tmp_path / "latents.checks.npy").unlink()
    assert bank(tmp_path).missing([0]) == [0]


@pytest.mark.parametrize("file", ["latents.npy", "latents.checks.npy"])
@pytest.mark.parametrize("content", [b"", b"not an array at all"])
def test_a_damaged_file_is_refused_by_name(tmp_path, file, content):
    bank(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(TableError, match=rf"{file}: damaged"):
        bank(tmp_path)


@pytest.mark.parametrize("damage", ["zeros", "one bit", "moved"])
def test_a_row_that_was_damaged_is_not_read_and_computed_anew(tmp_path, damage):
    own = bank(tmp_path)
    own.write([1, 2, 4], values(1, 2, 4))
    content, row = bytearray((tmp_path / "latents.npy").read_bytes()), 24  # bytes
    place = len(content) - 4 * row  # of row 2 of 6
    whole, before = content[place : place + row], content[place - row : place]
    content[place : place + row] = {"zeros": bytes(row), "one bit": bytes([whole[0] ^ 1, *whole[1:]]), "moved": before}[damage]
    (tmp_path / "latents.npy").write_bytes(content)
    own = bank(tmp_path)
    assert np.array_equal(own.read([1, 4]), values(1, 4))
    with pytest.raises(TableError, match=r"latents\.npy: damaged: 1 of 6 rows .*from row 2 on; start again"):
        own.read([4, 2])
    assert own.missing(range(6)) == [0, 2, 3, 5]
    own.write([2], values(2))
    assert np.array_equal(bank(tmp_path).read([2, 1]), values(2, 1))


def test_a_file_that_was_cut_off_lacks_the_rows_behind_the_cut(tmp_path, caplog):
    own = bank(tmp_path)
    own.write(range(6), values(*range(1, 7)))
    file = tmp_path / "latents.npy"
    os.truncate(file, file.stat().st_size - 30)  # within row 4 of six rows of 24 bytes
    with pytest.raises(TableError, match=r"latents\.npy: damaged: 2 of 6 rows"):  # a run that has it open
        own.read([5])
    own.write([4, 5], values(5, 6))
    os.truncate(file, file.stat().st_size - 30)
    assert bank(tmp_path).missing(range(6)) == [4, 5]  # one that starts
    assert "latents.npy was cut off: 2 of 6 rows" in caplog.text


def test_zeros_take_no_room_and_come_back(tmp_path):
    rows = np.zeros((3, 64, 1024), np.float32)
    rows[0, :5], rows[1, 60:], rows[2, [0, 63]] = 1.5, -2.5, 3.5  # padding behind, before and in the middle
    own = Bank(tmp_path, "words", 3, (64, 1024), "float32")
    own.write(range(3), rows)
    assert np.array_equal(own.read([2, 0, 1]), rows[[2, 0, 1]])
    assert (tmp_path / "words.npy").stat().st_blocks * 512 < (5 + 4 + 2 + 3 * 4) * 4096  # of 192 blocks of 4096 bytes
    (tmp_path / "words.checks.npy").unlink()
    again = Bank(tmp_path, "words", 3, (64, 1024), "float32")
    again.write(range(3), rows[::-1])  # over numbers that are there, in place of which there must be zeros
    assert np.array_equal(again.read(range(3)), rows[::-1])


def test_one_run_at_a_time_fills_a_folder(tmp_path, caplog):
    order = []

    def other():
        with filling(tmp_path):
            order.append("other")

    with filling(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        while "is being filled by another run" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    assert str(tmp_path) in caplog.text


def test_rows_between_those_of_one_process_may_be_written_by_another_meanwhile(tmp_path, monkeypatch):
    mine, theirs = (Bank(tmp_path, "frames", 16, (6,), "float32") for _ in range(2))
    places, calls = cache._with_numbers, []

    def between(before, run):
        calls.append(run)
        if len(calls) == 2:  # row 0 is written, and row 2 about to be
            theirs.write([1], np.full((1, 6), 2.0, np.float32))
        return places(before, run)

    monkeypatch.setattr(cache, "_with_numbers", between)
    mine.write([0, 2], np.array([6 * [1.0], 6 * [3.0]], np.float32))
    assert mine.read([0, 1, 2])[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_a_bank_travels_to_a_worker_as_its_place_on_disk(tmp_path):
    own = bank(tmp_path, rows=5000)
    own.write([4000], values(4))
    packed = pickle.dumps(own)
    assert len(packed) < 1000  # not the 120 kB of its numbers
    assert np.array_equal(pickle.loads(packed).read([4000]), values(4))


def test_arrays_of_one_shape_lie_in_a_bank_as_they_are():
    assert row_shape([(2, 3, 4), (2, 3, 4)]) == (2, 3, 4)
    rows = np.arange(48.0).reshape(2, 2, 3, 4)
    assert packed(rows, (2, 3, 4)) is rows
    assert unpacked(rows, (2, 3, 4)) is rows


@pytest.mark.parametrize("count", [0, 1, 3])
def test_arrays_of_several_shapes_share_a_bank_as_long_as_the_longest(tmp_path, count):
    shapes = [(2, 3, 4), (2, 5, 2), (2, 2, 5)]
    own = Bank(tmp_path, "latents", 9, row_shape(shapes), "float32")
    assert np.load(tmp_path / "latents.npy").shape == (9, 24)
    stored = [np.random.default_rng(i).normal(size=(count, *shape)).astype(np.float32) for i, shape in enumerate(shapes)]
    for i, values in enumerate(stored):
        own.write(range(3 * i, 3 * i + count), packed(values, row_shape(shapes)))
    for i, values in enumerate(stored):
        assert np.array_equal(unpacked(own.read(range(3 * i, 3 * i + count)), shapes[i]), values)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans()))
def test_a_fingerprint_does_not_depend_on_the_order_of_the_facts(facts):
    assert fingerprint(facts) == fingerprint(dict(reversed(facts.items())))
    assert fingerprint(facts) != fingerprint(facts | {"another": 1})


def test_the_same_facts_open_the_same_folder_and_others_another(tmp_path):
    folder = open_folder(tmp_path, "latents", FACTS)
    assert folder.is_dir()
    assert open_folder(tmp_path, "latents", FACTS) == folder
    assert open_folder(tmp_path, "prompts", FACTS) != folder
    for other in ({"model": "xyz"}, {"table": "abd"}, {"framing": {"resolution": 16}}):
        assert open_folder(tmp_path, "latents", FACTS | other) != folder


def test_a_folder_says_what_it_was_computed_from(tmp_path):
    manifest = json.loads((open_folder(tmp_path, "latents", FACTS) / "manifest.json").read_text())
    assert manifest == {"fingerprint": fingerprint(FACTS), **FACTS}


def test_a_stale_fingerprint_is_refused(tmp_path):
    folder = open_folder(tmp_path, "latents", FACTS)
    stale = {"fingerprint": fingerprint(FACTS | {"model": "older"}), **FACTS}
    (folder / "manifest.json").write_text(json.dumps(stale))
    with pytest.raises(TableError, match=r"stale fingerprint\); remove the folder"):
        open_folder(tmp_path, "latents", FACTS)


def test_opening_leaves_no_temporary_file(tmp_path):
    assert [path.name for path in open_folder(tmp_path, "latents", FACTS).iterdir() if path.suffix != ".lock"] == ["manifest.json"]


def test_bfloat16_is_rounded_as_torch_rounds_it(tmp_path):
    values = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(0)) * 300
    values[0, 0] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1.00390625])  # the last lies between two of them
    own = bank(tmp_path, 64, (3, 5), "bfloat16")
    own.write(range(64), values.numpy())
    assert torch.equal(torch.from_numpy(own.read(range(64))), values.bfloat16().float())
    assert own.row_bytes == 3 * 5 * 2
    assert np.array_equal(pickle.loads(pickle.dumps(own)).read([5]), own.read([5]))


def test_a_disk_that_is_too_small_is_named_before_anything_is_computed(tmp_path):
    check_room(tmp_path, 1)
    with pytest.raises(TableError, match=str(tmp_path)) as raised:
        check_room(tmp_path, 2**70)
    assert "cache_dir" in str(raised.value)
