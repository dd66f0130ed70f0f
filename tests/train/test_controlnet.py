"""Training a ControlNet on preferences: between pictures of one conditioning image, and between conditioning images of one picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffalign
from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.core.runs import Run
from diffalign.data.records import Candidate
from diffalign.data.table import write_table
from diffalign.evaluate.heldout import accuracy_on
from diffalign.infer.draw_votes import open_painters
from diffalign.infer.export.export import export_run
from diffalign.infer.kinds.image import outlook
from diffalign.infer.sample import draw
from diffalign.methods.checks import check
from diffalign.train.align import train
from tests.data.image_tables import image_pair
from tests.data.test_conditioning import noise
from tests.micro_models import SIDE, picture, stock, write_micro
from tests.train.configs import small_config

SQUARE = (SIDE, SIDE)


def of_pictures(number: int):
    """Two pictures that were drawn to one conditioning image."""
    pictures = noise(number, SQUARE), noise(100 + number, SQUARE)
    return image_pair(number, *pictures, prob=float(number % 2), prompt="a red star", conditioning_image=noise(200 + number, SQUARE))


def of_conditions(number: int):
    """One picture, with the conditioning image that it fits and one that it does not."""
    image, wrong = noise(number, SQUARE), noise(300 + number, SQUARE)
    both = tuple(Candidate(image=image, conditioning_image=own) for own in (image, wrong))
    return image_pair(number, image, image, candidates=both, prompt="a red star")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with models and tables."""
    root = tmp_path_factory.mktemp("controlnets")
    for kind in ("sd", "sdxl", "sd3", "pixart"):
        write_micro(kind, root / kind)
    write_table(root / "pictures", [of_pictures(number) for number in range(4)])
    write_table(root / "conditions", [of_conditions(number) for number in range(4)])
    write_table(root / "plain", [image_pair(number, noise(number, SQUARE), noise(9, SQUARE)) for number in range(4)])
    Image.fromarray(np.full((SIDE, SIDE, 3), 200, np.uint8)).save(root / "edges.png")
    return root


def config(place: Path, output: Path | str, data: str = "pictures", model: str = "sd", **values):
    own = {"train_method": "controlnet", "max_train_steps": 2, "learning_rate": 1e-3, "beta": 500.0, "train_batch_size": 2}
    return small_config(place / model, place / data, place / output, **{**own, **values})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "controlnet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def run(place) -> Path:
    """A run of two steps, with a checkpoint after each and a picture of the first step and the last."""
    shown = {"validation_prompts": ["a red star", "a blue heart"], "validation_image": [str(place / "edges.png")]}
    return train(config(place, "run", checkpointing_steps=1, use_ema=True, ema_decay=0.5, **shown))


def test_two_steps_change_what_the_stock_pipeline_draws(run, place):
    pipe, base = diffalign.load(run), stock(place / "sd")
    assert type(pipe).__name__ == "StableDiffusionControlNetPipeline"
    assert all(torch.equal(value, base.unet.state_dict()[name]) for name, value in pipe.unet.state_dict().items())
    images = [torch.full((1, 3, SIDE, SIDE), level) for level in (0.0, 1.0)]
    drawn = [picture(pipe, image=image) for image in images]
    assert np.abs(drawn[0] - picture(base)).max() > 1e-4
    assert not np.array_equal(*drawn)  # by little: before the first step the conditioning image meets zeros twice
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(np.log(2.0))  # the reference is the ControlNet as it started
    assert log[1]["log_ratio/chosen"] != 0.0
    facts = json.loads((run / "run.json").read_text())
    assert (facts["train_method"], facts["kind"], facts["inference"]) == ("controlnet", "image", "plain")
    assert sorted(file.name for file in (run / "validation").iterdir()) == ["step-000000.png", "step-000002.png"]


def test_a_resumed_run_and_one_without_a_cache_end_at_the_same_weights(run, place):
    resumed = place / "resumed"
    shutil.copytree(run / "checkpoint-1", resumed / "checkpoint-1")
    train(config(place, "resumed", use_ema=True, ema_decay=0.5, resume_from_checkpoint="latest"))
    live = train(config(place, "live", use_ema=True, ema_decay=0.5, cache="off", gradient_checkpointing=True, sequential_candidates=True))
    for name, value in weights(run).items():
        assert torch.equal(weights(resumed)[name], value), name
        torch.testing.assert_close(weights(live)[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(("model", "pipeline"), [("sdxl", "StableDiffusionXL"), ("sd3", "StableDiffusion3")])
def test_preferred_conditions_of_one_picture_are_learnt_from_a_supervised_start(model, pipeline, place):
    """The same picture stands on both sides, so that the conditioning images alone make the loss."""
    supervised = {"objective": "denoise", "beta": None, "reference": "none", "transforms": ["orient", "preferred"]}
    first = train(config(place, f"{model}-supervised", model=model, **supervised))
    more = {"controlnet_model_name_or_path": str(first / "controlnet"), "max_train_steps": 6, "learning_rate": 3e-3}
    second = train(config(place, f"{model}-conditions", data="conditions", model=model, **more))
    log = [json.loads(line) for line in (second / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["score/chosen"] != log[0]["score/rejected"]
    assert log[0]["rewards/margins"] == 0.0
    assert any(not torch.equal(value, weights(second)[name]) for name, value in weights(first).items())
    accuracy = accuracy_on(Run.open(second), str(place / "conditions"), None, None, "cpu")
    assert accuracy.right + accuracy.wrong == 4  # a reference without the trained weights: none is tied
    pipe = diffalign.load(second)
    assert type(pipe).__name__ == f"{pipeline}ControlNetPipeline"
    both = [Image.new("RGB", SQUARE, color) for color in ("black", "white")]
    drawn = [draw(pipe, ["a red star"], [3], num_inference_steps=2, conditioning_images=[one])[0] for one in (*both, both[0])]
    assert drawn[0] == drawn[2]  # whatever was drawn before
    assert drawn[0] != drawn[1]


def test_records_of_a_text_pair_and_a_condition_pair_are_learnt_from(place):
    """BideDPO: the second loss is that of candidates 2 and 3, which here are one picture under two conditioning images."""
    records = []
    for number in range(2):
        image, other = noise(number, SQUARE), noise(100 + number, SQUARE)
        shown = (image, 200), (other, 200), (image, 300), (image, 400)
        candidates = tuple(Candidate(image=one, conditioning_image=noise(seed + number, SQUARE)) for one, seed in shown)
        records.append(image_pair(number, image, other, candidates=candidates, prompt="a red star"))
    write_table(place / "four", records)
    run = train(config(place, "bide", data="four", objective="bide_dpo", transforms=[]))
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(np.log(2.0))  # w log 2 + (1 - w) log 2
    assert log[1]["loss"] != log[0]["loss"]


def test_what_cannot_be_meant_is_refused_before_weights_load(place):
    cases = {
        "plain: record 0 has no conditioning image": {"data": "plain"},
        "family pixart": {"model": "pixart"},
        "`eval_every`": {"eval_every": 1, "eval_prompts": ["a"], "eval_reward": "pickscore"},
        "`start_from`": {"start_from": "outputs/mine"},
        "self_npo": {"method": "self_npo", "beta": None},
        "`validation_image` has 0 files": {"validation_prompts": ["a"]},
        "missing.png": {"validation_prompts": ["a"], "validation_image": ["missing.png"]},
        "`controlnet_model_name_or_path` is 'x'": {"train_method": "lora", "controlnet_model_name_or_path": "x"},
        "`validation_image` is": {"train_method": "lora", "validation_image": ["edges.png"]},
        "`train_method` is controlnet": {"quantization": "int8"},
    }
    for number, (fact, values) in enumerate(cases.items()):
        with pytest.raises((ConfigError, TableError)) as refusal:
            train(config(place, f"refused-{number}", **values))
        assert fact in str(refusal.value)


def test_conditioning_images_that_are_not_used_are_a_note(place, caplog):
    caplog.set_level("INFO")
    train(config(place, "lora", train_method="lora", max_train_steps=1))
    assert [text for text in caplog.messages if "conditioning images are not used" in text and str(place / "pictures") in text]


def test_what_draws_to_prompts_alone_refuses_a_controlnet(run, place, tmp_path):
    with pytest.raises(ConfigError, match=f"{run}.*conditioning images"):
        open_painters(str(run))
    with pytest.raises(ConfigError, match="controlnet"):
        export_run(run, tmp_path / "export")
    with pytest.raises(ConfigError, match=f"{run}/controlnet"):
        check(config(place, "other", controlnet_model_name_or_path=str(run)))
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged/controlnet/diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged/controlnet"):
        diffalign.load(tmp_path / "damaged")


def test_a_dry_run_counts_the_controlnet_and_its_memory(run, place, capsys):
    count = sum(value.numel() for value in weights(run).values())
    for start in (None, str(run / "controlnet")):
        own = config(place, "dry", gradient_checkpointing=True, controlnet_model_name_or_path=start)
        text = outlook(own, check(own), 2)
        assert f"{count:,}" in text
        assert "ControlNet" in text
        assert f"{4 * count / 2**20:.2f} MiB" in text  # the reference's copy
