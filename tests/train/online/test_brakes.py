"""The brake of drawing: the start model takes the last solver steps of a turn's pictures."""

from __future__ import annotations

import pytest
import torch
from tqdm.std import tqdm

from diffalign.core.errors import ConfigError
from diffalign.models import adapters
from diffalign.train import align as api
from diffalign.train.trainer import trainer_for
from tests.shades import add_scorer
from tests.train.online.scorers import Bright, online_config
from tests.train.online.test_rollout import POLICY

DRAWN = {"num_inference_steps": 4, "start_model_steps": 2, "sample_guidance_scale": 1.0}
WAYS = {"pipeline": {}, "rollout": POLICY | {"rollout": "ddim", "updates_per_turn": 2}}


def test_the_last_steps_are_those_of_the_model_that_training_began_with(micro_sd, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)
    for way, options in WAYS.items():
        trainer = trainer_for(online_config(micro_sd, tmp_path / way, **(options | DRAWN)))
        parameters = adapters.trainable(trainer.network)
        start = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.1)
        asked = list[bool]()  # whether the network was the one that training began with

        def watched(*_, parameters=parameters, start=start, asked=asked):
            asked.append(all(torch.equal(value, first) for value, first in zip(parameters, start, strict=True)))

        trainer.network.register_forward_pre_hook(watched)
        for seed in (0, 1):
            with torch.no_grad():
                trainer.parts.turns.drawer.draw(["a star"], [seed], 0, tqdm(disable=True))
        half = len(asked) // 2  # a sampler may ask once more than it has steps
        assert asked[:half] == asked[half:] == [False] * 2 + [True] * (half - 2), way
        assert not any(torch.equal(value, first) for value, first in zip(parameters, start, strict=True)), way


def test_a_run_with_the_brake_trains_the_steps_before_it(micro_sd, tmp_path, monkeypatch):
    add_scorer(monkeypatch, "bright", Bright)
    seen = []
    config = online_config(micro_sd, tmp_path / "run", **(WAYS["rollout"] | DRAWN | {"max_train_steps": 2}))
    trainer = trainer_for(config)
    write = trainer.parts.turns.log.write
    monkeypatch.setattr(trainer.parts.turns.log, "write", lambda *args, **facts: (seen.append(args[2]), write(*args, **facts)))
    trainer.fit()
    assert [tensors["t"].shape[2] for tensors in seen] == [2]  # of four steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_model_steps": 2}, "`start_model_steps` is 2; expected fewer than `num_inference_steps`, 2"),
        (POLICY | {"start_model_steps": 2, "rollout": {"branch": {"splits": [0, 1]}}, "images_per_prompt": 4}, r"`splits` is \[0, 1\]"),
    ],
)
def test_a_brake_that_leaves_nothing_to_the_policy_is_refused(micro_sd, tmp_path, monkeypatch, changes, message):
    add_scorer(monkeypatch, "bright", Bright)
    monkeypatch.setattr("diffalign.methods.builders.image.backbone", None)
    with pytest.raises(ConfigError, match=message):
        api.train(online_config(micro_sd, tmp_path / "run", **changes))
