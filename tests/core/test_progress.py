"""Progress as lines, where the output is no terminal."""

from __future__ import annotations

import pytest

from diffalign.core import progress as module
from diffalign.core.progress import progress


def test_a_log_gets_a_line_at_the_start_and_one_at_the_end(capsys):
    assert list(progress(range(3), desc="draw", unit="images")) == [0, 1, 2]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("draw: 0 of 3 images")
    assert last.startswith("draw: 3 of 3 images")


def test_a_counter_that_is_moved_names_values_with_its_lines(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.0)
    with progress(desc="train", unit="steps", total=4, initial=1) as bar:
        bar.set_postfix({"loss": 0.5})
        bar.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["train: 1 of 4 steps", "train: 3 of 4 steps"]
    assert "loss=0.5" in lines[1]


def test_values_alone_write_no_line(capsys):
    with progress(desc="train", unit="steps", total=4) as bar:
        capsys.readouterr()
        for step in range(3):
            bar.set_postfix({"loss": step})
        assert capsys.readouterr().err == ""


def test_what_has_no_length_is_counted_alone(capsys):
    assert len(list(progress(iter("abc"), desc="read", unit="rows"))) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["read: 0 rows", "read: 3 rows"]


def test_what_is_hidden_writes_nothing(capsys):
    assert list(progress([1, 2], desc="draw", unit="images", hidden=True)) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_loop_ends_as_any_other(count, capsys):
    assert len(list(progress(range(count), desc="draw", unit="images"))) == count
    assert f"{count} of {count}" in capsys.readouterr().err.splitlines()[-1]
