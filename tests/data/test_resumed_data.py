"""A run goes on with the data that it was begun on: other data are imported anew or refused, never silently left aside."""

from __future__ import annotations

import os
import shutil

import pytest

from diffalign.core.errors import TableError
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from tests.data.image_files import put

LINES = "prompt,response_0,response_1,winner\n"


@pytest.fixture
def begun(tmp_path):
    """Return a function that opens the data of a run, begun on votes.csv with three pairs, that is gone on with."""
    put(tmp_path, {"votes.csv": LINES + "p,a,b,A\nq,c,d,A\nr,e,f,B\n", "other.csv": LINES + "x,a,b,A\ny,c,d,B\n"})

    def opened(resume: str | None = "latest", **changes):
        config = TrainConfig(dataset_name=str(tmp_path / "votes.csv"), output_dir=str(tmp_path / "run"), resume_from_checkpoint=resume)
        config = TrainConfig(**{name: getattr(config, name) for name in config.__dataclass_fields__} | changes)
        return [entry.prompt for entry in open_dataset(config, recipe_of(config, "text")).entries]

    assert opened(resume=None) == ["p", "q", "r"]
    return opened


def test_the_same_data_go_on_and_are_not_imported_again(begun, tmp_path, monkeypatch):
    (tmp_path / "run/checkpoint-1").mkdir()
    monkeypatch.setattr("diffalign.methods.builders.data.import_dataset", None)
    assert begun() == ["p", "q", "r"]


def test_other_data_are_refused_where_there_is_a_checkpoint_and_imported_where_there_is_none(begun, tmp_path):
    changes = {
        "dataset_name": {"dataset_name": str(tmp_path / "other.csv")},
        "limit": {"max_train_samples": 2},
        "reader": {"reader": "prompts"},
    }
    (tmp_path / "run/checkpoint-1").mkdir()
    for name, change in changes.items():
        with pytest.raises(TableError, match=rf"not the data that the checkpoints in .*run were trained on \({name}: "):
            begun(**change)
    assert begun() == ["p", "q", "r"]
    (tmp_path / "run/checkpoint-1").rmdir()
    assert begun(**changes["limit"]) == ["p", "q"]
    assert begun(**changes["dataset_name"]) == ["x", "y"]


def test_a_file_that_has_changed_in_place_is_told_from_one_that_was_only_touched(begun, tmp_path):
    (tmp_path / "run/checkpoint-1").mkdir()
    os.utime(tmp_path / "votes.csv", (1, 1))
    assert begun() == ["p", "q", "r"]
    put(tmp_path, {"votes.csv": LINES + "p,a,b,B\nq,c,d,A\nr,e,f,B\n"})
    with pytest.raises(TableError, match=r"votes\.csv: not the data .*its files have changed"):
        begun()
    (tmp_path / "run/checkpoint-1").rmdir()
    put(tmp_path, {"votes.csv": LINES + "z,a,b,B\n"})
    assert begun() == ["z"]


def test_a_dataset_that_has_moved_goes_on_and_one_that_is_gone_is_an_error(begun, tmp_path):
    (tmp_path / "run/checkpoint-1").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "votes.csv", tmp_path / "elsewhere/votes.csv")
    assert begun(dataset_name=str(tmp_path / "elsewhere/votes.csv")) == ["p", "q", "r"]
    shutil.rmtree(tmp_path / "elsewhere")
    for checkpoints in (True, False):
        if not checkpoints:
            (tmp_path / "run/checkpoint-1").rmdir()
        with pytest.raises(TableError, match=r"votes\.csv: there is no such file or folder, and the run was begun on .*votes\.csv"):
            begun()
