"""Two processes make a table of ranked images through the command line, and RankDPO trains on it."""

from __future__ import annotations

import json
import math

import yaml

from diffalign.cli.main import main
from diffalign.data.table import read_table
from tests.processes import launch

PROMPTS = [f"a {color} star" for color in ("red", "green", "blue", "orange", "yellow", "purple", "cyan", "white", "small", "large")]


def test_two_processes_rank_a_models_own_images_and_rank_dpo_trains_on_them(micro_sd, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, PROMPTS[0]]))
    model = ["--pretrained_model_name_or_path", str(micro_sd)]
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--scorers", "[adherence, {taste: {name: bright_background}}]"]
    words += ["--rank_by", "bright_background", "--num_inference_steps", "2", "--output_dir", str(tmp_path / "ranked")]
    launch(tmp_path, [["pairs", "generate", *model, *words]])
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert logs.count("10 prompts with 4 images each, 0 left out") == 1
    table = read_table(tmp_path / "ranked")
    assert [record.prompt for record in table] == PROMPTS
    assert all(sorted(c.scores) == ["adherence", "bright_background"] for record in table for c in record.candidates)
    options = ["--method", "rank_dpo", "--max_train_steps", "2", "--train_batch_size", "2", "--rank", "2", "--learning_rate", "1e-2"]
    train = ["train", *model, *options, "--dataset_name", str(table.path), "--output_dir", str(tmp_path / "run")]
    assert main([*train, "--dry_run"]) == 0
    assert "activations of 8 images" in capsys.readouterr().out  # two records of four
    assert main(train) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0.0 for row in log)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"] == "rank_dpo"


def test_prompts_are_named_once(tmp_path, capsys):
    words = ["pairs", "generate", "--scorers", "[adherence]", "--output_dir", str(tmp_path / "t")]
    assert main([*words, "--prompts", "a star", "--dataset_name", "votes"]) == 2
    assert "both name prompts" in capsys.readouterr().err
    assert main(words) == 2
    assert "there is no prompt to draw" in capsys.readouterr().err
