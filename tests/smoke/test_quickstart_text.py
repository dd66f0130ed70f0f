"""The loop for the model that writes prompts, small: rewrites, pictures, pairs, two runs and the report."""

from __future__ import annotations

import json

import pytest

import diffalign
from diffalign.cli.demo.options import TextQuickstartConfig
from diffalign.cli.demo.prompts import TextQuickstart
from diffalign.cli.main import main
from diffalign.data.table import read_table
from diffalign.data.world.captions import parse

SMALL = ["--train_prompts", "16", "--eval_prompts", "8", "--max_train_steps", "3", "--train_batch_size", "4", "--num_inference_steps", "3"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "demo"
    assert main(["quickstart", "--text", "--output_dir", str(out), *SMALL]) == 0
    return out


def test_quickstart_writes_pairs_weights_and_report(demo):
    facts = json.loads((demo / "report.json").read_text())
    assert facts["prompts_heldout"] == 8
    assert facts["command"].startswith("diffalign quickstart --text --output_dir")
    for name in ("taste_gain", "kept_gain", "kept_over_plain", "taste_over_plain"):
        assert facts[f"{name}_ci95"][0] <= facts[name] <= facts[f"{name}_ci95"][1]
    assert all(0.0 <= facts[f"{name}_{who}"] <= 1.0 for name in ("taste", "kept", "adherence") for who in ("base", "aligned", "plain"))
    rate, (low, high) = facts["win_rate_plain"], facts["ci95_plain"]
    assert (rate, low, high) == (0.5, None, None) or low <= rate <= high  # no interval where every rewrite stayed the same
    page = (demo / "report.html").read_text()
    assert "meaning kept" in page
    assert "data:image/png;base64" in page
    records = list(read_table(demo / "pairs"))
    tastes = [[candidate.scores["taste"] for candidate in record.candidates] for record in records]
    assert facts["pairs_train"] == sum(max(own) - min(own) >= 0.1 for own in tastes)
    assert len(records) <= 16
    assert all(record.messages and set(record.candidates[0].scores) == {"taste", "adherence", "distance"} for record in records)


def test_both_runs_write_for_a_pipeline(demo):
    for run in ("train", "plain"):
        written = diffalign.load(demo / run)("a red star", seed=0)
        assert "shape" in parse(written)


def test_the_prompts_to_judge_with_are_none_of_those_trained_on():
    loop = TextQuickstart(TextQuickstartConfig(output_dir="unused"), "")
    assert not set(loop.train_prompts) & set(loop.eval_prompts)
    assert (len(loop.train_prompts), len(loop.eval_prompts)) == (256, 200)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--taste", "hihg"], "Did you mean `high`"),
        (["--rewrites_per_prompt", "1"], "two rewrites a prompt"),
        (["--train_prompts", "2000"], "there are 1168 short prompts; asked for 2200"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_loads(tmp_path, capsys, flags, message):
    assert main(["quickstart", "--text", "--output_dir", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["quickstart", "--text", "--output_dir", str(tmp_path)]) == 2
    assert "not made by `diffalign quickstart`" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"
