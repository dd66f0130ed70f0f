"""The watch over a training: what it refuses, which weights it keeps, when it stops, and that a resumed run goes on alike."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffalign
from diffalign.config import TrainConfig
from diffalign.dataset import open_dataset
from diffalign.errors import ConfigError
from diffalign.train import Trainer
from diffalign.watch import Watch

PROMPTS = ["a star", "a circle", "a heart", "a ring", "a cross"]
JUDGES = """
def red(images, prompts):
    return [image.getpixel((0, 0))[0] / 100 for image in images]

def green(images, prompts):
    return [image.getpixel((0, 0))[1] / 100 for image in images]

def nothing(images, prompts):
    return [float("nan")] * len(images)
"""


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Return specs of judges of a pixel's red and green, and of one that cannot judge."""
    file = tmp_path_factory.mktemp("judges") / "judges.py"
    file.write_text(JUDGES)
    return {name: {"function": {"path": f"{file}:{name}"}} for name in ("red", "green", "nothing")}


@pytest.fixture
def config(micro_sd, pairs_file, tmp_path, judges):
    return TrainConfig(
        pretrained_model_name_or_path=str(micro_sd),
        dataset_name=str(pairs_file),
        output_dir=str(tmp_path / "run"),
        max_train_steps=5,
        train_batch_size=4,
        learning_rate=1e-3,
        rank=2,
        eval_every=1,
        eval_prompts=PROMPTS,
        eval_scorers=[judges["green"]],
        eval_reward=judges["red"],
        eval_patience=2,
    )


@pytest.fixture
def pictures(monkeypatch):
    """Let the pictures of a step be plain: of each the second is lighter in blue. Returns {step: (red, green)} to fill."""
    colors: dict[int, tuple[int, int]] = {}

    def drawn(parts, config, prompts, seeds, label):
        del parts, config, seeds
        red, green = colors[int(label.rsplit(" ", 1)[1])]
        return [[Image.new("RGB", (4, 4), (red, green + index // 2, 100 * (index % 2))) for index in range(len(prompts))]]

    monkeypatch.setattr("diffalign.watch.drawn", drawn)
    return colors


def run(config):
    config = config.check()
    return Trainer(config, open_dataset(config)).fit()


def rows(folder, name="eval.jsonl"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def facts(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def test_a_run_stops_when_the_alarm_has_held_for_the_patience_and_keeps_the_best_weights(config, pictures, caplog):
    # From step 0 red rises always; green rises at step 1, is lost at step 2, is back at step 3, and is lost for good from then on.
    pictures |= {0: (10, 50), 1: (20, 60), 2: (30, 40), 3: (40, 55), 4: (50, 40), 5: (60, 30)}
    with caplog.at_level(logging.WARNING):
        folder = run(replace(config, max_train_steps=8))
    told = rows(folder)
    assert [row["step"] for row in told] == [0, 1, 2, 3, 4, 5]
    assert [bool(row["alarm"]) for row in told] == [False, False, True, False, True, True]
    stopped = facts(folder)
    assert stopped["steps"] == 5
    assert stopped["stopped"].startswith("step 5: the alarm held for 2 evaluations in a row; red has risen by 0.5")
    # Green of the five prompts is 0.50 to 0.54 at step 0, of variance 0.0002 at every step: +0.1 is 0.1 / sqrt(0.0002) deviations.
    assert stopped["best"] == {"step": 1, "held_out": pytest.approx(0.1 / math.sqrt(0.0002))}
    assert told[1]["held_out"] == pytest.approx(0.1 / math.sqrt(0.0002))
    assert facts(folder / "best")["steps"] == 1
    assert "stopped at step 5" in caplog.text
    assert f"The best weights, of step 1, are in {folder}/best" in caplog.text
    assert diffalign.load(folder / "best").unet.peft_config


def test_what_is_judged_is_logged_beside_the_loss_and_by_itself(config, pictures):
    pictures |= {0: (10, 50), 2: (20, 60)}
    folder = run(replace(config, max_train_steps=2, eval_every=2, log_every=9))
    before, after = rows(folder, "train_log.jsonl")
    assert (before["step"], before["eval/green"]) == (0, pytest.approx(0.52))  # 50 to 54 hundredths
    assert (after["step"], after["eval/green"], after["eval/red_change"]) == (2, pytest.approx(0.62), pytest.approx(0.1))
    assert after["eval/alarm"] == 0.0
    assert "loss" in after
    row = rows(folder)[1]
    assert {change["name"]: change["wins"] for change in row["changes"]} == {
        "green": 1.0,
        "red": 1.0,
        "diversity": row["changes"][2]["wins"],
    }
    assert row["diversity"] > 0
    assert row["sharpness"] == 0.0
    # Chroma is the largest minus the smallest: of (20, 60 + n, 0) 60 + n, of (20, 60 + n, 100) 80, for n = 0 to 4.
    assert row["saturation"] == pytest.approx((62 + 80) / 2 / 255)


def test_without_a_reward_the_implicit_accuracy_stands_for_it(config, pictures, monkeypatch):
    pictures |= {0: (10, 50), 6: (10, 40)}
    config = replace(config, eval_reward=None, eval_every=6, max_train_steps=6, eval_patience=1)
    step = Trainer.optimizer_step
    for accuracy, fires in ((0.9, True), (0.5, False)):
        monkeypatch.setattr(Trainer, "optimizer_step", lambda self, b, a=accuracy: step(self, b) | {"implicit_acc": a})
        folder = run(replace(config, output_dir=f"{config.output_dir}-{accuracy}"))
        assert bool(rows(folder)[-1]["alarm"]) == fires
        assert bool(facts(folder)["stopped"]) == fires
    assert "implicit_acc" in facts(f"{config.output_dir}-0.9")["stopped"]


def test_a_resumed_run_judges_keeps_and_stops_as_an_uninterrupted_one(config, pictures, tmp_path):
    pictures |= {0: (10, 50), 1: (20, 60), 2: (30, 40), 3: (40, 40)}
    whole = run(config)
    part = replace(config, output_dir=str(tmp_path / "part"), checkpointing_steps=2)
    run(replace(part, max_train_steps=2))
    rest = run(replace(part, resume_from_checkpoint="latest"))
    assert facts(whole)["steps"] == facts(rest)["steps"] == 3
    for name in ("stopped", "best"):
        assert facts(whole)[name] == facts(rest)[name]
    assert rows(whole) == rows(rest)
    weights = [load_file(folder / "best" / "pytorch_lora_weights.safetensors") for folder in (whole, rest)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    again = run(replace(part, resume_from_checkpoint="checkpoint-2", max_train_steps=9))
    assert facts(again)["steps"] == 3


def test_the_moving_average_is_what_is_judged_and_kept(config, pictures):
    pictures |= dict.fromkeys(range(3), (10, 50))
    folder = run(replace(config, use_ema=True, ema_decay=0.5, max_train_steps=2))
    assert facts(folder)["best"]["step"] == 2  # the later of two that are alike
    best, last = (load_file(path / "pytorch_lora_weights.safetensors") for path in (folder / "best", folder))
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_the_same_pictures_are_drawn_at_every_evaluation(config):
    folder = run(replace(config, max_train_steps=1, learning_rate=1e-30))
    first, second = rows(folder)
    assert first.keys() == second.keys()
    for name in ("green", "red", "diversity", "saturation", "sharpness"):
        assert second[name] == pytest.approx(first[name], abs=1e-3)
    assert first["diversity"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every": None}, "`eval_prompts` is .* expected nothing without `eval_every`"),
        ({"eval_every": 0}, "`eval_every` is 0; expected at least 1"),
        ({"eval_patience": 0}, "`eval_patience` is 0; expected at least 1"),
        ({"eval_prompts": []}, "`eval_prompts` is .*; expected prompts"),
        ({"method": "self_npo", "eval_reward": None, "dataset_name": "x"}, "`eval_every` needs `eval_reward` here: `self_npo`"),
        ({"method": "ppd"}, "`eval_every` draws with one network alone, which `ppd` cannot here"),
    ],
)
def test_a_watch_that_cannot_be_meant_is_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(config, **changes).check()


def test_prompts_and_judges_that_are_none_are_refused_before_weights_load(config, judges):
    for changes, message in (
        ({"eval_prompts": ["a star"] * 9}, "`eval_prompts` has 1 different prompts; expected at least 5"),
        ({"eval_prompts": ["prompts.txt"]}, "there is no file prompts.txt"),
        ({"eval_scorers": [], "eval_prompts": [*PROMPTS, "a photo of a cat"]}, "`eval_scorers` is empty"),
        ({"eval_scorers": ["pickscor"]}, "there is no scorer `pickscor`"),
        ({"eval_scorers": [judges["red"]]}, "is what training optimises"),
    ):
        with pytest.raises(ConfigError, match=message):
            Watch.of(replace(config, **changes))
    assert Watch.of(replace(config, eval_scorers=[])).scorers == ["adherence"]


def test_a_judge_that_can_judge_nothing_and_two_of_one_name_are_refused_before_training(config, judges, pictures):
    pictures[0] = (10, 50)
    twin = {"function": {**judges["green"]["function"], "scale": "another"}}
    for scorers, message in (([judges["nothing"]], "can judge none"), ([judges["green"], twin], "two of them give a score named `green`")):
        with pytest.raises(ConfigError, match=message):
            run(replace(config, eval_scorers=scorers, overwrite_output_dir=True))
