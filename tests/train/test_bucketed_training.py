"""Training on images of several shapes: mixed passes have the gradient of the whole, and nothing else of a run's invariants is lost."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffalign.core.errors import CheckpointError
from diffalign.data.buckets import ImageSizes
from diffalign.data.pictures import encode_image
from diffalign.data.pixels import Framing, record_generator
from diffalign.data.records import Candidate, Record
from diffalign.data.sampler import Sampler
from diffalign.data.table import write_table
from diffalign.evaluate.heldout import heldout_log_ratios
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.checks import parse_buckets
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.models.trajectory_cache import Precomputed
from diffalign.train.align import train
from diffalign.train.step import preference_step
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.micro_models import write_micro
from tests.processes import launch

BUCKETS = "24,40;40,24"
WIDE, TALL = (4, 6, 10), (4, 10, 6)  # their latents
INVERSION = {"ddim_inversion": {"steps": 2, "driver": "reference"}}
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Seven pairs of wide pictures and six of tall ones, no two of one size, labels in turn."""
    rng, records = np.random.default_rng(0), []
    for number in range(13):
        sides = [(40 + 3 * number, 30 + number), (80 - number, 44)]
        noise = [rng.integers(0, 256, (*(side if number < 7 else side[::-1])[::-1], 3), dtype=np.uint8) for side in sides]
        images = tuple(Candidate(image=encode_image(Image.fromarray(pixels))) for pixels in noise)
        records.append(Record(f"r{number}", ["a star", "a red heart"][number % 2], images, float(number % 2), source=f"row {number}"))
    return write_table(tmp_path_factory.mktemp("mixed") / "table", records).path


@pytest.fixture
def config(micro_sd, table, tmp_path):
    return checked(
        TrainConfig(
            pretrained_model_name_or_path=str(micro_sd),
            dataset_name=str(table),
            output_dir=str(tmp_path / "run"),
            cache_dir=str(tmp_path / "cache"),
            aspect_ratio_buckets=BUCKETS,
            max_train_steps=4,
            train_batch_size=4,
            learning_rate=1e-2,
            rank=2,
        )
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def trainer_of(config):
    """Return a trainer whose adapter already says something."""
    trainer = trainer_for(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return trainer


def gradient(trainer):
    return torch.cat([p.grad.flatten().clone() for p in trainer.parameters])


def mixed_step(sampler):
    """Return a step with a pass that holds one bucket and less than a block."""
    return next(step for step in range(50) if len({len(samples) for samples in sampler.passes(step)}) > 1)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_mixed_step_has_the_gradient_and_the_scalars_of_its_records_one_by_one(config, accumulation, monkeypatch):
    trainer = trainer_of(replace(config, beta=10.0, gradient_accumulation_steps=accumulation, max_grad_norm=1e9))
    trainer.step = mixed_step(trainer.sampler)
    passes = trainer.sampler.passes(trainer.step)
    samples = [sample for part in passes for sample in part]
    trainer.network.zero_grad()
    losses = []
    for sample in samples:
        batch = trainer.parts.pairs.to_batch([trainer.parts.pairs[index] for index in trainer.sampler.indices([sample])])
        loss, _ = preference_step(trainer.parts, trainer.policy, batch, trainer.sampler.generators([sample]), trainer._driving)
        (loss / len(samples)).backward()
        losses.append(loss.item())
    expected = gradient(trainer)
    trainer.network.zero_grad()
    seen = []
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda *_: seen.append(gradient(trainer)) or torch.tensor(1.0))
    parts = iter([trainer.parts.pairs.to_batch([trainer.parts.pairs[index] for index in trainer.sampler.indices(part)]) for part in passes])
    facts = trainer.optimizer_step(parts)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert facts["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert 0.0 <= facts["implicit_acc"] <= 1.0
    assert facts["implicit_acc"] * len(samples) == pytest.approx(round(facts["implicit_acc"] * len(samples)), abs=1e-4)


def test_a_run_in_buckets_shows_the_denoiser_both_shapes_and_no_other(config):
    trainer = trainer_for(config)
    shapes = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    trainer.fit()
    assert {shape[1:] for shape in shapes} == {WIDE, TALL}
    assert max(shape[0] for shape in shapes) == 2 * config.train_batch_size


def test_cached_and_live_images_in_buckets_give_the_same_losses(config, tmp_path):
    config = replace(config, random_crop=True, random_flip=True, cache_variants=2, proportion_empty_prompts=0.3, beta=10.0)
    cached, live = (log_of(train(replace(config, cache=kind, output_dir=str(tmp_path / kind)))) for kind in ("disk", "off"))
    assert len(cached) == 4
    for ours, other in zip(cached, live, strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert ours["skipped"] == 0
        assert ours["grad_norm"] > 0


def test_a_resumed_run_in_buckets_equals_an_uninterrupted_one(config, tmp_path):
    config = replace(config, checkpointing_steps=2, gradient_accumulation_steps=2)
    whole = load_file(train(config) / WEIGHTS)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = load_file(train(replace(config, resume_from_checkpoint="latest")) / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_goes_on_only_in_the_order_that_it_began(config):
    config = replace(config, checkpointing_steps=2, max_train_steps=2)
    train(config)
    again = replace(config, resume_from_checkpoint="latest", max_train_steps=3)
    with pytest.raises(CheckpointError, match="made with bucket_batch 4, this run has 2"):
        train(replace(again, train_batch_size=2, gradient_accumulation_steps=2))
    with pytest.raises(CheckpointError, match=f"aspect_ratio_buckets {BUCKETS}.*40,24;24,40"):
        train(replace(again, aspect_ratio_buckets="40,24;24,40"))


def test_kept_points_of_a_bucket_are_those_that_a_step_would_draw(config):
    config = replace(config, method="inpo", trajectory=INVERSION)
    live, kept = (trainer_for(c) for c in (config, replace(config, trajectory_cache=1)))
    assert isinstance(kept.parts.pairs, Precomputed)
    for position, entry in enumerate(open_dataset(config, recipe_of(config)).entries):
        batch = live.parts.pairs.to_batch([live.parts.pairs[position, 0]])
        order = list(entry.order)
        natural = replace(batch, x0=batch.x0[:, np.argsort(order)], frames=batch.frames[:, np.argsort(order)])
        with live.parts.reference.driving() as network:
            query = live.parts.likelihood.prepare(network, natural, [record_generator(f"0:{entry.row}", 0)])
        stored = kept.parts.pairs.to_batch([kept.parts.pairs[position, 0]]).query
        torch.testing.assert_close(stored.noised.x_t, query.noised.x_t[:, order])
        assert torch.equal(stored.frames, batch.frames)
    kept.fit()
    assert len(log_of(kept.output_dir)) == 4


def test_pairs_of_mixed_shapes_are_judged_each_as_by_itself(config):
    trainer = trainer_of(config)
    together = heldout_log_ratios(trainer.parts, draws=2, batch_size=3)
    alone = heldout_log_ratios(trainer.parts, draws=2, batch_size=1)
    assert together.shape == (13, 2)
    assert together.std() > 1e-5
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-7)


def test_sdxl_is_told_the_frame_of_every_image(config, tmp_path):
    config = replace(config, pretrained_model_name_or_path=str(write_micro("sdxl", tmp_path / "sdxl")), random_flip=True, max_train_steps=2)
    trainer = trainer_for(config)
    told = []
    trainer.network.register_forward_pre_hook(
        lambda _, __, named: told.append(named["added_cond_kwargs"]["time_ids"].clone()), with_kwargs=True
    )
    trainer.fit()
    expected = []
    for samples in trainer.sampler.passes(0) + trainer.sampler.passes(1):
        rows = [trainer.parts.pairs[index] for index in trainer.sampler.indices(samples)]
        expected += [torch.cat([row["frames"] for row in rows])] * 2  # reference and policy
    assert len(told) == len(expected)
    assert all(torch.equal(ours, right) for ours, right in zip(told, expected, strict=True))
    assert {tuple(frame) for frames in told for frame in frames[:, 4:].tolist()} == {(24.0, 40.0), (40.0, 24.0)}


def test_two_processes_give_the_weights_of_one_though_their_passes_differ_in_number(config, tmp_path):
    linear = {"adam_epsilon": 1.0, "learning_rate": 1.0, "beta": 10.0}  # see test_trainer.py
    config = replace(config, **linear, train_batch_size=5, gradient_accumulation_steps=4, max_train_steps=3)
    one = load_file(train(config) / WEIGHTS)
    apart = replace(config, gradient_accumulation_steps=2, cache_dir=str(tmp_path / "cache of two"), output_dir=str(tmp_path / "two"))
    launch(tmp_path, [asdict(apart)])
    two = load_file(tmp_path / "two" / WEIGHTS)
    view = open_dataset(config, recipe_of(config))
    kinds = ImageSizes(view, Framing(32, buckets=parse_buckets(config.aspect_ratio_buckets))).buckets(view)
    ranks = [Sampler(13, 5, 2, 2, rank, config.seed, kinds) for rank in range(2)]
    assert all(len(ranks[0].passes(step)) != len(ranks[1].passes(step)) for step in range(3))
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-6
    assert max(value.abs().max().item() for name, value in one.items() if "lora_B" in name) > 1e-3
