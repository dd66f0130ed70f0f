"""Every method trains on a random model through the one trainer; drivers, cached points and self-made targets do what they say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.data.importing import import_dataset
from diffalign.data.pixels import record_generator
from diffalign.data.sampler import sample_generator
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.lora_layers import LoraLinear
from diffalign.models.trajectory_cache import Precomputed
from diffalign.train.align import train
from diffalign.train.step import preference_step
from diffalign.train.trainer import trainer_for

INVERSION = {"ddim_inversion": {"steps": 3, "renoise": 1, "eta": 0.1, "driver": "reference"}}

FITTED = {"pairs": {"fit_steps": 2, "fit_batch": 8}}  # hardly, to be quick


@pytest.fixture(scope="module")
def scored(pairs_file, tmp_path_factory):
    """The pairs of four users as a table, each image with a PickScore."""
    table, rng = pq.read_table(pairs_file), np.random.default_rng(0)
    table = table.append_column("user_id", [[f"user {number % 4}" for number in range(len(table))]])
    for side in (0, 1):
        table = table.append_column(f"ps_score_{side}", [rng.uniform(0.1, 0.3, len(table))])
    folder = tmp_path_factory.mktemp("scored")
    pq.write_table(table, folder / "pairs.parquet")
    import_dataset(str(folder / "pairs.parquet"), folder / "table")
    return folder / "table"


@pytest.fixture
def config(micro_sd, scored, tmp_path):
    return TrainConfig(
        pretrained_model_name_or_path=str(micro_sd),
        dataset_name=str(scored),
        output_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        max_train_steps=2,
        train_batch_size=4,
        learning_rate=1e-2,
        rank=2,
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def calls_of(trainer):
    """Count what the denoiser is asked: a list of (rows, adapter on) a call."""
    seen = []
    layer = next(m for m in trainer.network.modules() if isinstance(m, LoraLinear))
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), not layer.off)))
    return seen


def test_mapo_asks_no_reference(config):
    trainer = trainer_for(replace(config, method="mapo", max_train_steps=1))
    seen = calls_of(trainer)
    trainer.fit()
    assert seen == [(8, True)]
    assert "implicit_acc" in log_of(trainer.output_dir)[0]


@pytest.mark.parametrize("driver", ["policy", "reference", "ema"])
def test_the_driver_runs_the_inversion(config, driver):
    config = replace(config, method="inpo", max_train_steps=1, trajectory={"ddim_inversion": {"steps": 3, "driver": driver}})
    trainer = trainer_for(config)
    seen = calls_of(trainer)
    trainer.fit()
    assert seen[-2:] == [(8, False), (8, True)]
    assert set(seen[:-2]) == {(8, driver != "reference")}
    assert 1 <= len(seen[:-2]) <= 3


def test_the_moving_average_follows_at_its_decay_and_drives(config):
    trajectory = {"ddim_inversion": {"steps": 2, "driver": "ema"}}
    config = replace(config, method="inpo", trajectory=trajectory, ema_decay=0.75, max_train_steps=1)
    trainer = trainer_for(config)
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.fit()
    assert trainer.ema is not None
    for start, now, average in zip(before, trainer.parameters, trainer.ema.shadow_params, strict=True):
        torch.testing.assert_close(average, 0.75 * start + 0.25 * now.detach())
    average, now = ([v.detach().clone() for v in values] for values in (trainer.ema.shadow_params, trainer.parameters))
    with trainer._driving() as network:
        assert network is trainer.network
        assert all(torch.equal(p, a) for p, a in zip(trainer.parameters, average, strict=True))
    assert all(torch.equal(p, a) for p, a in zip(trainer.parameters, now, strict=True))


def test_kept_points_are_those_that_a_step_would_draw(config):
    config = replace(config, method="inpo", trajectory=INVERSION, proportion_empty_prompts=0.5)
    live, entries = trainer_for(config), open_dataset(config, recipe_of(config)).entries
    kept = trainer_for(replace(config, trajectory_cache=2))
    assert isinstance(kept.parts.pairs, Precomputed)
    for position in range(4):
        batch = live.parts.pairs.to_batch([live.parts.pairs[position, 0]])
        for draw in range(2):
            row = entries[position].row
            entry_order = list(entries[position].order)
            with live.parts.reference.driving() as network:
                natural = replace(batch, x0=batch.x0[:, np.argsort(entry_order)])
                query = live.parts.likelihood.prepare(network, natural, [record_generator(f"0:{row}", draw)])
            stored = kept.parts.pairs.to_batch([kept.parts.pairs[position, draw]]).query
            assert stored is not None
            torch.testing.assert_close(stored.noised.x_t, query.noised.x_t[:, entry_order])
            torch.testing.assert_close(stored.noised.target, query.noised.target[:, entry_order], rtol=1e-4, atol=1e-4)
            assert torch.equal(stored.noised.t, query.noised.t)
            assert torch.equal(stored.condition["prompt_embeds"], query.condition["prompt_embeds"])


def test_a_step_on_kept_points_asks_the_network_as_often_as_diffusion_dpo(config):
    config = replace(config, method="smpo", trajectory_cache=2, max_train_steps=3)
    trainer = trainer_for(config)
    seen = calls_of(trainer)
    trainer.fit()
    assert seen == [(8, False), (8, True)] * 3


def test_an_epoch_takes_the_next_point(config):
    config = replace(config, method="inpo", trajectory_cache=2)
    pairs = trainer_for(config).parts.pairs
    first, second, again = (pairs.to_batch([pairs[0, epoch]]).query.noised for epoch in range(3))
    assert torch.equal(first.x_t, again.x_t)
    assert not torch.equal(first.x_t, second.x_t)


def test_another_schedule_has_points_of_its_own(config, tmp_path):
    config = replace(config, method="inpo", trajectory_cache=1)
    trainer_for(config)
    other = shutil.copytree(config.pretrained_model_name_or_path, tmp_path / "other")
    schedule = other / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"beta_end": 0.02}))
    trainer_for(replace(config, pretrained_model_name_or_path=str(other)))
    assert len(list((tmp_path / "cache").glob("points-*"))) == 2


@pytest.mark.parametrize("changes", [{"method": "self_npo"}, {"method": "inpo", "trajectory_cache": 1}], ids=["ema", "kept"])
def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, changes):
    config = replace(config, **changes, max_train_steps=4, checkpointing_steps=2)
    whole = load_file(train(config) / "pytorch_lora_weights.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = load_file(train(replace(config, resume_from_checkpoint="latest")) / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(CheckpointError, match="made with"):
        train(replace(config, resume_from_checkpoint="latest", max_train_steps=5, ema_decay=0.5))


def test_a_second_run_finds_its_points_and_flipped_labels_share_them(config, tmp_path):
    config = replace(config, method="inpo", trajectory=INVERSION, trajectory_cache=1)
    trainer_for(config)
    flipped = replace(config, transforms=["pairs", "drop_ties", {"flip_labels": {"share": 1.0}}, "orient"])
    again = trainer_for(flipped)
    assert isinstance(again.parts.pairs, Precomputed)
    assert again.parts.pairs.missing() == []
    other = replace(config, trajectory={"ddim_inversion": {**INVERSION["ddim_inversion"], "steps": 2}})
    trainer_for(other)
    assert len(list((tmp_path / "cache").glob("points-*"))) == 2


KEPT = {"method": "inpo", "trajectory_cache": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (KEPT | {"trajectory": {"ddim_inversion": {"driver": "policy"}}}, "keeps inversions driven by the reference.*driven by the policy"),
        (KEPT | {"trajectory": "forward"}, "this trajectory is forward"),
        (KEPT | {"cache": "off"}, "needs `cache` disk"),
        (KEPT | {"cache_variants": 2}, "at least as many points as there are `cache_variants`"),
        ({"trajectory": {"ddim_inversion": {"end": "exat"}}}, "`end` is 'exat'. Did you mean `exact`"),
        ({"trajectory": {"ddim_inversion": {"steps": 0}}}, "steps 0"),
        ({"trajectory": {"ddim_inversion": {"steps": 2.5}}}, "`steps` is 2.5; expected int"),
        ({"trajectory": {"ddim_inversion": {"driver": False}}}, "`driver` is False"),
        ({"trajectory": {"ddim_inversion": {"steps": 5000}}}, "`steps` is 5000; expected 1 to 1000"),
        ({"trajectory": {"self_rollout": {"steps": 30}}}, "steps 30"),
        ({"trajectory": {"self_rollout": {}}}, "set objective to denoise"),
        ({"error": {"pseudo_huber": {"c": "small"}}}, "`c` is 'small'; expected float"),
        ({"method": "mapo", "trajectory": INVERSION}, "driver is reference, and `mapo` has none"),
        ({"method": "self_npo", "train_method": "dora"}, "DoRA"),
        ({"method": "mapo", "beta": 5000.0}, "MaPO's own beta"),
    ],
)
def test_parts_that_cannot_be_meant_are_refused_before_anything_is_read(config, changes, message):
    config = replace(config, **{"method": "inpo", "dataset_name": "nowhere.parquet", **changes})
    with pytest.raises(ConfigError, match=message):
        train(config)


def test_self_npo_trains_on_a_list_of_prompts(config, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\n\na large ring\na heart at the left\n")
    folder = train(replace(config, method="self_npo", dataset_name=str(prompts)))
    assert len(log_of(folder)) == 2


def test_self_npo_from_images_asks_for_one_candidate(config):
    start = {"self_rollout": {"start": "image", "steps": 2}}
    folder = train(replace(config, method="self_npo", trajectory=start, transforms=["orient", "preferred"]))
    assert len(log_of(folder)) == 2
    with pytest.raises(ConfigError, match=r"`start` is image.*\[orient, preferred\]"):
        train(replace(config, method="self_npo", trajectory=start, overwrite_output_dir=True))


def test_a_wholly_unconditional_target_runs_one_pass_a_move(config):
    config = replace(config, method="self_npo", trajectory={"self_rollout": {"steps": 1, "guidance": -1.0}})
    trainer = trainer_for(config)
    seen = calls_of(trainer)
    batch = trainer.parts.pairs.to_batch([trainer.parts.pairs[p, 0] for p in range(4)])
    assert batch.x0.shape[1] == 0
    loss, scores = preference_step(trainer.parts, trainer.policy, batch, [sample_generator(0, p) for p in range(4)], trainer._driving)
    assert len(seen) == 3  # one move, the estimate, the student
    assert scores.policy.shape == (4, 1)
    assert loss.requires_grad
