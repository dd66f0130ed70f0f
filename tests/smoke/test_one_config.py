"""One config, texts and images: only the model and its table differ."""

from __future__ import annotations

import json
import math

import pytest

from diffalign.cli.main import main
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from tests.micro import write_pairs

CONFIG = """
method: dpo
objective: {robust: {beta: 0.5, label_smoothing: 0.1}}
rank: 2
train_batch_size: 4
max_train_steps: 2
learning_rate: 1e-3
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the config, a table of texts and one of images."""
    root = tmp_path_factory.mktemp("one")
    (root / "config.yaml").write_text(CONFIG)
    answers = [(f"a {size} star", f"a {size} star {place}") for size in ("small", "large") for place in ("at the top", "in the center")]
    pairs = [(Candidate(text=text), Candidate(text=prompt)) for prompt, text in answers]
    write_table(root / "texts", [Record(str(i), answers[i][0], pairs[i], prob=1.0) for i in range(len(pairs))])
    images = write_pairs(root / "pairs.parquet")
    assert main(["data", "import", "--dataset_name", str(images), "--output_dir", str(root / "images")]) == 0
    return root


@pytest.mark.parametrize(("model", "table"), [("assets/tiny-lm", "texts"), ("assets/tiny-sd", "images")])
def test_the_same_config_trains_a_language_model_and_an_image_model(files, tmp_path, model, table):
    words = ["train", "--config", str(files / "config.yaml"), "--pretrained_model_name_or_path", model]
    assert main([*words, "--dataset_name", str(files / table), "--output_dir", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    # At the reference every margin is zero: (0.9 - 0.1) / (1 - 0.2) log 2.
    assert rows[0]["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert math.isfinite(rows[1]["loss"])
    assert rows[1]["loss"] != rows[0]["loss"]
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["objective"] == {"robust": {"beta": 0.5, "label_smoothing": 0.1}}
