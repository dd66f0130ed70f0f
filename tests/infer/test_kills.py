"""Commands that are killed at any of their deeds, and begun again, leave the files of an uninterrupted run, byte for byte, and no others.

The pictures are painted from their seeds: what is tested is not the model, but what is kept and what is found again.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import TableError
from diffalign.core.files import settle
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.infer import generate_pairs as module
from diffalign.infer import shards as drawing
from diffalign.infer.generate_pairs import generate
from diffalign.infer.options import GenerateConfig
from diffalign.rewards.score_table import score_table
from tests.killing import killed_at, tree
from tests.shades import PROMPTS, Shade, add_scorer

FOREVER = 10**6


def painted(pipe, prompts, seeds, **told):
    """Paint four pixels for each seed."""
    return [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)) for seed in seeds]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes longer than all the rest
    monkeypatch.setattr(drawing, "draw", painted)
    monkeypatch.setattr(module, "load_pipeline", lambda *args, **options: SimpleNamespace(to=lambda device: None))
    add_scorer(monkeypatch, "red", lambda: Shade("red", 0))
    add_scorer(monkeypatch, "blue", lambda: Shade("blue", 2))


CALLS = ((drawing, "draw"), (Shade, "__call__"))


def killed_everywhere(job, before):
    """Kill `job` at each of its deeds in a copy of the folder `before`, go on, and compare with what it leaves where it is not killed."""
    whole = shutil.copytree(before, before.with_name("whole"))
    with killed_at(FOREVER, *CALLS) as life:
        job(whole)
    assert life.deeds > 20
    for last in range(1, life.deeds + 1):
        folder = shutil.copytree(before, before.with_name(f"killed at {last}"))
        with killed_at(last, *CALLS):
            job(folder)
            pytest.fail("it has outlived its death")
        job(folder)
        assert tree(folder) == tree(whole), f"killed at deed {last} of {life.deeds}"


@pytest.fixture
def before(tmp_path):
    """A folder to work in, with a table of five prompts with two images each, one of which has a score already."""
    rows = []
    for index, prompt in enumerate(PROMPTS[:5]):
        first, second = (Candidate(image=encode_image(image)) for image in painted(None, [], [2 * index, 2 * index + 1]))
        rows.append(Record(f"r{index}", prompt, (replace(first, scores={"red": 1.0}), second), source=f"row {index}"))
    write_table(tmp_path / "before" / "drawn", rows)
    return tmp_path / "before"


@pytest.fixture
def make(micro_sd):
    """What makes a table in a folder as `pairs generate` does."""
    how = GenerateConfig(pretrained_model_name_or_path=str(micro_sd), output_dir="", images_per_prompt=2, scorers=["red", "blue"])

    def make(folder, **options):
        generate(replace(how, output_dir=str(folder / "table"), rank_by="red", **options), PROMPTS)

    return make


def test_pairs_generate_leaves_the_same_table(make, before):
    killed_everywhere(make, before)


def test_pairs_generate_replaces_a_table_whole(make, before):
    make(before, seed=1)
    killed_everywhere(lambda folder: make(folder, overwrite=True), before)


def test_score_leaves_the_same_table(before):
    def score(folder):
        score_table(read_table(folder / "drawn"), folder / "scored", ["red", "blue"], shard=1)

    killed_everywhere(score, before)


def test_score_replaces_the_table_that_it_scores_whole(before):
    def score(folder):
        settle(folder / "drawn")  # as the command does before it looks for its input
        score_table(read_table(folder / "drawn"), folder / "drawn", ["red", "blue"], overwrite=True, shard=1)

    killed_everywhere(score, before)


def test_a_table_of_other_settings_is_not_taken_for_that_of_the_killed_run(make, before):
    make(before, seed=1)
    with killed_at(10, *CALLS):
        make(before, overwrite=True)
    found = tree(before / "table")
    with pytest.raises(TableError, match="exists already"):
        make(before)
    assert tree(before / "table") == found


def test_a_table_with_other_scores_is_not_taken_for_that_of_the_killed_run(before):
    table = read_table(before / "drawn")
    score_table(table, before / "scored", ["red"])
    with killed_at(10, *CALLS):
        score_table(table, before / "scored", ["red", "blue"], overwrite=True)
    with pytest.raises(TableError, match="exists already"):
        score_table(table, before / "scored", ["red", "blue"])
    assert [scorer["name"] for scorer in read_table(before / "scored").manifest["scorers"]] == ["red"]
