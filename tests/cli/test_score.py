"""`diffalign score` from the command line, on drawings of the embedded world."""

from __future__ import annotations

import numpy as np
import pytest

from diffalign.cli.main import main
from diffalign.data.table import read_table
from diffalign.data.world.scenes import Scene, render
from tests.micro import write_pairs

TASTE = "{taste: {name: high}}"


def star(place):
    return render(Scene("star", "red", "large", place, "white"), np.random.default_rng(0))


def scored(tmp_path, *words):
    return main(["score", *words, "--output_dir", str(tmp_path / "scored"), "--device", "cpu"])


def test_a_dataset_is_scored_under_its_own_prompts_and_the_numbers_are_explained(tmp_path, capsys):
    pairs = write_pairs(tmp_path / "pairs.parquet", 4)
    assert scored(tmp_path, "--dataset_name", str(pairs), "--scorers", f"[adherence, {TASTE}]") == 0
    table = read_table(tmp_path / "scored")
    assert [sorted(candidate.scores) for record in table for candidate in record.candidates] == [["adherence", "high"]] * 8
    assert [record.prob for record in table] == [0.0, 1.0, 0.0, 1.0]  # the votes stay
    said = capsys.readouterr().out
    assert "adherence: mean" in said
    assert "8 images (taste `high` in [0, 1]; 0 for a picture without a shape" in said


def test_a_folder_is_scored_under_every_prompt_and_what_names_nothing_is_not_judged(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for place in ("top", "left"):
        star(place).save(folder / f"{place}.png")
    (tmp_path / "prompts.txt").write_text("a star at the top\nhello\n")
    assert scored(tmp_path, "--images", str(folder), "--prompts", str(tmp_path / "prompts.txt"), "--scorers", "[adherence]") == 0
    first, second = read_table(tmp_path / "scored")
    assert {candidate.uid: dict(candidate.scores) for candidate in first.candidates} == {
        "left.png": {"adherence": 0.5},
        "top.png": {"adherence": 1.0},
    }
    assert [dict(candidate.scores) for candidate in second.candidates] == [{}, {}]
    assert "2 images, 2 not judged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--images", "a", "--dataset_name", "b"], "needs --dataset_name with a table or dataset, or --images"),
        (["--dataset_name", "b", "--prompts", "c"], "`prompts` are for --images"),
        (["--images", "."], "`scorers` is empty. Known: adherence, aesthetic"),
        (["--images", "nowhere", "--scorers", "[pickscor]"], "there is no scorer `pickscor`. Did you mean `pickscore`?"),
        (["--images", "nowhere", "--scorers", "[adherence]"], "nowhere: no image"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(tmp_path, capsys, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    star("top").save(tmp_path / "one.png")
    assert scored(tmp_path, *words) == 2
    assert problem in capsys.readouterr().err
