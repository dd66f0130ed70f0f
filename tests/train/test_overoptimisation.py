"""The watch over a training: what it refuses, which weights it keeps, when it stops, and that a resumed run goes on alike."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffalign
from diffalign.core.errors import ConfigError
from diffalign.data.table import read_table
from diffalign.methods.config import TrainConfig
from diffalign.models.adapter_files import WEIGHTS
from diffalign.models.adapters import trained_state
from diffalign.rewards.drift import Appearance
from diffalign.rewards.hacking import LOOKS
from diffalign.train import align as api
from diffalign.train.align import align
from diffalign.train.overoptimisation import Watch
from diffalign.train.trainer import trainer_for
from scripts.overoptimise import SETTINGS, captions, votes
from tests.checked import checked
from tests.shades import add_scorer
from tests.train.online.scorers import Bright, online_config

PROMPTS = ["a star", "a circle", "a heart", "a ring", "a cross", "a square"]
JUDGES = """
def judge(channel):
    return lambda images, prompts: [image.getpixel((0, 0))[channel] / 100 for image in images]

red, green, blue = map(judge, range(3))

def nothing(images, prompts):
    return [float("nan")] * len(images)

def lit(images, prompts):
    return [value if value >= 0.5 else float("nan") for value in green(images, prompts)]
"""
DEVIATION = math.sqrt(35 / 12) / 100  # of green: six prompts at 0 to 5 hundredths above the first, at every step


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Return specs of judges of a pixel's three colours, of one that cannot judge, and of one that can where green is at least 50."""
    file = tmp_path_factory.mktemp("judges") / "judges.py"
    file.write_text(JUDGES)
    return {name: {"function": {"path": f"{file}:{name}", "name": name}} for name in ("red", "green", "blue", "nothing", "lit")}


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
    """Let the pictures of a step be plain; of each two the second is bluer, by 100 if not said. Fill `colors`.

    `weights` says what the network held.
    """
    found = SimpleNamespace(colors={}, weights={}, options={})

    def drawn(parts, config, prompts, seeds, label, **options):
        del config, seeds
        found.options = options
        step = int(label.rsplit(" ", 1)[1])
        red, green, bluer = (*found.colors[step], 100)[:3]
        found.weights[step] = {name: value.clone() for name, value in trained_state(parts.backbone.network).items()}
        return [[Image.new("RGB", (4, 4), (red, green + index // 2, bluer * (index % 2))) for index in range(len(prompts))]]

    monkeypatch.setattr("diffalign.train.overoptimisation.drawn", drawn)
    return found


@pytest.fixture
def look(config, pictures, monkeypatch):
    """Let a watch look at steps without a training. Returns the steps whose weights it kept."""
    kept: list[int] = []
    monkeypatch.setattr("diffalign.train.overoptimisation.save_run", lambda *written: kept.append(written[-1]["steps"]))
    parts: Any = SimpleNamespace(backbone=SimpleNamespace(device="cpu", network=torch.nn.Linear(1, 1)))
    Path(config.output_dir).mkdir()

    def looks(watch, colors):
        pictures.colors |= colors
        for step in colors:
            watch.look(parts, step, {})
        return kept

    return looks


def rows(folder, name="eval.jsonl"):
    return [json.loads(line, parse_constant=pytest.fail) for line in (Path(folder) / name).read_text().splitlines()]


def facts(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def run(config, **changes):
    config = checked(replace(config, **changes))
    return trainer_for(config).fit()


def test_alarms_that_are_not_in_a_row_stop_a_run_too(look, config, caplog):
    # From step 0 red rises always; green is lost at steps 2 and 4: two of the last four evaluations ring.
    watch = Watch.of(config)
    with caplog.at_level(logging.WARNING):
        look(watch, {0: (10, 50), 1: (20, 60), 2: (30, 30), 3: (40, 55)})
        assert (watch.stopped, watch.alarms) == (None, [False, False, True, False])
        look(watch, {4: (50, 30)})
    assert [bool(row["alarm"]) for row in rows(config.output_dir)] == [False, False, True, False, True]
    assert watch.stopped is not None
    assert watch.stopped.startswith("step 4: the alarm rang in 2 of the last 4 evaluations; red has risen by 0.4 ")
    assert f"The best weights, of step 1, are in {config.output_dir}/best" in caplog.text


def test_an_evaluation_draws_as_its_keys_say(look, config, pictures):
    look(Watch.of(config), {0: (10, 50)})
    assert pictures.options == {"num_inference_steps": 25, "guidance_scale": 5.0}
    look(Watch.of(replace(config, eval_num_inference_steps=2, eval_guidance_scale=1.0)), {0: (10, 50)})
    assert pictures.options == {"num_inference_steps": 2, "guidance_scale": 1.0}


def test_an_online_run_stops_where_the_alarm_rings_and_keeps_its_best_weights(micro_sd, tmp_path, pictures, judges, monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)
    watched = {
        "eval_every": 1,
        "eval_prompts": PROMPTS,
        "eval_scorers": [judges["green"]],
        "eval_reward": judges["red"],
        "eval_patience": 2,
    }
    pictures.colors |= {0: (10, 50), 1: (20, 60), 2: (30, 30), 3: (40, 20), 4: (50, 10)}  # green is lost from step 2 on
    folder = api.train(online_config(micro_sd, tmp_path / "run", **watched))
    assert facts(folder)["steps"] == 3  # of 4, within the second turn
    assert facts(folder)["stopped"].startswith("step 3: the alarm rang in 2")
    assert facts(folder)["best"]["step"] == facts(folder / "best")["steps"] == 1
    kept, last = (load_file(path / WEIGHTS) for path in (folder / "best", folder))
    sums = [sorted(float(value.abs().sum()) for value in weights.values()) for weights in (kept, pictures.weights[1])]
    assert sums[0] == pytest.approx(sums[1])
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    assert len(read_table(folder / "data")) == 4  # the log of both turns


def test_alarms_that_are_long_past_do_not_stop_a_run(look, config):
    watch = Watch.of(config)
    look(watch, {0: (10, 50), 1: (20, 30), 2: (20, 60), 3: (20, 60), 4: (20, 60), 5: (20, 30)})
    assert (watch.stopped, sum(watch.alarms)) == (None, 1)


def test_pictures_that_lose_their_edges_ring_the_alarm_though_no_score_falls(look, config, monkeypatch):
    watch = Watch.of(config)
    look(watch, {0: (10, 50)})
    blurred = Appearance(*([0.5 * (look.name == "sharpness") + 0.1] * len(PROMPTS) for look in fields(Appearance)))
    monkeypatch.setattr(watch, "base", replace(watch.base, looks=blurred))
    look(watch, {1: (10, 50)})
    assert any("sharpness fell to 0% of the base's" in reason for reason in rows(config.output_dir)[1]["alarm"])


def test_the_state_of_an_earlier_version_is_gone_on_from(config):
    watch, scores = Watch.of(config), {"green": [0.5] * 12}
    watch.restore({"base": {"scores": scores, "diversity": [1.0] * 6, "saturation": 0.5, "sharpness": 0.1}, "alarms": 2, "stopped": None})
    assert watch.alarms == [True, True]
    assert watch.base is not None
    assert (watch.base.scores, watch.base.looks.diversity) == (scores, [1.0] * 6)
    assert all(map(math.isnan, watch.base.looks.sharpness))


def test_the_best_weights_are_those_of_the_largest_mean_held_out_change(look, config, judges):
    watch = Watch.of(config)
    assert look(watch, {0: (10, 50), 1: (20, 60), 2: (30, 55), 3: (0, 60), 4: (0, 59)}) == [1, 3]  # 1 and 3 are alike: the later one
    assert watch.best == (3, pytest.approx(0.1 / DEVIATION))
    assert rows(config.output_dir)[2]["held_out"] == pytest.approx(0.05 / DEVIATION)
    # Of what only loses the first is kept; step 0, of which there is no result, is not. Blue does not change: half of the mean.
    watch = Watch.of(replace(config, eval_scorers=[judges["green"], judges["blue"]]))
    look(watch, {0: (10, 90), 1: (10, 88)})
    assert watch.best == (1, pytest.approx(-0.01 / DEVIATION))


def test_weights_of_an_evaluation_that_rings_the_alarm_are_not_the_best(look, config):
    # Red and green rise, while the pictures of a prompt become alike: the second is bluer by 20, and then by 5, instead of 100.
    watch = Watch.of(config)
    assert look(watch, {0: (10, 50), 1: (20, 60, 20), 2: (30, 70, 5)}) == []
    assert (watch.best, watch.facts()["best"]) == (None, None)
    assert "while diversity fell" in rows(config.output_dir)[1]["alarm"][0]


def test_a_change_without_a_spread_is_null_and_no_measure_of_the_best(look, config, judges):
    watch = Watch.of(replace(config, eval_scorers=[judges["red"]], eval_reward=judges["green"]))  # red is the same for all prompts
    assert look(watch, {0: (10, 50), 1: (20, 60)}) == []
    assert (rows(config.output_dir)[1]["held_out"], rows(config.output_dir)[1]["changes"][0]["effect"]) == (None, None)
    assert "eval/held_out" not in watch.logged
    assert watch.logged["eval/red_change"] == pytest.approx(0.1)


def test_a_judge_that_can_no_longer_judge_is_a_reason_for_alarm(look, config, judges):
    watch = Watch.of(replace(config, eval_scorers=[judges["lit"]]))
    assert look(watch, {0: (10, 50), 1: (10, 49), 2: (10, 46)}) == [1]  # of the six prompts one, and then all but two, have less than 50
    assert [row["alarm"] for row in rows(config.output_dir)][1:] == [
        [],
        ["lit can judge 4 of the pictures, and could judge 12 of the base's"],
    ]
    look(watch, {3: (10, 40)})
    assert rows(config.output_dir)[3]["lit"] is None
    assert str(watch.stopped).startswith("step 3: the alarm rang in 2 of the last 4 evaluations; lit can judge 0 of the pictures")
    assert watch.best is not None
    assert watch.best[0] == 1


def test_a_stopped_watch_goes_on_with_more_patience_alone(look, config, caplog):
    watch = Watch.of(config)
    look(watch, {0: (10, 50), 1: (20, 40), 2: (30, 40)})
    assert str(watch.stopped).startswith("step 2: ")
    same, patient = Watch.of(config), Watch.of(replace(config, eval_patience=3))
    for one in (same, patient):
        one.restore(watch.state())
    assert (same.stopped, patient.stopped, patient.alarms) == (watch.stopped, None, [False, True, True])
    assert "was stopped at step 2: the alarm rang in 2 of the last 3 evaluations" in caplog.text
    look(patient, {3: (30, 40)})
    assert str(patient.stopped).startswith("step 3: the alarm rang in 3 of the last 4 evaluations")


@pytest.mark.parametrize(("accuracy", "fires"), [(0.9, True), (0.5, False)])
def test_without_a_reward_the_implicit_accuracy_of_the_last_steps_stands_for_it(look, config, accuracy, fires):
    watch = Watch.of(replace(config, eval_reward=None, eval_every=6, eval_patience=1))
    look(watch, {0: (10, 90)})
    for _ in range(6):
        watch.follow({"implicit_acc": 0.0})  # of steps before, which are forgotten
    for number in range(6):
        watch.follow({"implicit_acc": accuracy + 0.01 * (-1) ** number, "loss": 0.5})
    look(watch, {6: (10, 87)})  # a fall that is no alarm by itself
    assert bool(watch.stopped) == fires
    assert fires == ("implicit_acc has risen by 0.4 " in str(watch.stopped))


def test_where_the_reward_itself_falls_the_implicit_accuracy_still_tells_that_training_went_on(look, config):
    watch = Watch.of(replace(config, eval_every=6, eval_patience=1))
    look(watch, {0: (10, 50)})
    for number in range(6):
        watch.follow({"implicit_acc": 0.9 + 0.01 * (-1) ** number})
    look(watch, {6: (5, 40)})  # both judges fall: what training optimises is no longer what it stands for
    assert "implicit_acc has risen by 0.4 " in str(watch.stopped)
    assert "while green fell" in str(watch.stopped)


def test_a_run_is_stopped_and_a_resumed_one_alike(config, pictures, tmp_path):
    pictures.colors |= {0: (10, 50), 1: (20, 60), 2: (30, 40), 3: (40, 40)}
    config = replace(config, use_ema=True, ema_decay=0.5, log_every=9)
    whole = run(config)
    summary = facts(whole)
    assert summary["steps"] == 3
    assert summary["stopped"].startswith("step 3: ")
    assert summary["best"] == {"step": 1, "held_out": pytest.approx(0.1 / DEVIATION)}
    assert facts(whole / "best")["steps"] == 1
    assert diffalign.load(whole / "best").unet.peft_config
    # What is judged is what is saved: the moving average.
    last, judged = load_file(whole / "pytorch_lora_weights.safetensors"), pictures.weights[3]
    assert sum(value.norm() for value in last.values()) == pytest.approx(float(sum(value.norm() for value in judged.values())), rel=1e-6)

    part = replace(config, output_dir=str(tmp_path / "part"), checkpointing_steps=2)
    run(part, max_train_steps=2)
    rest = run(part, resume_from_checkpoint="latest")
    assert {name: facts(rest)[name] for name in ("steps", "stopped", "best")} == {
        name: summary[name] for name in ("steps", "stopped", "best")
    }
    assert rows(rest) == rows(whole)
    assert rows(rest, "train_log.jsonl") == rows(whole, "train_log.jsonl")
    weights = [load_file(folder / "best" / "pytorch_lora_weights.safetensors") for folder in (whole, rest)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    log = rows(whole, "train_log.jsonl")
    assert [row["step"] for row in log] == [0, 1, 2, 3]
    assert (log[0]["eval/green"], log[1]["eval/green_change"]) == (pytest.approx(0.525), pytest.approx(0.1))  # of 50 to 55 hundredths
    assert [row["eval/alarm"] for row in log] == [0.0, 0.0, 1.0, 1.0]
    assert "loss" in log[1]


def test_a_run_made_to_over_optimise_is_stopped(tmp_path):
    # Twelve steps of bright pictures at four times the rate of the script: the shapes dissolve, while the implicit accuracy rises.
    hurried = SETTINGS | {"learning_rate": 2e-2, "max_train_steps": 24, "eval_every": 12, "eval_patience": 1}
    folder = align("assets/tiny-sd", votes(64, seed=0), output_dir=tmp_path, eval_prompts=captions(6, seed=0), **hurried)
    assert facts(folder)["steps"] == 12
    assert "while adherence fell" in facts(folder)["stopped"]
    before, after = rows(folder)
    assert after["adherence"] < 0.5 < 0.9 < before["adherence"]


def test_the_same_pictures_are_drawn_at_every_evaluation_and_the_last_step_has_one(config):
    first, second = rows(run(config, max_train_steps=1, eval_every=2, learning_rate=1e-30))
    assert (first["step"], second["step"]) == (0, 1)
    for name in ("green", "red", "diversity", "saturation", "sharpness"):
        assert second[name] == pytest.approx(first[name], abs=1e-3)
    assert first["diversity"] > 0


def test_drift_is_written_at_every_evaluation(look, config):
    look(Watch.of(config), {0: (20, 60)})
    (row,) = rows(config.output_dir)
    # Chroma is the largest minus the smallest: of (20, 60 + n, 0) 60 + n, of (20, 60 + n, 100) 80, for n = 0 to 5.
    assert row["saturation"] == pytest.approx((62.5 + 80) / 2 / 255)
    assert row["sharpness"] == 0.0
    assert {change["name"]: change["wins"] for change in row["changes"]} == dict.fromkeys(("green", "red", *LOOKS), 0.5)
    assert row["changes"][2]["base"] == row["diversity"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every": None}, "`eval_prompts` is .* expected nothing without `eval_every`"),
        ({"eval_every": 0}, "`eval_every` is 0; expected at least 1"),
        ({"eval_patience": 0}, "`eval_patience` is 0; expected at least 1"),
        ({"eval_prompts": []}, "`eval_prompts` is .*; expected prompts"),
        ({"method": "self_npo", "eval_reward": None}, "`eval_every` needs `eval_reward` here: `self_npo`"),
        ({"method": "ppd"}, "`eval_every` draws with one network alone, which `ppd` cannot here"),
    ],
)
def test_a_watch_that_cannot_be_meant_is_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(replace(config, **changes))


def test_prompts_and_judges_that_are_none_are_refused_before_weights_load(config, judges):
    for changes, message in (
        ({"eval_prompts": ["a star"] * 9}, "`eval_prompts` has 1 different prompts; expected at least 6"),
        ({"eval_prompts": ["prompts.txt"]}, "there is no file prompts.txt"),
        ({"eval_scorers": [], "eval_prompts": [*PROMPTS, "a photo of a cat"]}, "`eval_scorers` is empty"),
        ({"eval_every": 4, "eval_reward": None}, "`eval_every` is 4; expected at least 6 without `eval_reward`"),
        ({"eval_scorers": ["pickscor"]}, "there is no scorer `pickscor`"),
        ({"eval_scorers": [judges["red"]]}, "is what training optimises"),
        ({"eval_scorers": [{"vlm": {"model": "m", "protocol": "pairwise"}}]}, "score pictures one by one"),
        ({"eval_scorers": [{"combined": {"scorers": ["hps", "mps"]}}]}, "score pictures one by one"),
    ):
        with pytest.raises(ConfigError, match=message):
            Watch.of(replace(config, **changes))
    assert Watch.of(replace(config, eval_scorers=[])).scorers == ["adherence"]


def test_prompts_that_are_too_few_are_refused_before_the_model_is_built(config, monkeypatch):
    monkeypatch.setattr("diffalign.train.trainer.KINDS", {})
    with pytest.raises(ConfigError, match="`eval_prompts` has 1 different prompts"):
        trainer_for(replace(config, eval_prompts=["a star"] * 9))


def test_a_judge_that_can_judge_nothing_and_two_of_one_name_are_refused_at_step_0(look, config, judges):
    twin = {"function": {**judges["green"]["function"], "scale": "another"}}
    for scorers, message in (([judges["nothing"]], "can judge none"), ([judges["green"], twin], "two of them give a score named `green`")):
        with pytest.raises(ConfigError, match=message):
            look(Watch.of(replace(config, eval_scorers=scorers)), {0: (10, 50)})
