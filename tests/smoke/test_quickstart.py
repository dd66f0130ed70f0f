"""The loop and the embedded model, small: the parts fit together, and what is shipped is what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffalign.cli.demo import images
from diffalign.cli.demo.images import open_prompts
from diffalign.cli.main import main
from diffalign.core.errors import ConfigError
from diffalign.data.readers import READERS, read
from diffalign.data.world.captions import full_caption, parse
from diffalign.data.world.judge import mean_adherence
from diffalign.data.world.scenes import withheld_scenes
from diffalign.data.world.tastes import OPEN_ATTRIBUTES, TASTES
from diffalign.infer.sample import draw
from diffalign.models.backbones.folders import resolve
from diffalign.models.backbones.table import load_pipeline

SMALL = ["--train_prompts", "12", "--eval_prompts", "6", "--max_train_steps", "3", "--train_batch_size", "4", "--num_inference_steps", "3"]
FEWER = ["--train_prompts", "8", "--eval_prompts", "2"]


@pytest.fixture(autouse=True)
def few_against(monkeypatch):
    """Draw few of the prompts that name what the taste judges."""
    monkeypatch.setattr(images, "AGAINST", 3)


def test_quickstart_writes_pairs_weights_and_report(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["quickstart", "--output_dir", str(out), *SMALL]) == 0
    assert "win rate" in capsys.readouterr().out
    facts = json.loads((out / "report.json").read_text())
    assert facts["prompts_heldout"] == 6
    assert facts["pairs_train"] <= 12
    assert facts["ci95"][0] <= facts["win_rate"] <= facts["ci95"][1]
    assert facts["command"].startswith("diffalign quickstart --output_dir")
    assert "data:image/png;base64" in (out / "report.html").read_text()
    records = list(read(READERS["pickapic"], str(out / "pairs.parquet")))
    assert len(records) == 12
    assert {record.prob for record in records} <= {0.0, 0.5, 1.0}
    assert (out / "train" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("method", ["smpo", "self_npo"])
def test_quickstart_takes_any_method(micro_sd, tmp_path, method):
    words = ["--output_dir", str(tmp_path / "demo"), "--model", str(micro_sd), "--method", method]
    assert main(["quickstart", *words, *SMALL, *FEWER]) == 0
    facts = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert (facts["implicit_accuracy_heldout"] is None) == (method == "self_npo")


def test_quickstart_leaves_a_folder_of_something_else_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert main(["quickstart", "--output_dir", str(tmp_path), *SMALL]) == 2
    assert "not made by `diffalign quickstart`" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("taste", TASTES)
def test_prompts_leave_the_taste_open_and_do_not_repeat(taste):
    import numpy as np

    prompts = open_prompts(taste, 60, np.random.default_rng(0))
    assert len(set(prompts)) == 60
    assert not any(set(OPEN_ATTRIBUTES[taste]) & parse(prompt).keys() for prompt in prompts)


def test_more_prompts_than_the_world_has_are_refused():
    import numpy as np

    with pytest.raises(ConfigError, match=r"`contrast` .*9000"):
        open_prompts("contrast", 9000, np.random.default_rng(0))


def test_the_embedded_model_is_small_and_keeps_to_the_prompt():
    folder = Path(resolve("assets/tiny-sd"))
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    personal = sum(size for file, size in sizes.items() if "personal" in file.parts)
    assert personal <= 1_000_000
    assert sum(sizes.values()) - personal <= 12_000_000
    pipe = load_pipeline("assets/tiny-sd")
    assert {p.dtype for p in pipe.unet.parameters()} == {p.dtype for p in pipe.text_encoder.parameters()} == {torch.float32}
    prompts = [full_caption(scene) for scene in sorted(withheld_scenes(), key=full_caption)[::8]]
    drawn = draw(pipe, prompts, range(len(prompts)), num_inference_steps=10, guidance_scale=4.0)
    assert mean_adherence(prompts, drawn) >= 0.85
